"""The IML module `filesystem`: files beneath the roots of the node's policy.

The one rule: a reader sees the old file or the new one, never half of it; what an action reported
as written is on the disk. Links are listed and described, never followed (see files.py).
"""

import codecs
import contextlib
import fnmatch
import hashlib
import io
import os
import secrets
import stat
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Ge, Interval

from imlmesh_drivers.base import Call, Driver, ReadPath, WritePath, action
from imlmesh_drivers.files import (
    absolute,
    append,
    folder,
    open_regular,
    parent,
    readable_roots,
    split_root,
    write_all,
)
from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.limits import RESULT_BYTES

_CHUNK_BYTES = 1024 * 1024


class Text(TypedDict):
    path: str
    content: str
    size_bytes: int


class Written(TypedDict):
    path: str
    bytes_written: int


class Appended(TypedDict):
    path: str
    bytes_appended: int


class Copied(TypedDict):
    source: str
    destination: str


class FileInfo(TypedDict):
    path: str
    name: str
    #: "file", "directory", "symlink" or "other"
    type: str
    size_bytes: int
    created: str
    modified: str
    permissions: str
    is_symlink: bool
    suffix: str


class Listing(TypedDict):
    path: str
    entries: list[dict[str, Any]]
    count: int


class Checksum(TypedDict):
    path: str
    algorithm: str
    checksum: str


class Filesystem(Driver):
    """Read, write, list and check files beneath the node's roots."""

    module = "filesystem"
    version = "0.1.0"
    runs = "thread"

    @action(effect="pure", impact=0.1, permission="readonly")
    def read_file(
        self,
        path: ReadPath,
        encoding: str = "utf-8",
        start_line: Annotated[int, Ge(1)] | None = None,
        end_line: Annotated[int, Ge(1)] | None = None,
        max_bytes: Annotated[int, Interval(ge=1, le=10 * 1024 * 1024)] | None = None,
    ) -> Text:
        """Read a text file, or some of its lines, or at most its first bytes."""
        _check_encoding(encoding)
        full = absolute(self.site, path)
        with parent(full, readable_roots(self.site)) as (opened, name):
            file = os.fdopen(open_regular(opened, name, os.O_RDONLY), "rb")
        with file:
            size = os.fstat(file.fileno()).st_size
            limit = RESULT_BYTES if max_bytes is None else max_bytes
            if start_line is None and end_line is None:
                data = file.read(limit + 1)
            else:
                data = _read_lines(file, encoding, start_line or 1, end_line, limit)
                encoding = "utf-8"
            if len(data) > limit and max_bytes is None:
                raise DriverError(
                    "result.too_large", f"{path} is larger than {limit} bytes; give max_bytes"
                )
            return {"path": full, "content": _decode(data, limit, encoding), "size_bytes": size}

    @action(effect="idempotent", impact=0.3, permission="local_worker")
    def write_file(
        self,
        path: WritePath,
        content: str,
        encoding: str = "utf-8",
        create_dirs: bool = False,
        overwrite: bool = True,
    ) -> Written:
        """Write a text file whole: a reader sees the old content or the new, never a part."""
        data = _encode(content, encoding)
        full = absolute(self.site, path)
        with parent(full, self.site.write_roots, create=create_dirs) as (opened, name):
            mode = _replaceable(opened, name)
            if mode is not None and not overwrite:
                raise DriverError("driver.failed", f"{path} exists and overwrite is false")
            fill = partial(write_all, data=data)
            _write_atomic(opened, name, fill, mode=mode, overwrite=overwrite)
        return {"path": full, "bytes_written": len(data)}

    @action(effect="idempotent", impact=0.3, permission="local_worker")
    def copy_file(
        self, source: ReadPath, destination: WritePath, call: Call, overwrite: bool = False
    ) -> Copied:
        """Copy a file whole, with its permissions; a reader never sees a part of the copy."""
        origin, full = absolute(self.site, source), absolute(self.site, destination)
        with parent(origin, readable_roots(self.site)) as (held, origin_name):
            reading = open_regular(held, origin_name, os.O_RDONLY)
        with (
            os.fdopen(reading, "rb") as file,
            parent(full, self.site.write_roots) as (opened, name),
        ):
            there = _replaceable(opened, name)
            if there is not None and not overwrite:
                raise DriverError("driver.failed", f"{destination} exists and overwrite is false")
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)

            def fill(descriptor: int) -> None:
                while chunk := file.read(_CHUNK_BYTES):
                    call.check()
                    write_all(descriptor, chunk)

            _write_atomic(opened, name, fill, mode=mode, overwrite=overwrite)
        return {"source": origin, "destination": full}

    @action(effect="once", impact=0.5, permission="local_worker")
    def append_file(
        self, path: WritePath, content: str, encoding: str = "utf-8", newline: bool = True
    ) -> Appended:
        """Append text to a file, made when missing; `newline` ends it with a line end."""
        if newline and not content.endswith("\n"):
            content += "\n"
        data = _encode(content, encoding)
        full = absolute(self.site, path)
        append(full, self.site.write_roots, data)
        return {"path": full, "bytes_appended": len(data)}

    @action(effect="pure", impact=0.1, permission="readonly")
    def get_file_info(self, path: ReadPath) -> FileInfo:
        """Describe a file, folder or link; times are ISO 8601 in UTC, permissions octal."""
        full = absolute(self.site, path)
        root, parts = split_root(full, readable_roots(self.site))
        if parts:
            with parent(full, (root,)) as (opened, name):
                found = os.stat(name, dir_fd=opened, follow_symlinks=False)
        else:
            with folder(root, ()) as opened:
                found = os.fstat(opened)
        return {
            "path": full,
            "name": PurePosixPath(full).name,
            "type": _kind(found.st_mode),
            "size_bytes": found.st_size,
            # POSIX keeps no birth time: the last change of the inode is the nearest
            "created": _time(found.st_ctime),
            "modified": _time(found.st_mtime),
            "permissions": f"{stat.S_IMODE(found.st_mode):04o}",
            "is_symlink": stat.S_ISLNK(found.st_mode),
            "suffix": PurePosixPath(full).suffix,
        }

    @action(effect="pure", impact=0.1, permission="readonly")
    def list_directory(
        self,
        call: Call,
        path: ReadPath,
        recursive: bool = False,
        pattern: str | None = None,
        include_hidden: bool = False,
        max_results: Annotated[int, Interval(ge=1, le=10_000)] = 500,
    ) -> Listing:
        """List a folder by name; `pattern` is a shell pattern for names, links are not followed."""
        full = absolute(self.site, path)
        root, parts = split_root(full, readable_roots(self.site))
        entries: list[dict[str, Any]] = []
        with folder(root, parts) as opened:
            for place, folders, names, here in os.fwalk(".", dir_fd=opened, onerror=_raise):
                call.check()
                if not include_hidden:
                    folders[:] = [name for name in folders if not name.startswith(".")]
                    names = [name for name in names if not name.startswith(".")]
                folders.sort()
                for name in sorted((*folders, *names)):
                    if pattern is not None and not fnmatch.fnmatchcase(name, pattern):
                        continue
                    if len(entries) == max_results:
                        return {"path": full, "entries": entries, "count": len(entries)}
                    # what goes away while we look is left out
                    with contextlib.suppress(FileNotFoundError):
                        entries.append(_entry(here, name, str(PurePosixPath(full) / place / name)))
                if not recursive:
                    folders.clear()
        return {"path": full, "entries": entries, "count": len(entries)}

    @action(effect="pure", impact=0.1, permission="readonly")
    def compute_checksum(
        self,
        call: Call,
        path: ReadPath,
        algorithm: Literal["md5", "sha1", "sha256", "sha512"] = "sha256",
    ) -> Checksum:
        """Compute the checksum of a file, in hexadecimal."""
        full = absolute(self.site, path)
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with parent(full, readable_roots(self.site)) as (opened, name):
            file = os.fdopen(open_regular(opened, name, os.O_RDONLY), "rb", buffering=0)
        with file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                call.check()
        return {"path": full, "algorithm": algorithm, "checksum": digest.hexdigest()}


