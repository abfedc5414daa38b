"""Plug-ins read anew while their node runs, when somebody asks for it.

The one rule: what does not load leaves what served before as it was, and nothing that runs is cut short.
What is read is offered at once; its process takes over when no call runs in the old one, and calls that
come meanwhile wait for it. Deliberately absent: plug-ins with actions that run in the node's own process,
where Python keeps the code that it has.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from imlmesh_node.executor import Executor
from imlmesh_node.guard import Guard
from imlmesh_node.offering import Offering, leave_out, read
from imlmesh_protocol.errors import MeshError

if TYPE_CHECKING:
    from imlmesh_drivers.apart import Apart

log = logging.getLogger(__name__)


class Reloading:
    """`tell` lets the mesh hear what is offered now."""

    def __init__(
        self, offering: Offering, executor: Executor, guard: Guard, tell: Callable[[], None]
    ) -> None:
        self._offering = offering
        self._executor = executor
        self._guard = guard
        self._tell = tell
        self._again = self._closed = False
        self._reading: asyncio.Task[None] | None = None
        #: plug-ins whose process is older than what was read last, and what replaces it
        self._old: set[str] = set()
        self._replacing: dict[str, asyncio.Task[None]] = {}

    def ask(self) -> None:
        """Read all plug-ins of the policy anew; asked meanwhile, once more after that."""
        if self._closed:
            return
        if not self._offering.plugins:
            log.info("the policy names no plug-in that could be read anew")
            return
        self._again = True
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read_all())

    async def close(self) -> None:
        """Begin nothing more."""
        self._closed = True
        begun = list(self._replacing.values())
        if self._reading is not None:
            begun.append(self._reading)
        for each in begun:
            each.cancel()
        await asyncio.gather(*begun, return_exceptions=True)

    async def _read_all(self) -> None:
        while self._again:
            self._again = False
            names = self._offering.plugins
            found = await asyncio.gather(*map(_read_aside, names))
            before = self._offering.manifest
            for name, plugin in zip(names, found, strict=True):
                self._take(name, plugin)
            if self._offering.manifest != before:
                self._tell()

    def _take(self, name: str, plugin: "Apart | MeshError") -> None:
        offered = name in self._offering.manifest.modules
        if isinstance(plugin, MeshError):
            if offered:
                text = "the module %s stays as it was, its new version does not load: %s"
                log.error(text, name, plugin, extra={"code": plugin.code})
            else:
                leave_out(name, plugin)
        elif offered and not (plugin.contained and name in self._offering.apart):
            text = "the module %s stays as it was, some of it runs in the node's own process: restart the node"
            log.warning(text, name)
        else:
            self._offering.put(name, plugin)
            self._guard.offer(self._offering.manifest)
            if plugin.contained:
                self._replace_soon(name)

    def _replace_soon(self, name: str) -> None:
        self._old.add(name)
        replacing = self._replacing.get(name)
        if replacing is None or replacing.done():
            replacing = asyncio.get_running_loop().create_task(self._replace(name))
            self._replacing[name] = replacing

    async def _replace(self, name: str) -> None:
        while name in self._old:
            self._old.remove(name)
            try:
                await self._executor.replace(name)
            except (MeshError, OSError) as exc:
                log.error("the new version of the module %s does not start: %s", name, exc)
            else:
                version = self._offering.manifest.modules[name].version
                log.info("the module %s was read anew: version %s", name, version)


async def _read_aside(name: str) -> "Apart | MeshError":
    """In a thread that nobody waits for at the end of the node."""
    from imlmesh_drivers.apart import read_apart

    loop = asyncio.get_running_loop()
    told: asyncio.Future[Apart | MeshError] = loop.create_future()

    def tell(plugin: "Apart | MeshError") -> None:
        if not told.done():
            told.set_result(plugin)

    def work() -> None:
        plugin = read(name, read_apart)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, plugin)

    threading.Thread(target=work, name=f"read-{name}", daemon=True).start()
    return await told
