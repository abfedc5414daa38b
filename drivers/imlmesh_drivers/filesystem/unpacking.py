"""Takes archives apart: zip, tar, tar.gz, tar.bz2, told by what is in them, not by their names.

The one rule: everything is unpacked into a stage first; only when all of it is there and fits does
it move to its place, and what has moved goes back when the rest cannot. Files and folders alone:
an archive with a link, a device, or a name that leads elsewhere is refused as a whole.
"""

import contextlib
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import IO, BinaryIO

from imlmesh_drivers import syscalls
from imlmesh_drivers.files import blamed_on, folder, names_in, write_all
from imlmesh_drivers.filesystem.drafts import is_draft, keep_entries
from imlmesh_drivers.filesystem.drafts import stage as staged
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverNotFound
from imlmesh_protocol.limits import ARCHIVE_BYTES, ARCHIVE_ENTRIES, NAME_BYTES, PATH_PARTS

_CHUNK_BYTES = 256 * 1024
_FOLDER_MODE = 0o755
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
#: what readers of archives raise for what is damaged
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError)

#: (name, whether it is a folder, whether it may be executed, its content)
_Member = tuple[str, bool, bool, IO[bytes] | None]


def unpack(file: BinaryIO, stage: int, check: Callable[[], None]) -> int:
    """Unpack into the empty folder `stage`, all on the disk at the end; the number of files.

    Raises `driver.failed` for what is no archive or damaged, `policy.path` for members that
    lead elsewhere, `result.too_large` beyond ARCHIVE_ENTRIES and ARCHIVE_BYTES.
    """
    files, room = 0, ARCHIVE_BYTES
    try:
        for number, (name, is_folder, executable, content) in enumerate(_members(file), start=1):
            check()
            if number > ARCHIVE_ENTRIES:
                text = f"the archive has more than {ARCHIVE_ENTRIES} entries"
                raise DriverError("result.too_large", text)
            parts = _parts(name)
            if is_folder:
                with folder(f"/proc/self/fd/{stage}", parts, create=True):
                    continue
            if not parts or content is None:
                raise DriverError("driver.failed", f"{name[:200]!r} is a file without a name")
            room = _write(stage, parts, content, 0o777 if executable else 0o666, room, check)
            files += 1
    except _DAMAGED as exc:
        raise DriverError("driver.failed", f"no archive, or a damaged one: {exc}") from exc
    except (RuntimeError, NotImplementedError) as exc:
        if isinstance(exc, DriverError):
            raise
        # so zipfile says that it needs a password, or a method of compression that it lacks
        raise DriverError("driver.failed", f"the archive cannot be read: {exc}") from exc
    # once for all: a wait for each of ten thousand files takes an SD card minutes
    syscalls.sync_disk(stage)
    return files


def _members(file: BinaryIO) -> Iterator[_Member]:
    if zipfile.is_zipfile(file):
        yield from _zip_members(file)
        return
    for mode in ("r:", "r:gz", "r:bz2"):
        file.seek(0)
        with contextlib.suppress(tarfile.ReadError):
            archive = tarfile.open(fileobj=file, mode=mode)  # noqa: SIM115 - closed below
            break
    else:
        raise DriverError("driver.failed", "the file is no archive that is known here")
    with archive:
        yield from _tar_members(archive)


def _zip_members(file: BinaryIO) -> Iterator[_Member]:
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            kind = stat.S_IFMT(mode)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DriverDenied("policy.path", f"{info.filename[:200]!r} is a link or a device")
            if info.is_dir():
                yield info.filename, True, False, None
                continue
            with archive.open(info) as content:
                yield info.filename, False, bool(mode & stat.S_IXUSR), content


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    while (info := archive.next()) is not None:
        # it would keep every member in memory
        archive.members = []  # type: ignore[attr-defined]
        if info.isdir():
            yield info.name, True, False, None
        elif info.isreg():
            yield info.name, False, bool(info.mode & stat.S_IXUSR), archive.extractfile(info)
        else:
            raise DriverDenied("policy.path", f"{info.name[:200]!r} is a link or a device")


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DriverDenied("policy.path", f"the member {name[:200]!r} leads out of the archive")
    if len(path.parts) > PATH_PARTS:
        raise DriverError("driver.failed", f"{name[:80]!r}... is deeper than {PATH_PARTS} folders")
    for part in path.parts:
        if is_draft(part) or len(os.fsencode(part)) > NAME_BYTES:
            raise DriverError("driver.failed", f"no file can have the name {name[:200]!r}")
    return path.parts


