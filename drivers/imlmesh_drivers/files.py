"""Opens files beneath a root and nowhere else.

The one rule: a path is walked component by component from an open root, no link is followed and
`..` is refused, so nothing can be swapped between check and use. Links *above* a root are the
policy's own business. Only regular files with one name are opened: a second name, a hard link,
could stand for a file outside; a device or FIFO is looked at, never opened.
"""

import contextlib
import functools
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from imlmesh_drivers.base import Site
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverNotFound
from imlmesh_protocol.limits import (
    FREE_SPACE_BYTES,
    FREE_SPACE_PART,
    NAME_BYTES,
    PATH_BYTES,
    PATH_PARTS,
)

_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


@contextlib.contextmanager
def blamed_on(field: str) -> Iterator[None]:
    """Errors from within say which param of the action they are about."""
    try:
        yield
    except DriverError as exc:
        raise type(exc)(exc.code, f"{field}: {exc.message}") from exc


def absolute(site: Site, path: str) -> str:
    """The absolute form of `path`, relative ones from the node's files folder.

    Raises `policy.path`, and `driver.params` for a path that no file can have. It runs for every
    dispatch, twice: pathlib would take three times as long.
    """
    parts = path.split("/")
    if not path or "\0" in path or ".." in parts:
        why = "contains '..'" if ".." in parts else "is not a path"
        raise DriverDenied("policy.path", f"{path[:200]!r} {why}")
    start = "" if path.startswith("/") else _normal(site.files)
    full = "/".join((start, *(part for part in parts if part not in ("", "."))))
    if _too_long(full) or full.count("/") > PATH_PARTS:
        raise DriverError(
            "driver.params", f"{path[:80]!r}... is longer or deeper than a path may be"
        )
    return full or "/"


def _too_long(path: str) -> bool:
    if len(path) <= NAME_BYTES and path.isascii():
        return False
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError as exc:
        raise DriverDenied("policy.path", f"{path[:200]!r} is not a path") from exc
    return len(encoded) > PATH_BYTES or max(map(len, encoded.split(b"/"))) > NAME_BYTES


@functools.lru_cache(maxsize=256)
def _normal(root: str) -> str:
    """A folder of the policy, without a slash at its end: "" for the root of all."""
    return str(PurePosixPath(root)).rstrip("/")


def readable_roots(site: Site) -> tuple[str, ...]:
    """Where a plan may read: what it may write it may read too."""
    return (*site.read_roots, *site.write_roots)


def split_root(path: str, roots: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The deepest root that holds `path`, of `absolute`, and the components below it; `policy.path`."""
    holding = [root for root in map(_normal, roots) if path == root or path.startswith(f"{root}/")]
    if not holding:
        raise DriverDenied("policy.path", f"{path} is beneath no root of this node")
    root = max(holding, key=len)
    below = path[len(root) + 1 :]
    return root or "/", tuple(below.split("/")) if below else ()


def _enter(folder: int, name: str, shown: str) -> int:
    inner = os.open(name, _WALK, dir_fd=folder)
    mode = os.fstat(inner).st_mode
    if stat.S_ISDIR(mode):
        return inner
    os.close(inner)
    if stat.S_ISLNK(mode):
        raise DriverDenied("policy.path", f"{shown}: {name!r} is a symbolic link")
    raise DriverError("driver.failed", f"{shown}: {name!r} is not a folder")


def _make(folder: int, name: str) -> bool:
    """Make a folder; False when something of that name is there."""
    try:
        os.mkdir(name, dir_fd=folder)
    except FileExistsError:
        return False
    return True


def _remove_empty(folder: int, name: str) -> None:
    # somebody who has put something into it meanwhile keeps it
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=folder)


@contextlib.contextmanager
def folder(root: str, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """An open descriptor of the folder `parts` below `root`, to open other things from.

    What `create` made is removed again when what follows fails. Raises `driver.not_found`,
    `policy.path` for a link on the way, `driver.failed` for a file.
    """
    shown = "/".join((root, *parts))
    with contextlib.ExitStack() as held, contextlib.ExitStack() as made:
        try:
            current = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, current)
            for name in parts:
                if create and _make(current, name):
                    made.callback(_remove_empty, current, name)
                current = _enter(current, name, shown)
                held.callback(os.close, current)
        except FileNotFoundError as exc:
            raise DriverNotFound("driver.not_found", f"{shown} does not exist") from exc
        yield current
        made.pop_all()


def names_in(opened: int) -> list[str]:
    """The names in an open folder, sorted."""
    # a descriptor that only names a folder cannot be listed; its path below /proc can
    with os.scandir(f"/proc/self/fd/{opened}") as entries:
        return sorted(entry.name for entry in entries)


@contextlib.contextmanager
def parent(path: str, roots: Sequence[str], *, create: bool = False) -> Iterator[tuple[int, str]]:
    """The folder that holds an absolute `path`, and its name in there."""
    root, parts = split_root(path, roots)
    if not parts:
        raise DriverError("driver.failed", f"{path} is a folder")
    with folder(root, parts[:-1], create=create) as opened:
        try:
            yield opened, parts[-1]
        except FileNotFoundError as exc:
            raise DriverNotFound("driver.not_found", f"{path} does not exist") from exc


def open_regular(opened: int, name: str, flags: int = os.O_RDONLY) -> int:
    """Open a regular file in a folder.

    Raises `policy.path` for a link and for a file of several names, `driver.failed` for
    anything else that is no regular file, FileNotFoundError.
    """
    seen = os.open(name, _WALK, dir_fd=opened)
    try:
        found = os.fstat(seen)
        if stat.S_ISLNK(found.st_mode):
            raise DriverDenied("policy.path", f"{name!r} is a symbolic link")
        if not stat.S_ISREG(found.st_mode):
            raise DriverError("driver.failed", f"{name!r} is not a regular file")
        if found.st_nlink > 1:
            raise DriverDenied("policy.path", f"{name!r} has another name, maybe outside the roots")
        # what was looked at is what is opened, whatever now bears its name
        return os.open(f"/proc/self/fd/{seen}", flags | os.O_CLOEXEC)
    finally:
        os.close(seen)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything; `store.full` before the last free space of the disk is taken."""
    disk = os.fstatvfs(descriptor)
    kept_free = min(FREE_SPACE_BYTES, disk.f_blocks * disk.f_frsize // FREE_SPACE_PART)
    if disk.f_bavail * disk.f_frsize - len(data) < kept_free:
        raise DriverError("store.full", f"{len(data)} more bytes would fill the disk")
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _open_to_append(opened: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND
    with contextlib.suppress(FileNotFoundError):
        return open_regular(opened, name, flags)
    with contextlib.suppress(FileExistsError):
        new = flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, new, 0o666, dir_fd=opened)
    # somebody was faster
    return open_regular(opened, name, flags)


def append(path: str, roots: Sequence[str], data: bytes, mark: bytes = b"") -> int:
    """Append to a file, made when missing; gives how many bytes that were.

    `mark` comes first when the file is empty. What cannot be written whole is taken back.
    """
    with parent(path, roots) as (opened, name):
        descriptor = _open_to_append(opened, name)
        try:
            before = os.fstat(descriptor).st_size
            if not before:
                data = mark + data
            try:
                write_all(descriptor, data)
                os.fsync(descriptor)
            except BaseException:
                # what others appended meanwhile is not ours to cut off
                if before < os.fstat(descriptor).st_size < before + len(data):
                    os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)
    return len(data)


def append_beneath(root: str, path: str, data: bytes) -> None:
    """Append to the file at a relative `path` below one root."""
    append(absolute(Site(files=root), path), (root,), data)
