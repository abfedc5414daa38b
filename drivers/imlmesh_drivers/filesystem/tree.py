"""What is in a folder, and below it: described, listed, searched, removed.

The one rule: a walk goes from open folder to open folder and follows no link. Deliberately absent:
file contents, but for the lines that a search looks through.
"""

import contextlib
import errno
import fnmatch
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from imlmesh_drivers.files import open_regular
from imlmesh_drivers.filesystem.drafts import draft_name, is_draft, keep_entries, sweep
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import (
    NAME_BYTES,
    SEARCHED_LINE_CHARS,
    SEARCHED_TEXT_CHARS,
    TREE_ENTRIES,
)

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_BINARY_BYTES = 8 * 1024  # a NUL among the first of them: no text


def kind_of(mode: int) -> str:
    """ "file", "directory", "symlink" or "other"."""
    return _KINDS.get(stat.S_IFMT(mode), "other")


def iso(seconds: float) -> str:
    """A time of a file system as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def shown(name: str) -> str:
    """A name as text: what is not UTF-8 on the disk cannot travel, and is replaced."""
    return os.fsencode(name).decode(errors="replace")


def entry(opened: int, name: str, path: str) -> dict[str, Any]:
    """What a listing says of one name in a folder."""
    found = os.stat(name, dir_fd=opened, follow_symlinks=False)
    return {
        "name": shown(name),
        "path": shown(path),
        "type": kind_of(found.st_mode),
        "size_bytes": found.st_size,
        "modified": iso(found.st_mtime),
    }


Walk = Iterator[tuple[str, list[str], list[str], int]]


def walk(opened: int, check: Callable[[], None]) -> Walk:
    """(place, folders, other names, open folder) of a folder and all below it, sorted.

    The caller may take folders out of the list. `result.too_large` after TREE_ENTRIES names.
    """
    seen = 0
    for place, folders, names, here in os.fwalk(".", dir_fd=opened, onerror=_raise):
        check()
        seen += len(folders) + len(names)
        if seen > TREE_ENTRIES:
            raise DriverError("result.too_large", f"there are more than {TREE_ENTRIES} entries")
        folders[:] = sorted(name for name in folders if not is_draft(name))
        yield place, folders, sorted(name for name in names if not is_draft(name)), here


def _raise(error: OSError) -> None:
    # what goes away while we look is left out
    if not isinstance(error, FileNotFoundError):
        raise error


def listing(
    opened: int,
    path: str,
    *,
    recursive: bool,
    wanted: Callable[[str], bool],
    hidden: bool,
    check: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """The entries of a folder, and with `recursive` those below it, whose names are wanted."""
    for place, folders, names, here in walk(opened, check):
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = [name for name in names if not name.startswith(".")]
        for name in sorted((*folders, *names)):
            if wanted(name):
                with contextlib.suppress(FileNotFoundError):
                    yield entry(here, name, str(PurePosixPath(path) / place / name))
        if not recursive:
            folders.clear()


def shell_pattern(pattern: str | None, *, case_sensitive: bool = True) -> Callable[[str], bool]:
    """Whether a name fits a shell pattern such as *.txt; every name fits None."""
    if pattern is None:
        return lambda name: True
    if len(pattern) > NAME_BYTES:
        raise DriverError("driver.params", f"no name has more than {NAME_BYTES} characters")
    flags = 0 if case_sensitive else re.IGNORECASE
    fits = re.compile(fnmatch.translate(pattern), flags)
    return lambda name: fits.match(name) is not None


def search(
    opened: int,
    path: str,
    wanted: Callable[[str], bool],
    content: re.Pattern[str] | None,
    check: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """Files below a folder whose name is wanted and, if asked for, a line of which matches."""
    for place, _folders, names, here in walk(opened, check):
        for name in filter(wanted, names):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                found = entry(here, name, str(PurePosixPath(path) / place / name))
                if found["type"] != "file":
                    continue
                if content is None:
                    yield found
                elif (hit := _first_hit(here, name, content, check)) is not None:
                    yield {**found, "line": hit[0], "text": hit[1]}


def _first_hit(
    opened: int, name: str, content: re.Pattern[str], check: Callable[[], None]
) -> tuple[int, str] | None:
    try:
        descriptor = open_regular(opened, name)
    except DriverError:
        # a link that came meanwhile, or a file of several names: not ours to read
        return None
    with os.fdopen(descriptor, "rb") as file:
        if b"\0" in file.read(_BINARY_BYTES):
            return None
        file.seek(0)
        number = 0
        while line := file.readline(SEARCHED_LINE_CHARS):
            number += 1
            text = line.decode(errors="replace").rstrip("\r\n")
            if content.search(text):
                return number, text[:SEARCHED_TEXT_CHARS]
            while line and not line.endswith(b"\n"):
                line = file.readline(SEARCHED_LINE_CHARS)
            if number % 1_000 == 0:
                check()
    return None


def remove(opened: int, name: str, *, recursive: bool, check: Callable[[], None]) -> None:
    """Remove a file, a link, an empty folder, or with `recursive` a folder with all in it.

    A folder loses its name first, in one rename, so that nobody sees half of it; before that it
    is walked, so that what cannot be removed is known: `driver.denied`, `driver.failed`.
    """
    found = os.stat(name, dir_fd=opened, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=opened)
        keep_entries(opened)
        return
    if not recursive:
        try:
            os.rmdir(name, dir_fd=opened)
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            text = f"the folder {name!r} is not empty and recursive is false"
            raise DriverError("driver.failed", text) from exc
        keep_entries(opened)
        return
    _check_removable(opened, name, found.st_dev, check)
    sweep(opened)
    draft = draft_name()
    os.rename(name, draft, src_dir_fd=opened, dst_dir_fd=opened)
    keep_entries(opened)
    try:
        shutil.rmtree(draft, dir_fd=opened)
    except OSError as exc:
        text = f"{name!r} is gone, but {draft!r} beside it holds what could not be removed: {exc}"
        raise DriverError("driver.failed", text) from exc


def _check_removable(opened: int, name: str, device: int, check: Callable[[], None]) -> None:
    inner = os.open(
        name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened
    )
    try:
        for place, _, _, here in walk(inner, check):
            shown = PurePosixPath(name) / place
            if os.fstat(here).st_dev != device:
                raise DriverError("driver.failed", f"another disk is mounted at '{shown}'")
            if not os.access(".", os.W_OK | os.X_OK, dir_fd=here, effective_ids=True):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(shown))
    finally:
        os.close(inner)