def _write(
    stage: int,
    parts: tuple[str, ...],
    content: IO[bytes],
    mode: int,
    room: int,
    check: Callable[[], None],
) -> int:
    """Write one member; the bytes that further ones may have."""
    with folder(f"/proc/self/fd/{stage}", parts[:-1], create=True) as opened:
        try:
            descriptor = os.open(parts[-1], _NEW_FILE, mode, dir_fd=opened)
        except FileExistsError as exc:
            text = f"'{'/'.join(parts)[:200]}' is in the archive twice"
            raise DriverError("driver.failed", text) from exc
        try:
            while chunk := content.read(_CHUNK_BYTES):
                check()
                room -= len(chunk)
                if room < 0:
                    text = f"the archive holds more than {ARCHIVE_BYTES} bytes"
                    raise DriverError("result.too_large", text)
                write_all(descriptor, chunk)
        finally:
            os.close(descriptor)
    return room


#: (parts of the folder, name in it, whether a file there is replaced)
_Move = tuple[tuple[str, ...], str, bool]


def merge(stage: int, target: int, *, overwrite: bool) -> None:
    """Move everything from one open folder into another: all of it, or nothing.

    Raises `driver.failed` when a file is there already and may not be replaced, or is of
    another kind.
    """
    done: list[_Move] = []
    try:
        for move in _moves(stage, target, overwrite=overwrite):
            _perform(stage, target, move)
            done.append(move)
    except BaseException:
        for move in reversed(done):
            # one that somebody took meanwhile keeps none of the others from going back
            with contextlib.suppress(OSError, DriverError):
                _perform(target, stage, move)
        raise
    syscalls.sync_disk(stage)


def _moves(stage: int, target: int, *, overwrite: bool) -> list[_Move]:
    """What has to move, after a look at all of it: a conflict is known before anything moved."""
    moves: list[_Move] = []
    both: list[tuple[str, ...]] = [()]
    while both:
        parts = both.pop()
        with _inside(stage, parts) as mine, _inside(target, parts) as theirs:
            for name in names_in(mine):
                new = os.stat(name, dir_fd=mine, follow_symlinks=False).st_mode
                old = _mode(theirs, name)
                shown = "/".join((*parts, name))
                if old is not None and stat.S_ISDIR(new) and stat.S_ISDIR(old):
                    both.append((*parts, name))
                elif old is not None and not (stat.S_ISREG(new) and stat.S_ISREG(old)):
                    raise DriverError("driver.failed", f"{shown!r} is there and of another kind")
                elif old is not None and not overwrite:
                    raise DriverError("driver.failed", f"{shown!r} exists and overwrite is false")
                else:
                    moves.append((parts, name, old is not None))
    return moves


def _mode(opened: int, name: str) -> int | None:
    try:
        return os.stat(name, dir_fd=opened, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _inside(opened: int, parts: Sequence[str]) -> contextlib.AbstractContextManager[int]:
    return folder(f"/proc/self/fd/{opened}", parts)


def _perform(source: int, target: int, move: _Move) -> None:
    """Move one name; from `target` to `source` it is the way back."""
    parts, name, replaces = move
    with _inside(source, parts) as there, _inside(target, parts) as here:
        if replaces:
            # what was there waits in the stage, in case that the rest cannot move
            syscalls.exchange(there, name, here, name)
        else:
            syscalls.rename(there, name, here, name, replace=False)


def unpack_into(
    file: BinaryIO,
    root: str,
    parts: Sequence[str],
    *,
    overwrite: bool,
    check: Callable[[], None],
) -> int:
    """Unpack into the folder `parts` below a root, made when missing; the number of files.

    Errors are blamed on the source or the destination.
    """
    with contextlib.ExitStack() as held:
        with blamed_on("destination"):
            is_new = not _is_there(root, parts)
            opened = held.enter_context(
                folder(root, parts[:-1] if is_new else parts, create=is_new)
            )
            stage, name = held.enter_context(staged(opened))
        with blamed_on("source"):
            files = unpack(file, stage, check)
        with blamed_on("destination"):
            if is_new:
                os.fchmod(stage, _FOLDER_MODE)
                syscalls.rename(opened, name, opened, parts[-1], replace=False)
                keep_entries(opened)
            else:
                merge(stage, opened, overwrite=overwrite)
    return files


def _is_there(root: str, parts: Sequence[str]) -> bool:
    try:
        with folder(root, parts):
            return True
    except DriverNotFound:
        return False
