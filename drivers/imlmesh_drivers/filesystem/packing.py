"""Makes archives: zip, tar, tar.gz, tar.bz2 of a file or a folder.

The one rule: an archive holds files and folders alone, under the name of what was packed; links and
devices are counted and left out.
"""

import io
import os
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal, Protocol

from imlmesh_drivers.files import blamed_on, open_regular, write_all
from imlmesh_drivers.filesystem.results import Format
from imlmesh_drivers.filesystem.tree import walk
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import ARCHIVE_BYTES, ARCHIVE_ENTRIES

_CHUNK_BYTES = 1024 * 1024
# zip knows no other times
_OLDEST, _NEWEST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)


@dataclass(slots=True)
class Packed:
    """How many entries an archive has, and how many were left out."""

    entries: int = 0
    skipped: int = 0


class _Guarded(io.RawIOBase):
    """A draft as a file object that keeps space free on the disk.

    Archives write once more when they are closed or collected: after `drop` that goes nowhere,
    since the descriptor may be another file's by then.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def drop(self) -> None:
        self._descriptor = None

    def write(self, data: Any) -> int:
        if self._descriptor is not None:
            write_all(self._descriptor, data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return 0 if self._descriptor is None else os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        return self.seek(0, os.SEEK_CUR)

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class _Writer(Protocol):
    def folder(self, name: str, found: os.stat_result) -> None: ...

    def file(self, name: str, found: os.stat_result, source: io.BufferedReader) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """Write nothing more, not even when it is collected."""
        ...


class _Reading(io.BufferedReader):
    """A source that asks before each piece whether anybody still waits."""

    def __init__(self, descriptor: int, check: Callable[[], None]) -> None:
        super().__init__(io.FileIO(descriptor, "rb"), _CHUNK_BYTES)
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check()
        return super().read(size)


class _Zip:
    def __init__(self, sink: Any) -> None:
        self._archive = zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED)

    def folder(self, name: str, found: os.stat_result) -> None:
        self._archive.writestr(self._info(f"{name}/", found), b"")

    def file(self, name: str, found: os.stat_result, source: io.BufferedReader) -> None:
        info = self._info(name, found)
        info.compress_type = zipfile.ZIP_DEFLATED
        left = found.st_size
        with self._archive.open(info, "w") as target:
            while left and (chunk := source.read(min(left, _CHUNK_BYTES))):
                target.write(chunk)
                left -= len(chunk)
        if left:
            raise DriverError("driver.busy", f"{name!r} became shorter while it was packed")

    def close(self) -> None:
        self._archive.close()

    def abandon(self) -> None:
        self._archive.fp = None

    @staticmethod
    def _info(name: str, found: os.stat_result) -> zipfile.ZipInfo:
        try:
            name.encode()
        except UnicodeEncodeError as exc:
            text = f"{name[:200]!r} is no text, and zip knows no other names: a tar does"
            raise DriverError("driver.params", text) from exc
        changed = min(max(time.gmtime(found.st_mtime)[:6], _OLDEST), _NEWEST)
        info = zipfile.ZipInfo(name, changed)
        info.external_attr = (found.st_mode & 0xFFFF) << 16
        return info


class _Tar:
    def __init__(self, sink: Any, mode: Literal["w", "w:gz", "w:bz2"]) -> None:
        self._archive = tarfile.open(fileobj=sink, mode=mode)  # noqa: SIM115 - closed by `close`

    def folder(self, name: str, found: os.stat_result) -> None:
        info = self._info(name, found)
        info.type, info.size = tarfile.DIRTYPE, 0
        self._archive.addfile(info)

    def file(self, name: str, found: os.stat_result, source: io.BufferedReader) -> None:
        try:
            self._archive.addfile(self._info(name, found), source)
        except OSError as exc:
            if exc.errno is not None:
                raise
            text = f"{name!r} became shorter while it was packed"
            raise DriverError("driver.busy", text) from exc

    def close(self) -> None:
        self._archive.close()

    def abandon(self) -> None:
        # the compressor around the sink has an end to write
        if self._archive.fileobj is not None:
            self._archive.fileobj.close()

    @staticmethod
    def _info(name: str, found: os.stat_result) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.size, info.mtime = found.st_size, int(found.st_mtime)
        info.mode = stat.S_IMODE(found.st_mode)
        return info


def _writer(form: Format, sink: Any) -> _Writer:
    match form:
        case "zip":
            return _Zip(sink)
        case "tar":
            return _Tar(sink, "w")
        case "tar.gz":
            return _Tar(sink, "w:gz")
        case "tar.bz2":
            return _Tar(sink, "w:bz2")


#: (device, inode) of a file
Identity = tuple[int, int]


def identity(opened: int, name: str) -> Identity | None:
    """Which file has `name` in an open folder, None when there is none."""
    try:
        return identity_of(os.stat(name, dir_fd=opened, follow_symlinks=False))
    except FileNotFoundError:
        return None


def identity_of(found: os.stat_result) -> Identity:
    return found.st_dev, found.st_ino


def pack(
    packed: Packed,
    source: tuple[int, str],
    form: Format,
    check: Callable[[], None],
    old: Identity | None,
    target: int,
) -> None:
    """Pack `source`, (open folder, name), into the empty file `target`; counts in `packed`.

    `old` is an archive that this one will replace: it is not packed into itself. Raises
    `result.too_large` beyond ARCHIVE_ENTRIES and ARCHIVE_BYTES, `driver.busy`.
    """
    if old is not None and identity(*source) == old:
        raise DriverError("driver.params", "destination: it is the source")
    with blamed_on("source"):
        if not stat.S_ISDIR(os.stat(source[1], dir_fd=source[0], follow_symlinks=False).st_mode):
            os.close(open_regular(*source))
    sink = _Guarded(target)
    writer = _writer(form, sink)
    try:
        with blamed_on("source"):
            _fill(packed, writer, source, check, {old, identity_of(os.fstat(target))})
        writer.close()
    except BaseException:
        sink.drop()
        writer.abandon()
        raise


def _fill(
    packed: Packed,
    writer: _Writer,
    source: tuple[int, str],
    check: Callable[[], None],
    left_out: Collection[Identity | None],
) -> None:
    room = ARCHIVE_BYTES
    for place, folder, base in _sources(*source, check):
        found = os.stat(base, dir_fd=folder, follow_symlinks=False)
        if identity_of(found) in left_out:
            continue
        if stat.S_ISDIR(found.st_mode):
            writer.folder(place, found)
        elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            room -= found.st_size
            if room < 0:
                raise DriverError("result.too_large", f"there are more than {ARCHIVE_BYTES} bytes")
            with _Reading(open_regular(folder, base), check) as file:
                writer.file(place, os.fstat(file.fileno()), file)
        else:
            packed.skipped += 1
            continue
        packed.entries += 1
        if packed.entries > ARCHIVE_ENTRIES:
            raise DriverError("result.too_large", f"there are more than {ARCHIVE_ENTRIES} entries")


def _sources(opened: int, name: str, check: Callable[[], None]) -> Iterator[tuple[str, int, str]]:
    """(name in the archive, open folder, name in it) of a file, or of a folder and all below it.

    What lies in a root itself, ".", has no folder around it.
    """
    found = os.stat(name, dir_fd=opened, follow_symlinks=False)
    if name != ".":
        yield name, opened, name
    if not stat.S_ISDIR(found.st_mode):
        return
    inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened)
    try:
        for place, folders, names, here in walk(inner, check):
            for base in (*folders, *names):
                yield str(PurePosixPath(name) / place / base), here, base
    finally:
        os.close(inner)
