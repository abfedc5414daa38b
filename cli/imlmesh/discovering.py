"""Who waits: nodes that want to be let in, and nodes that mDNS tells of, which look for their mesh.

The one rule: where mDNS cannot work that is an error with the line to use instead, never an empty
list. Deliberately absent: letting a single node in.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from imlmesh.client import Client
from imlmesh.mesh import Mesh, open_mesh
from imlmesh.render import (
    Column,
    console,
    emit,
    emit_record,
    is_live,
    say,
    try_line,
    write,
    write_table,
)
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
    own = None if mesh is None else (mesh.authority.mesh, _root(mesh))
    joining = [] if own is None else _joining(*own)
    try:
        found = asyncio.run(_listen(mesh, listen_s))
    except LinkError as exc:
        if not joining:
            raise
        say(f"! mDNS does not work here: {exc.message} [{exc.code}]")
        found = []
    nodes = joining + [
        {
            "node": each.node,
            "code": None,
            "profile": None,
            "joins": False,
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
    columns = [Column("NODE"), Column("ADDRESS"), Column("CODE"), Column("WAITS FOR")]
    columns += [Column("PROFILE", 1), Column("ROOT", 2)]
    write_table(columns, [_row(node) for node in nodes])
    if any(node["joins"] for node in nodes):
        say("the code must be the one that the node shows; then:  " + try_line("node approve NAME"))
    if any(node["ours"] and not node["joins"] for node in nodes):
        say("let it find this mesh:  " + try_line("up --lan"))


def hold_door_open(seconds: float) -> None:
    """Let in whoever asks until the time is over, and tell who comes; Ctrl-C closes the door."""
    with Client.connect(settings.home) as client:
        opened = client.put("joins", {"for_ms": round(seconds * 1_000)})
        emit(opened)
        end_ms = opened["open_until_ms"] or 0
        known = {node["node"] for node in client.get("joins")["enrolled"]}
        try:
            while (now := client.get("joins"))["now_ms"] < end_ms:
                for node in now["enrolled"]:
                    if node["node"] not in known:
                        known.add(node["node"])
                        _tell(f"✔ {node['alias']} is in as {node['profile']}", node)
                left_s = (end_ms - now["now_ms"]) / 1_000
                if settings.output == "table" and is_live():
                    console().print(f"open for {left_s:3.0f} s more; Ctrl-C closes", end="\r")
                time.sleep(min(1.0, left_s))
        finally:
            client.put("joins", {"for_ms": 0})
    say("the door is closed; who asks now waits for:  " + try_line("node approve NAME"))


def _tell(text: str, node: dict[str, Any]) -> None:
    if settings.output == "table":
        write(text)
    else:
        emit_record({"schema": "imlmesh.node-in/1", **node}, line=True)


def _joining(mesh: str, root: str) -> list[dict[str, Any]]:
    """The nodes that ask this mesh to be let in; none while it does not run."""
    try:
        with Client.connect(settings.home) as client:
            found = client.get("joins")["nodes"]
    except LinkError:
        return []
    return [
        {
            "node": each["node"],
            "code": each["code"],
            "profile": each["profile"],
            "joins": True,
            "mesh": mesh,
            "root": root,
            "ours": True,
            "addresses": [each["address"]],
        }
        for each in found
    ]


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
    waits = "approval" if node["joins"] else meshes[node["ours"]]
    code = node["code"] or ("a token" if node["joins"] else "-")
    where = ", ".join(node["addresses"])
    return [node["node"], where, code, waits, node["profile"] or "-", node["root"]]


def _root(mesh: Mesh) -> str:
    return short_root(mesh.home.ca / "root.pub")
