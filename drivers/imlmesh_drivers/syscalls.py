"""The few calls of Linux that Python has no function for: renameat2, syncfs and inotify.

The one rule: as thin as can be, with an OSError like those of `os`. The C library is loaded with
the first call.
"""

import functools
import os
from typing import Any

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2


@functools.cache
def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int, name: str | None = None) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def _rename(folder: int, old: str, target: int, new: str, flags: int) -> None:
    names = os.fsencode(old), os.fsencode(new)
    _checked(_libc().renameat2(folder, names[0], target, names[1], flags), new)


def rename(folder: int, old: str, target: int, new: str, *, replace: bool) -> None:
    """Rename within and between open folders; FileExistsError unless it may `replace`."""
    if replace:
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=target)
    else:
        _rename(folder, old, target, new, _RENAME_NOREPLACE)


def exchange(folder: int, one: str, target: int, other: str) -> None:
    """Let two existing names change places, in one go."""
    _rename(folder, one, target, other, _RENAME_EXCHANGE)


def sync_disk(descriptor: int) -> None:
    """Bring all that was written to the disk of an open file or folder to it."""
    _checked(_libc().syncfs(descriptor))


def inotify() -> int:
    """A new descriptor that tells what happens in watched folders; never blocks."""
    return _checked(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def watch(descriptor: int, path: str, mask: int) -> int:
    """Watch a file or folder for the events of `mask`; the number of the watch."""
    return _checked(_libc().inotify_add_watch(descriptor, os.fsencode(path), mask), path)
