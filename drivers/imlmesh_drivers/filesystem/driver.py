"""The actions of `filesystem`: params in, a result out; how it is done stands beside this file.

The one rule: a path is opened where it is first used and never looked up again. Regular expressions
and archives come from strangers, so what reads them runs in the child, which can be killed.
"""

import hashlib
import itertools
import os
import re
import stat
import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from imlmesh_drivers.base import Driver, ReadPath, Site, WritePath, action
from imlmesh_drivers.call import Call
from imlmesh_drivers.files import absolute, append, blamed_on, folder, split_root, write_all
from imlmesh_drivers.filesystem import drafts, results, text, tree, watching
from imlmesh_drivers.filesystem.places import Places
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import RESULT_BYTES, RESULT_CHUNK_BYTES
from imlmesh_protocol.manifest import Undo

_CHUNK_BYTES = 1024 * 1024
#: of a search's result: whoever sends it adds its own
_FOUND_CHARS = RESULT_CHUNK_BYTES * 3 // 4


class Filesystem(Driver):
    """Read, write, find, pack and watch files beneath the node's roots."""

    module = "filesystem"
    version = "0.2.0"
    runs = "thread"
    platforms = ("linux",)  # O_PATH, renameat2, inotify

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._at = Places(site)
        #: an append that fails is taken back, so the next one waits for its end
        self._appending = threading.Lock()
        #: two archives that fill one folder would undo each other's moves
        self._unpacking = threading.Lock()

    @action(effect="pure", impact=0.1, permission="readonly")
    def read_file(
        self,
        path: ReadPath,
        encoding: str = "utf-8",
        start_line: Annotated[int, Ge(1)] | None = None,
        end_line: Annotated[int, Ge(1)] | None = None,
        max_bytes: Annotated[int, Interval(ge=1, le=10 * 1024 * 1024)] | None = None,
    ) -> results.Text:
        """Read a text file, or some of its lines, or at most its first bytes."""
        text.check_encoding(encoding)
        with self._at.reading("path", path) as (full, file):
            size = os.fstat(file.fileno()).st_size
            limit = RESULT_BYTES if max_bytes is None else max_bytes
            if start_line is None and end_line is None:
                data = file.read(limit + 1)
            else:
                data = text.read_lines(file, encoding, start_line or 1, end_line, limit)
                encoding = "utf-8"
        with blamed_on("path"):
            if len(data) > limit and max_bytes is None:
                why = f"{path} is larger than {limit} bytes; give max_bytes"
                raise DriverError("result.too_large", why)
            content = text.decode(data, limit, encoding)
        return {"path": full, "content": content, "size_bytes": size}

    @action(effect="idempotent", impact=0.3, permission="local_worker")
    def write_file(
        self,
        path: WritePath,
        content: str,
        encoding: str = "utf-8",
        create_dirs: bool = False,
        overwrite: bool = True,
    ) -> results.Written:
        """Write a text file whole: a reader sees the old content or the new, never a part."""
        data = b"".join(text.encode(content, encoding))
        with self._at.named("path", path, create=create_dirs) as (full, opened, name):
            place = "path", opened, name
            drafts.write_whole(place, partial(write_all, data=data), overwrite=overwrite)
        return {"path": full, "bytes_written": len(data)}

    @action(effect="once", impact=0.5, permission="local_worker")
    def append_file(
        self, path: WritePath, content: str, encoding: str = "utf-8", newline: bool = True
    ) -> results.Appended:
        """Append text to a file, made when missing; `newline` ends it with a line end."""
        if newline and not content.endswith("\n"):
            content += "\n"
        mark, data = text.encode(content, encoding)
        with blamed_on("path"), self._appending:
            full = absolute(self.site, path)
            appended = append(full, self.site.write_roots, data, mark)
        return {"path": full, "bytes_appended": appended}

    @action(effect="idempotent", impact=0.3, permission="local_worker")
    def copy_file(
        self, source: ReadPath, destination: WritePath, call: Call, overwrite: bool = False
    ) -> results.Transferred:
        """Copy a file whole, with its permissions; a reader never sees a part of the copy."""
        with (
            self._at.reading("source", source) as (origin, file),
            self._at.named("destination", destination) as (full, opened, name),
        ):
            fill = drafts.copy_into(file.fileno(), call.check)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            place = "destination", opened, name
            drafts.write_whole(place, fill, overwrite=overwrite, mode=mode)
        return {"source": origin, "destination": full}

    @action(
        effect="once",
        impact=0.5,
        permission="local_worker",
        undo=Undo(
            "move_file",
            {"source": "{{result.destination}}", "destination": "{{result.source}}"},
        ),
    )
    def move_file(
        self, source: WritePath, destination: WritePath, call: Call, overwrite: bool = False
    ) -> results.Transferred:
        """Move or rename a file or folder; `overwrite` replaces a file by a file.

        The undo moves it back; what `overwrite` replaced stays lost.
        """
        with (
            self._at.found("source", source, write=True) as (origin, held, old_name),
            self._at.named("destination", destination) as (full, opened, name),
        ):
            self._at.check_holds_no_root("source", origin)
            places = ("source", held, old_name), ("destination", opened, name)
            drafts.move(*places, overwrite=overwrite, check=call.check)
        return {"source": origin, "destination": full}

    @action(effect="once", impact=0.75, permission="power_user")
    def delete_file(self, path: WritePath, call: Call, recursive: bool = False) -> results.Deleted:
        """Delete a file, a link or an empty folder; with `recursive` a folder with all in it."""
        with self._at.found("path", path, write=True) as (full, opened, name):
            self._at.check_holds_no_root("path", full)
            with blamed_on("path"):
                tree.remove(opened, name, recursive=recursive, check=call.check)
        return {"deleted": full}

    @action(effect="idempotent", impact=0.3, permission="local_worker")
    def create_directory(
        self, path: WritePath, parents: bool = True, exist_ok: bool = True
    ) -> results.Created:
        """Make a folder, with `parents` those above it too; `created` is false if it was there."""
        with blamed_on("path"):
            full = absolute(self.site, path)
            root, parts = split_root(full, self.site.write_roots)
            with folder(root, parts[:-1], create=parents) as opened:
                created = bool(parts)
                try:
                    os.mkdir(parts[-1] if parts else ".", dir_fd=opened)
                except FileExistsError as exc:
                    created = False
                    if not exist_ok:
                        raise DriverError("driver.failed", f"{path} exists") from exc
                    with folder(root, parts):  # a folder is all that it may be
                        pass
                drafts.keep_entries(opened)
        return {"path": full, "created": created}

    @action(effect="pure", impact=0.1, permission="readonly")
    def list_directory(
        self,
        call: Call,
        path: ReadPath,
        recursive: bool = False,
        pattern: str | None = None,
        include_hidden: bool = False,
        max_results: Annotated[int, Interval(ge=1, le=10_000)] = 500,
    ) -> results.Listing:
        """List a folder by name; `pattern` is a shell pattern for names, links are not followed."""
        with blamed_on("pattern"):
            wanted = tree.shell_pattern(pattern)
        with self._at.folder("path", path) as (full, opened):
            found = tree.listing(
                opened,
                full,
                recursive=recursive,
                wanted=wanted,
                hidden=include_hidden,
                check=call.check,
            )
            entries = list(itertools.islice(found, max_results))
            more = next(found, None) is not None
        listing: results.Listing = {"path": full, "entries": entries, "count": len(entries)}
        if more:
            listing["truncated"] = True
        return listing

    @action(effect="pure", impact=0.1, permission="readonly", runs="process")
    def search_files(
        self,
        call: Call,
        directory: ReadPath,
        pattern: str,
        content_pattern: str | None = None,
        case_sensitive: bool = False,
        max_results: Annotated[int, Interval(ge=1, le=1_000)] = 100,
    ) -> results.Found:
        """Find files by a shell pattern for names and a regular expression for a line of them."""
        flags = re.NOFLAG if case_sensitive else re.IGNORECASE
        try:
            content = None if content_pattern is None else re.compile(content_pattern, flags)
        except (re.error, OverflowError, RecursionError) as exc:
            raise DriverError("driver.params", f"content_pattern: {exc}") from exc
        with blamed_on("pattern"):
            wanted = tree.shell_pattern(pattern, case_sensitive=case_sensitive)
        matches: list[dict[str, Any]] = []
        room = _FOUND_CHARS
        with self._at.folder("directory", directory) as (full, opened):
            for match in tree.search(opened, full, wanted, content, call.check):
                room -= len(repr(match).encode())
                if len(matches) == max_results or room < 0:
                    return {"matches": matches, "count": len(matches), "truncated": True}
                matches.append(match)
        return {"matches": matches, "count": len(matches)}

    @action(effect="pure", impact=0.1, permission="readonly")
    def get_file_info(self, path: ReadPath) -> results.FileInfo:
        """Describe a file, folder or link; times are ISO 8601 in UTC, permissions octal."""
        with self._at.found("path", path) as (full, opened, name):
            found = os.stat(name, dir_fd=opened, follow_symlinks=False)
        return {
            "path": full,
            "name": PurePosixPath(full).name,
            "type": tree.kind_of(found.st_mode),
            "size_bytes": found.st_size,
            # POSIX keeps no birth time: the last change of the inode is the nearest
            "created": tree.iso(found.st_ctime),
            "modified": tree.iso(found.st_mtime),
            "permissions": f"{stat.S_IMODE(found.st_mode):04o}",
            "is_symlink": stat.S_ISLNK(found.st_mode),
            "suffix": PurePosixPath(full).suffix,
        }

    @action(effect="idempotent", impact=0.3, permission="local_worker", runs="process")
    def create_archive(
        self, call: Call, source: ReadPath, destination: WritePath, format: results.Format = "zip"
    ) -> results.Archive:
        """Pack a file or folder into an archive that appears whole; links are left out."""
        # the child alone needs what reads and writes archives
        from imlmesh_drivers.filesystem import packing

        with (
            self._at.found("source", source) as (origin, held, base),
            self._at.named("destination", destination) as (full, opened, name),
        ):
            packed = packing.Packed()
            old = packing.identity(opened, name)
            fill = partial(packing.pack, packed, (held, base), format, call.check, old)
            drafts.write_whole(("destination", opened, name), fill, overwrite=True)
        return {
            "archive": full,
            "source": origin,
            "entries": packed.entries,
            "skipped": packed.skipped,
        }

    @action(effect="once", impact=0.5, permission="local_worker", runs="process")
    def extract_archive(
        self, call: Call, source: ReadPath, destination: WritePath, overwrite: bool = False
    ) -> results.Unpacked:
        """Unpack an archive into a folder, made when missing: all of it, or nothing."""
        from imlmesh_drivers.filesystem import unpacking

        with blamed_on("destination"):
            full = absolute(self.site, destination)
            root, parts = split_root(full, self.site.write_roots)
        with self._at.reading("source", source) as (origin, file), self._unpacking:
            files = unpacking.unpack_into(file, root, parts, overwrite=overwrite, check=call.check)
        return {"source": origin, "destination": full, "files": files}

    @action(effect="pure", impact=0.1, permission="readonly")
    def compute_checksum(
        self,
        call: Call,
        path: ReadPath,
        algorithm: Literal["md5", "sha1", "sha256", "sha512"] = "sha256",
    ) -> results.Checksum:
        """Compute the checksum of a file, in hexadecimal."""
        digest = hashlib.new(algorithm, usedforsecurity=False)
        with self._at.reading("path", path) as (full, file):
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                call.check()
        return {"path": full, "algorithm": algorithm, "checksum": digest.hexdigest()}

    @action(effect="idempotent", impact=0.3, permission="local_worker", runs="loop")
    async def watch_path(
        self,
        path: ReadPath,
        events: list[Literal["created", "modified", "deleted", "moved"]] | None = None,
        timeout: Annotated[int, Interval(ge=1, le=3600)] = 60,  # noqa: ASYNC109 - IML's own name
    ) -> results.Watched:
        """Wait for the first event of a file, one that is still missing, or a folder's entries."""
        if events == []:
            raise DriverError("driver.params", "events: there is none to wait for")
        wanted = watching.EVENTS if events is None else frozenset(events)
        with self._at.watched("path", path) as (full, opened, only):
            watch = watching.Watch(opened, only)
        try:
            happened = await watch.first(wanted, timeout)
        finally:
            watch.close()
        event, name = happened or (None, None)
        return {
            "path": full,
            "event": event,
            "timeout": happened is None,
            "detected_at": happened and datetime.now(UTC).isoformat(timespec="milliseconds"),
            "name": name,
        }
