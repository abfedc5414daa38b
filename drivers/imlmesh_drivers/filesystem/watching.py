"""Waits until something happens to a file, or in a folder.

The one rule: what is watched is the open folder itself, so nobody can put another in its place.
Deliberately absent: folders below a watched one, and drafts, which nobody else should see.
"""

import asyncio
import os
import struct
from collections.abc import Iterator

from imlmesh_drivers import syscalls
from imlmesh_drivers.files import names_in
from imlmesh_drivers.filesystem.drafts import is_draft

# <sys/inotify.h>
_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _OVERFLOW = 0x400, 0x800, 0x4000
_MASK = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_HEADER = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

EVENTS = frozenset({"created", "modified", "deleted", "moved"})


def parse(data: bytes) -> Iterator[tuple[int, str]]:
    """(mask, name) of each event in what an inotify descriptor gave."""
    place = 0
    while place < len(data):
        _, mask, _, size = _HEADER.unpack_from(data, place)
        place += _HEADER.size
        yield mask, os.fsdecode(data[place : place + size].rstrip(b"\0"))
        place += size


def meaning(mask: int, is_known: bool) -> str:
    """What one event is called; a name that was there before is modified, not created.

    Who replaces a file whole moves a new one onto its name.
    """
    if mask & _MOVED_TO:
        return "modified" if is_known else "created"
    if mask & _CREATE:
        return "created"
    if mask & (_DELETE | _DELETE_SELF):
        return "deleted"
    if mask & (_MOVED_FROM | _MOVE_SELF):
        return "moved"
    # after an overflow nobody knows what else happened
    return "modified"


async def first(
    opened: int, only: str | None, wanted: frozenset[str], timeout_s: float
) -> tuple[str, str | None] | None:
    """(event, name) of the first wanted event in an open folder, None when none came in time.

    With `only`, events of that name alone, and of the folder itself.
    """
    descriptor = syscalls.inotify()
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        # the folder itself: a descriptor that only names it is found below /proc
        syscalls.watch(descriptor, f"/proc/self/fd/{opened}", _MASK)
        known = set(names_in(opened))
        loop.add_reader(descriptor, readable.set)
        async with asyncio.timeout(timeout_s):
            while True:
                await readable.wait()
                readable.clear()
                for mask, name in parse(os.read(descriptor, _READ_BYTES)):
                    if is_draft(name) or (name and only not in (None, name)):
                        continue
                    event = meaning(mask, name in known)
                    known.add(name)
                    if event in wanted:
                        return event, name or only
    except TimeoutError:
        return None
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
