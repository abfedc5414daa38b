"""Opens files beneath a root and nowhere else.

The one rule: a path is walked component by component from an open root, no link is followed and
`..` is refused, so nothing can be swapped between check and use. Links *above* a root are the
policy's own business. Only regular files are opened, and never by waiting for a device or FIFO.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from imlmesh_drivers.base import Site
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverNotFound

_WALK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: O_NONBLOCK: opening a FIFO must not wait for its other end
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def absolute(site: Site, path: str) -> str:
    """The absolute form of `path`, relative ones from the node's files folder; `policy.path`."""
    if not path or "\0" in path:
        raise DriverDenied("policy.path", f"{path!r} is not a path")
    if ".." in PurePosixPath(path).parts:
        raise DriverDenied("policy.path", f"{path!r} contains '..'")
    return str(PurePosixPath(site.files) / path)


def readable_roots(site: Site) -> tuple[str, ...]:
    """Where a plan may read: what it may write it may read too."""
    return (*site.read_roots, *site.write_roots)


def split_root(path: str, roots: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The root that holds an absolute `path`, and the components below it; `policy.path`."""
    for root in sorted(roots, key=len, reverse=True):
        if PurePosixPath(path).is_relative_to(root):
            return root, PurePosixPath(path).relative_to(root).parts
    raise DriverDenied("policy.path", f"{path} is beneath no root of this node")


def _enter(folder: int, name: str, shown: str, *, create: bool) -> int:
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=folder)
    inner = os.open(name, _WALK, dir_fd=folder)
    mode = os.fstat(inner).st_mode
    if stat.S_ISDIR(mode):
        return inner
    os.close(inner)
    if stat.S_ISLNK(mode):
        raise DriverDenied("policy.path", f"{shown}: {name!r} is a symbolic link")
    raise DriverError("driver.failed", f"{shown}: {name!r} is not a folder")


@contextlib.contextmanager
def folder(root: str, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """An open descriptor of the folder `parts` below `root`, to open other things from.

    Raises `driver.not_found`, `policy.path` for a link on the way, `driver.failed` for a file.
    """
    shown = "/".join((root, *parts))
    with contextlib.ExitStack() as held:
        try:
            current = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            held.callback(os.close, current)
            for name in parts:
                current = _enter(current, name, shown, create=create)
                held.callback(os.close, current)
        except FileNotFoundError as exc:
            raise DriverNotFound("driver.not_found", f"{shown} does not exist") from exc
        yield current


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


def open_regular(opened: int, name: str, flags: int) -> int:
    """Open a regular file in a folder; a link is `policy.path`, anything else `driver.failed`."""
    try:
        descriptor = os.open(name, flags | _FILE, 0o666, dir_fd=opened)
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise DriverDenied("policy.path", f"{name!r} is a symbolic link") from exc
        if exc.errno == errno.ENXIO:  # a FIFO without a reader, or a socket
            raise DriverError("driver.failed", f"{name!r} is not a regular file") from exc
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DriverError("driver.failed", f"{name!r} is not a regular file")
    return descriptor


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything and bring it to the disk."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
    os.fsync(descriptor)


def append(path: str, roots: Sequence[str], data: bytes) -> None:
    """Append to a file, made when missing, in one write; a file of several names is refused."""
    with parent(path, roots) as (opened, name):
        descriptor = open_regular(opened, name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            if os.fstat(descriptor).st_nlink > 1:
                raise DriverDenied("policy.path", f"{path} has another name outside of our sight")
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


def append_beneath(root: str, path: str, data: bytes) -> None:
    """Append to the file at a relative `path` below one root."""
    append(absolute(Site(files=root), path), (root,), data)
