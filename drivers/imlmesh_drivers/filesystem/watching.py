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
from imlmesh_drivers.filesystem.tree import shown

# <sys/inotify.h>
_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200
# the last: the watch itself has ended, after its folder
_DELETE_SELF, _MOVE_SELF, _IGNORED = 0x400, 0x800, 0x8000
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


class Watch:
    """Hears what happens in one folder from now on, until it is closed."""

    def __init__(self, opened: int, only: str | None) -> None:
        """`opened` may be closed after this, and has to be, or its own end would not be told.

        With `only`, events of that name alone count, and of the folder itself.
        """
        self._only = only
        self._descriptor = syscalls.inotify()
        try:
            # the folder itself: a descriptor that only names it is found below /proc
            syscalls.watch(self._descriptor, f"/proc/self/fd/{opened}", _MASK)
            self._known = set(names_in(opened))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    async def first(
        self, wanted: frozenset[str], timeout_s: float
    ) -> tuple[str, str | None] | None:
        """(event, name) of the first wanted event, None when none came in time."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._descriptor, readable.set)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await readable.wait()
                    readable.clear()
                    for event, name in self._take():
                        if event in wanted:
                            return event, name
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(self._descriptor)

    def _take(self) -> Iterator[tuple[str, str | None]]:
        for mask, name in parse(os.read(self._descriptor, _READ_BYTES)):
            if mask & _IGNORED or is_draft(name) or (name and self._only not in (None, name)):
                continue
            event = meaning(mask, name in self._known)
            self._known.add(name)
            yield event, shown(name) if name else self._only
