"""What mDNS tells this computer: nodes that wait, and whether it works here at all.

The one rule: where mDNS cannot work that is an error with the line to use instead, never an empty
list. Deliberately absent: letting a node in; it has its keys already.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from imlmesh.mesh import Mesh, open_mesh
from imlmesh.render import Column, say, try_line, write_table
from imlmesh.settings import settings
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, LinkError
from imlmesh_runtime.discovery import NODES, Discovery, Service, short_root
from imlmesh_runtime.multicast import networks


def waiting_nodes(seconds: float | None) -> dict[str, Any]:
    """Nodes that look for a mesh, as data; LinkError `discovery.blocked`."""
    try:
        mesh = open_mesh(settings.home)
    except InputError as exc:
        if exc.code != "home.missing":
            raise
        mesh = None
    listen_s = limits.DISCOVERY_LISTEN_MS / 1000 if seconds is None else seconds
    found = asyncio.run(_listen(mesh, listen_s))
    own = None if mesh is None else (mesh.authority.mesh, _root(mesh))
    nodes = [
        {
            "node": each.node,
            "mesh": each.mesh,
            "root": each.root,
            "ours": None if own is None else (each.mesh, each.root) == own,
            "addresses": list(each.addresses),
        }
        for each in sorted(found, key=lambda service: (service.node, service.root))
    ]
    return {"schema": "imlmesh.waiting-list/1", "nodes": nodes}


def print_waiting(nodes: Sequence[dict[str, Any]]) -> None:
    """The table of them, and what to try."""
    if not nodes:
        say("no node waits on this network; one that is online is in: " + try_line("node list"))
        say("mDNS ends at VLANs, container networks and most guest networks: docs/reach.md")
        return
    columns = [Column("NODE"), Column("ADDRESS"), Column("LOOKS FOR"), Column("ROOT", 1)]
    write_table(columns, [_row(node) for node in nodes])
    if any(node["ours"] for node in nodes):
        say("let it find this mesh:  " + try_line("up --lan"))


def node_line(address: str) -> str:
    """What to run on a node's computer where mDNS does not reach."""
    return f"imlmesh node run FOLDER --broker {address}"


def lan_addresses(mesh: Mesh | None) -> list[str]:
    """address:port of a mesh's broker in each network of this computer, the usual one first; none
    before it has served."""
    if mesh is None or mesh.port is None:
        return []
    return [f"{network.address}:{mesh.port}" for network in networks()]


async def _listen(mesh: Mesh | None, seconds: float) -> list[Service]:
    discovery = Discovery(watched=NODES)
    discovery.start()
    try:
        await discovery.until(lambda: discovery.trouble is not None)
        if discovery.trouble:
            hint = node_line(next(iter(lan_addresses(mesh)), "ADDRESS:PORT"))
            raise LinkError("discovery.blocked", discovery.trouble, hint=f"on a node: {hint}")
        await asyncio.sleep(seconds)
        return list(discovery.found.values())
    finally:
        await discovery.close()


def _row(node: dict[str, Any]) -> list[str]:
    meshes = {True: "this mesh", False: f"another mesh, {node['mesh']}", None: node["mesh"]}
    return [node["node"], ", ".join(node["addresses"]), meshes[node["ours"]], node["root"]]


def _root(mesh: Mesh) -> str:
    return short_root(mesh.home.ca / "root.pub")