def _check_encoding(encoding: str) -> None:
    try:
        "".encode(encoding)
    except (LookupError, ValueError) as exc:
        raise DriverError("driver.params", f"encoding: {encoding[:80]!r} is not known") from exc


def _encode(content: str, encoding: str) -> bytes:
    _check_encoding(encoding)
    try:
        return content.encode(encoding)
    except UnicodeEncodeError as exc:
        raise DriverError("driver.params", f"content: cannot be written as {encoding}") from exc


def _decode(data: bytes, limit: int, encoding: str) -> str:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        # a character that the limit cut in two is left out, not an error
        return decoder.decode(data[:limit], final=len(data) <= limit)
    except UnicodeDecodeError as exc:
        raise DriverError(
            "driver.failed", f"the file is not {encoding} text: {exc.reason}"
        ) from exc


def _read_lines(
    file: io.BufferedReader, encoding: str, first: int, last: int | None, limit: int
) -> bytes:
    """The chosen lines as UTF-8; stops soon after `limit` bytes."""
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    found = bytearray()
    number = 1
    try:
        while (last is None or number <= last) and len(found) <= limit:
            # one line may be larger than memory: it is read in pieces
            piece = text.readline(_CHUNK_BYTES)
            if not piece:
                break
            if number >= first:
                found += piece.encode()
            number += piece.endswith("\n")
    except UnicodeDecodeError as exc:
        raise DriverError(
            "driver.failed", f"the file is not {encoding} text: {exc.reason}"
        ) from exc
    finally:
        text.detach()
    return bytes(found)


def _replaceable(opened: int, name: str) -> int | None:
    """The permissions of the regular file `name`, None when there is nothing of that name."""
    try:
        mode = os.stat(name, dir_fd=opened, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(mode):
        raise DriverDenied("policy.path", f"{name!r} is a symbolic link")
    if not stat.S_ISREG(mode):
        raise DriverError("driver.failed", f"{name!r} is not a regular file")
    return stat.S_IMODE(mode)


def _write_atomic(
    opened: int,
    name: str,
    fill: Callable[[int], None],
    *,
    mode: int | None,
    overwrite: bool,
) -> None:
    draft = f".imlmesh-{secrets.token_hex(8)}"
    descriptor = open_regular(opened, draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)
            fill(descriptor)
        finally:
            os.close(descriptor)
        if overwrite:
            os.rename(draft, name, src_dir_fd=opened, dst_dir_fd=opened)
        else:
            # unlike rename, link fails when somebody was faster
            os.link(draft, name, src_dir_fd=opened, dst_dir_fd=opened)
            os.unlink(draft, dir_fd=opened)
    except BaseException:
        os.unlink(draft, dir_fd=opened)
        raise
    entries = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=opened)
    try:
        os.fsync(entries)
    finally:
        os.close(entries)


def _entry(opened: int, name: str, path: str) -> dict[str, Any]:
    found = os.stat(name, dir_fd=opened, follow_symlinks=False)
    return {
        "name": name,
        "path": path,
        "type": _kind(found.st_mode),
        "size_bytes": found.st_size,
        "modified": _time(found.st_mtime),
    }


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    return kinds.get(stat.S_IFMT(mode), "other")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def _raise(error: OSError) -> None:
    raise error
