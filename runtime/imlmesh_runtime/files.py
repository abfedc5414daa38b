"""Small files that must be whole, durable, and ours alone.

The one rule: a file appears complete under its name or not at all. Deliberately absent: what
the files hold, and anything that grows.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, TrustError

logger = logging.getLogger(__name__)


def read_file(path: Path, max_bytes: int = limits.KEY_FILE_BYTES) -> bytes:
    """A small file; TrustError `trust.file` when it is missing, unreadable or far too large."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise TrustError("trust.file", f"{path}: {exc.strerror}") from exc
    if len(data) > max_bytes:
        raise TrustError("trust.file", f"{path} is larger than {max_bytes} bytes")
    return data


def read_private(path: Path, *, strict: bool = False) -> bytes:
    """A private file after `check_private`."""
    data = read_file(path)
    check_private(path, strict=strict)
    return data


def check_private(path: Path, *, strict: bool) -> None:
    """Others must not have been able to read or write `path`, nor to put another in its place.

    It and its folder are ours or root's. Else TrustError `trust.mode` when `strict` (a service),
    and a warning when not (foreground).
    """
    try:
        file, folder = path.stat(), path.parent.stat()
    except OSError as exc:
        raise TrustError("trust.file", f"{path}: {exc.strerror}") from exc
    if file.st_uid not in (os.geteuid(), 0) or file.st_mode & 0o077:
        at, status, mend = path, file, "chmod 600"
    elif folder.st_uid not in (os.geteuid(), 0) or _takes_names(folder):
        at, status, mend = path.parent, folder, "chmod go-w"
    else:
        return
    if status.st_uid not in (os.geteuid(), 0):
        mend = f"sudo chown {os.geteuid()}"
    text = f"{at} has mode {status.st_mode & 0o777:o} and owner {status.st_uid}"
    if strict:
        raise TrustError("trust.mode", text, hint=f"{mend} {at}")
    logger.warning("trust.mode: %s; others could have read or changed %s", text, path.name)


def _takes_names(folder: os.stat_result) -> bool:
    """Whether others may rename what is in `folder`; a sticky one lets each rename their own."""
    return bool(folder.st_mode & 0o022) and not folder.st_mode & stat.S_ISVTX


def write_private(path: Path, data: bytes) -> None:
    """Write `path` with mode 0600, whole or not at all, and durably."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make names that were written or renamed in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else of ours changes what is in `folder` meanwhile, in this process or another."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` by name with mode 0600."""
    for name, data in files.items():
        write_private(folder / name, data)


@contextlib.contextmanager
def folder_at(place: Path) -> Iterator[Path]:
    """A folder to fill that becomes `place` at the end, or vanishes when filling it fails.

    InputError `folder.exists` when `place` holds something.
    """
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise InputError("folder.exists", f"{place} already holds something")
    made = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        yield made
        made.replace(place)
    except BaseException:
        shutil.rmtree(made)
        raise
    sync_folder(place.parent)
