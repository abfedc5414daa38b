"""The applications that plans opened and that still run.

The one rule: each is under a guardian, so it ends with the node, however the node ends. What they
print goes nowhere.
"""

import asyncio
import os
from collections.abc import Collection
from dataclasses import dataclass

from imlmesh_drivers.files import blamed_on
from imlmesh_drivers.os_exec.command import source_of
from imlmesh_drivers.os_exec.guarded import END_S, Guarded, Guardians, Launch
from imlmesh_protocol.errors import DriverError, DriverTimeout
from imlmesh_protocol.limits import APPLICATIONS_OPEN


@dataclass(frozen=True, slots=True)
class Application:
    """An open one, by the name of its rule and by its path; `following` is done when it is gone."""

    names: frozenset[str]
    guarded: Guarded
    following: asyncio.Task[None]


class Applications:
    """Opened applications by the process id of each; used on the loop's thread, but for `pids`."""

    def __init__(self, guardians: Guardians) -> None:
        self._guardians = guardians
        self._open: dict[int, Application] = {}
        self._starting = 0

    async def open(self, name: str, launch: Launch) -> int:
        """Start one; its process id. `driver.busy` when as many as may be are open."""
        if len(self._open) + self._starting >= APPLICATIONS_OPEN:
            text = f"application: {APPLICATIONS_OPEN} are open; close one first"
            raise DriverError("driver.busy", text)
        self._starting += 1
        sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with source_of(None) as source, blamed_on("application"):
                guarded = await self._guardians.start(launch, (source, sink, sink))
        finally:
            os.close(sink)
            self._starting -= 1
        names = frozenset({name, launch.argv[0]})
        following = asyncio.create_task(self._follow(guarded))
        self._open[guarded.pid] = Application(names, guarded, following)
        return guarded.pid

    async def end(self, name: str, *, force: bool) -> list[int]:
        """End all that were opened under a name or path, with what they started; their ids.

        Raises `driver.timeout` when the kernel holds on to one.
        """
        ending = {pid: opened for pid, opened in self._open.items() if name in opened.names}
        for opened in ending.values():
            opened.guarded.end(force=force)
        if ending:
            await asyncio.wait({opened.following for opened in ending.values()}, timeout=END_S)
        if self._open.keys() & ending.keys():
            raise DriverTimeout(
                "driver.timeout", f"{name} cannot be killed: it hangs in the kernel"
            )
        return sorted(ending)

    def pids(self) -> Collection[int]:
        return tuple(self._open)

    def close(self) -> None:
        """End all of them; guardians need nobody for that."""
        for opened in self._open.values():
            opened.guarded.close()

    async def _follow(self, guarded: Guarded) -> None:
        try:
            await guarded.ended()
        finally:
            del self._open[guarded.pid]
            guarded.close()
