"""Files and folders that appear whole or not at all, in an open folder.

The one rule: what is written has no name until it is complete and on the disk; then it gets its
name in one rename. A file without a name vanishes by itself, whatever ends us in the middle.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator

from imlmesh_drivers import syscalls
from imlmesh_drivers.files import blamed_on, names_in, open_regular, write_all
from imlmesh_protocol.errors import DriverDenied, DriverError

_DRAFT_NAME = re.compile(r"\.imlmesh-[0-9a-f]{16}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES = 1024 * 1024
_NO_TMPFILE = {errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL}

#: (the param that named it, open folder, name in it)
Place = tuple[str, int, str]


def draft_name() -> str:
    """A name that nothing in any folder has."""
    return f".imlmesh-{secrets.token_hex(8)}"


def is_draft(name: str) -> bool:
    """Whether a name is that of a draft, which means nothing to anybody else."""
    return bool(_DRAFT_NAME.fullmatch(name))


def replaceable(opened: int, name: str, *, overwrite: bool) -> int | None:
    """The permissions of the regular file `name`, None when there is nothing of that name.

    Raises `policy.path` for a link, `driver.failed` for what is no file or may not be replaced.
    """
    try:
        mode = os.stat(name, dir_fd=opened, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        raise DriverDenied("policy.path", f"{name!r} is a symbolic link")
    if not stat.S_ISREG(mode):
        raise DriverError("driver.failed", f"{name!r} is not a regular file")
    if not overwrite:
        raise DriverError("driver.failed", f"{name!r} exists and overwrite is false")
    return stat.S_IMODE(mode)


def write_whole(
    place: Place, fill: Callable[[int], None], *, overwrite: bool, mode: int | None = None
) -> None:
    """Let `fill` write into a new file that then takes the name; `mode`: that of the old one."""
    field, opened, name = place
    with blamed_on(field):
        old_mode = replaceable(opened, name, overwrite=overwrite)
    descriptor, draft = _new_file(opened)
    try:
        wanted = old_mode if mode is None else mode
        if wanted is not None:
            # rights to act as the owner were given to the old content, or to another owner
            os.fchmod(descriptor, wanted & 0o777)
        fill(descriptor)
        os.fsync(descriptor)
        if draft is None:
            draft = draft_name()
            source = f"/proc/self/fd/{descriptor}"
            os.link(source, draft, dst_dir_fd=opened, follow_symlinks=True)
        syscalls.rename(opened, draft, opened, name, replace=overwrite)
        draft = None
    except FileExistsError as exc:
        text = f"{field}: {name!r} exists and overwrite is false"
        raise DriverError("driver.failed", text) from exc
    finally:
        os.close(descriptor)
        if draft is not None:
            os.unlink(draft, dir_fd=opened)
    keep_entries(opened)


def _new_file(opened: int) -> tuple[int, str | None]:
    """An empty file to write and read, and its name if this file system gives it one."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(".", flags | os.O_TMPFILE, 0o666, dir_fd=opened), None
    except OSError as exc:
        if exc.errno not in _NO_TMPFILE:
            raise
    draft = draft_name()
    return os.open(draft, flags | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=opened), draft


def keep_entries(opened: int) -> None:
    """Bring the names in a folder to the disk."""
    entries = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened)
    try:
        os.fsync(entries)
    finally:
        os.close(entries)


def copy_into(source: int, check: Callable[[], None]) -> Callable[[int], None]:
    """A `fill` that copies an open file; `driver.busy` when it changes meanwhile."""

    def fill(descriptor: int) -> None:
        before = os.fstat(source)
        while chunk := os.read(source, _CHUNK_BYTES):
            check()
            write_all(descriptor, chunk)
        after = os.fstat(source)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DriverError("driver.busy", "source: the file changed while it was copied")

    return fill


def move(source: Place, target: Place, *, overwrite: bool, check: Callable[[], None]) -> None:
    """Give a file or folder another name.

    Onto another disk a file is copied whole and then removed; a folder is refused.
    """
    (_, held, old), (_, opened, new) = source, target
    found = os.stat(old, dir_fd=held, follow_symlinks=False)
    is_folder = stat.S_ISDIR(found.st_mode)
    replace = overwrite and not is_folder
    with blamed_on(source[0]):
        if stat.S_ISLNK(found.st_mode):
            raise DriverDenied("policy.path", f"{old!r} is a symbolic link")
        if not is_folder and not stat.S_ISREG(found.st_mode):
            raise DriverError("driver.failed", f"{old!r} is neither a file nor a folder")
    is_far = False
    with blamed_on(target[0]):
        replaceable(opened, new, overwrite=replace)
        try:
            syscalls.rename(held, old, opened, new, replace=replace)
        except FileExistsError as exc:
            raise DriverError("driver.failed", f"{new!r} exists") from exc
        except OSError as exc:
            if exc.errno == errno.EINVAL and is_folder:
                raise DriverError("driver.failed", "a folder cannot be moved into itself") from exc
            if exc.errno != errno.EXDEV:
                raise
            if is_folder:
                text = "a folder cannot be moved to another disk: pack and unpack it"
                raise DriverError("driver.failed", text) from exc
            is_far = True
    if is_far:
        _move_far(source, target, overwrite=overwrite, check=check)
    keep_entries(opened)
    keep_entries(held)


def _move_far(source: Place, target: Place, *, overwrite: bool, check: Callable[[], None]) -> None:
    _, held, old = source
    reading = open_regular(held, old)
    try:
        mode = stat.S_IMODE(os.fstat(reading).st_mode)
        write_whole(target, copy_into(reading, check), overwrite=overwrite, mode=mode)
    finally:
        os.close(reading)
    os.unlink(old, dir_fd=held)


@contextlib.contextmanager
def stage(opened: int) -> Iterator[tuple[int, str]]:
    """A new folder with a draft's name, (descriptor, name), removed with all in it at the end."""
    sweep(opened)
    name = draft_name()
    os.mkdir(name, 0o700, dir_fd=opened)
    descriptor = os.open(name, _FOLDER, dir_fd=opened)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor, name
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(name, dir_fd=opened)


def sweep(opened: int) -> None:
    """Remove what somebody who was killed left in a folder: drafts that nobody holds a lock on."""
    for name in names_in(opened):
        if not is_draft(name):
            continue
        try:
            left = os.open(name, _FOLDER, dir_fd=opened)
        except OSError:
            continue
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(name, dir_fd=opened, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(left)
