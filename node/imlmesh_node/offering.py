"""What a node offers: the built-in modules that its policy names, and the plug-ins as they were read last.

The one rule: a plug-in is read in a process of its own, and what does not load or does not work here costs
the node that module alone. Deliberately absent: when plug-ins are read again; `reloading` knows that.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from imlmesh_drivers.foreign import coded
from imlmesh_drivers.registry import builtin_modules, check_platform, shipped_manifest
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.manifest import Manifest, Module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from imlmesh_drivers.apart import Apart

log = logging.getLogger(__name__)


class Offering:
    """`manifest` is what is offered now; `apart` are the plug-ins in it that nobody imports here."""

    def __init__(self, modules: "Sequence[str]") -> None:
        """Reads `modules`, those of the policy; what is left out is logged."""
        builtin = builtin_modules()
        #: those of the policy that are not ours
        self.plugins = tuple(name for name in modules if name not in builtin)
        self.apart: dict[str, Apart] = {}
        self.manifest = Manifest({})
        for name in modules:
            if name in builtin:
                self._put_builtin(name)
        if self.plugins:
            # most nodes have none
            from imlmesh_drivers.apart import known_apart

            # side by side: several that hang cost no more time than one
            with ThreadPoolExecutor(len(self.plugins)) as pool:
                found = pool.map(lambda name: read(name, known_apart), self.plugins)
                for name, plugin in zip(self.plugins, found, strict=True):
                    if isinstance(plugin, MeshError):
                        leave_out(name, plugin)
                    else:
                        self.put(name, plugin)

    def put(self, name: str, plugin: "Apart") -> None:
        """Offer a plug-in as it was read."""
        if plugin.contained:
            self.apart[name] = plugin
        self._add(name, plugin.module)

    def _put_builtin(self, name: str) -> None:
        try:
            check_platform(name)
        except MeshError as exc:
            leave_out(name, exc)
        else:
            self._add(name, shipped_manifest().modules[name])

    def _add(self, name: str, module: Module) -> None:
        self.manifest = Manifest({**self.manifest.modules, name: module})


def read(name: str, reader: "Callable[[str], Apart]") -> "Apart | MeshError":
    """A plug-in, or why it is none."""
    try:
        return reader(name)
    except Exception as exc:
        return coded(exc)


def leave_out(name: str, why: MeshError) -> None:
    """Log it."""
    log.error("without the module %s: %s", name, why, extra={"code": why.code})
