"""Which drivers there are, and what each can do.

The one rule: a driver is imported when its class is asked for; the shipped manifest is read from
JSON, so that plans are checked without any hardware library.
"""

import functools
import importlib
import json
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from importlib.resources import files
from typing import Any

from imlmesh_drivers.base import Driver
from imlmesh_drivers.foreign import FOREIGN_ERRORS
from imlmesh_drivers.invoke import bind, params_schema
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module, manifest_from_wire

__all__ = [
    "GROUP",
    "bind",
    "builtin_modules",
    "check_platform",
    "driver_class",
    "module_of",
    "modules",
    "shipped_manifest",
]

#: entry-point group of third parties: name = IML module, value = "package.module:Class"
GROUP = "imlmesh.drivers"

_BUILTIN = {
    "fake": "imlmesh_drivers.fake:Fake",
    "filesystem": "imlmesh_drivers.filesystem:Filesystem",
    "iot": "imlmesh_drivers.iot:Iot",
    "os_exec": "imlmesh_drivers.os_exec:OsExec",
}


def builtin_modules() -> tuple[str, ...]:
    """The IML modules that this distribution serves, sorted."""
    return tuple(sorted(_BUILTIN))


def modules() -> tuple[str, ...]:
    """The built-in modules and those that installed plug-ins offer, sorted."""
    return tuple(sorted({*_BUILTIN, *(point.name for point in entry_points(group=GROUP))}))


@functools.cache
def driver_class(module: str) -> type[Driver]:
    """The driver of a module; a built-in one cannot be replaced.

    Raises `module.unknown`, `driver.missing` when it cannot be imported, `driver.platform`.
    """
    target = _BUILTIN.get(module)
    if target is None:
        target = next((p.value for p in entry_points(group=GROUP, name=module)), None)
    if target is None:
        raise DriverError("module.unknown", f"no driver serves the module {module!r}")
    source, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(source), name)
    except FOREIGN_ERRORS as exc:  # what a plug-in raises while it is imported is its own affair
        raise DriverError(
            "driver.missing", f"the driver of {module!r} does not load: {type(exc).__name__}: {exc}"
        ) from exc
    if not (isinstance(found, type) and issubclass(found, Driver) and found.module == module):
        raise DriverError("driver.missing", f"{target} is not a driver of the module {module!r}")
    _check(module, found.platforms)
    return found


def check_platform(module: str) -> None:
    """`driver.platform` when a built-in module does not work on this system; imports no driver."""
    _check(module, _shipped(module)["platforms"])


def _check(module: str, platforms: Sequence[str]) -> None:
    if platforms and sys.platform not in platforms:
        text = (
            f"the driver of {module!r} works on {', '.join(platforms)}, and this is {sys.platform}"
        )
        raise DriverError("driver.platform", text)


def module_of(driver: type[Driver]) -> Module:
    """What a driver declares, as the manifest says it."""
    return Module(
        version=driver.version,
        description=(driver.__doc__ or "").strip().partition("\n")[0],
        actions={
            name: ActionSpec(
                module=driver.module,
                action=name,
                params=params_schema(driver, name),
                returns=declared.returns,
                effect=declared.effect,
                permission=declared.permission,
                impact=declared.impact,
                description=declared.description,
                claims=declared.claims,
                vouch=declared.vouch,
                undo=declared.undo,
            )
            for name, declared in driver.actions.items()
        },
    )


@functools.cache
def shipped_manifest() -> Manifest:
    """The manifest of all built-in modules; imports no driver."""
    found: dict[str, Module] = {}
    for module in builtin_modules():
        found.update(manifest_from_wire(_shipped(module)).modules)
    return Manifest(found)


@functools.cache
def _shipped(module: str) -> dict[str, Any]:
    """The file of a built-in module: its manifest, and the `platforms` of its driver."""
    folder = files("imlmesh_drivers.manifests")
    text = folder.joinpath(f"{module}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
