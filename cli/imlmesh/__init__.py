"""The script `imlmesh`, and the public face of the distribution: `from imlmesh import Client, LocalClient, Plan`.

The one rule: importing it costs nothing; what it offers is loaded when it is named.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imlmesh.client import Client
    from imlmesh.local import LocalClient
    from imlmesh.planning import Plan

__all__ = ["Client", "LocalClient", "Plan"]

_PLACES = {
    "Client": "imlmesh.client",
    "LocalClient": "imlmesh.local",
    "Plan": "imlmesh.planning",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)
