"""The applications that plans opened and that still run.

The one rule: each is under a guardian, so it ends with the node, however the node ends. What they
print goes nowhere.
"""

import asyncio
import os
from collections.abc import Collection, Mapping, Sequence

from imlmesh_drivers.os_exec.command import source_of
from imlmesh_drivers.os_exec.guarded import APPLICATION, Guarded, Guardians
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import APPLICATIONS_OPEN


class Applications:
    """Opened applications by the process id of each; used on the loop's thread, but for `pids`."""

    def __init__(self, guardians: Guardians) -> None:
        self._guardians = guardians
        self._open: dict[int, tuple[str, Guarded]] = {}
        self._starting = 0
        self._following: set[asyncio.Task[None]] = set()

    async def open(self, name: str, argv: Sequence[str], env: Mapping[str, str], cwd: int) -> int:
        """Start one; its process id. `driver.busy` when as many as may be are open."""
        if len(self._open) + self._starting >= APPLICATIONS_OPEN:
            text = f"application: {APPLICATIONS_OPEN} are open; close one first"
            raise DriverError("driver.busy", text)
        self._starting += 1
        sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            with source_of(None) as source:
                descriptors = source, sink, sink
                guarded = await self._guardians.start(argv, env, APPLICATION, descriptors, cwd)
        finally:
            os.close(sink)
            self._starting -= 1
        self._open[guarded.pid] = name, guarded
        following = asyncio.create_task(self._follow(guarded))
        self._following.add(following)
        following.add_done_callback(self._following.discard)
        return guarded.pid

    def named(self, name: str) -> dict[int, Guarded]:
        """Those that were opened under a name."""
        return {pid: guarded for pid, (given, guarded) in self._open.items() if given == name}

    def pids(self) -> Collection[int]:
        return tuple(self._open)

    def close(self) -> None:
        """End all of them; guardians need nobody for that."""
        for _, guarded in self._open.values():
            guarded.close()

    async def _follow(self, guarded: Guarded) -> None:
        try:
            await guarded.ended()
        finally:
            del self._open[guarded.pid]
            guarded.close()
