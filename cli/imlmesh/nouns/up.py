"""`imlmesh up`: a mesh on this computer, from nothing."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import lone_verb, verb
from imlmesh.settings import settings

app = lone_verb()


@verb(
    app,
    """\
imlmesh up                                no root, no account, no configuration
imlmesh up --lan                          open to nodes of the local network, which find it
imlmesh up --policy garden.policy.toml    what the node of this computer may do
imlmesh up --timing lan                   notices a lost node in 6 s instead of 30 s""",
)
def up(
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="policy.toml of this computer's node.")
    ] = None,
    timing: Annotated[
        str | None, typer.Option(metavar="wan|lan", help="How fast silence is noticed; set once.")
    ] = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="Listen on all addresses; tell the network by mDNS.")
    ] = False,
) -> None:
    """Start broker, orchestrator and a node of this computer; Ctrl-C stops them cleanly.

    The first start makes the home folder with its keys. Without --lan all listen on this computer
    alone; with it the broker is open to whoever has a certificate of it. The broker is Mosquitto
    where it is installed, else the embedded one; IMLMESH_BROKER=mosquitto or =embedded forces one.
    """
    import asyncio

    asyncio.run(_up(policy, timing, lan))


async def _up(policy: Path | None, timing: str | None, lan: bool) -> None:
    import asyncio
    import os
    import signal

    from imlmesh.mesh import machine_name, make_mesh, policy_text
    from imlmesh.render import say
    from imlmesh.running import RunningMesh
    from imlmesh_broker import choose_broker

    # Everything that can be wrong is looked at before anything is made.
    choose_broker(os.environ)
    policy_text("local_worker", policy)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    mesh, is_new = make_mesh(settings.home, timing)
    running = RunningMesh(mesh, lambda line: say(f"! {line}"), lan=lan)
    starting = asyncio.create_task(_start(running, is_new, machine_name(), policy))
    stopping = asyncio.create_task(ended.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await running.wait(ended)
    finally:
        for unfinished in (starting, stopping):
            unfinished.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        await running.stop()
    say("stopped")


async def _start(running: Any, is_new: bool, name: str, policy: Path | None) -> None:
    import asyncio

    from imlmesh.discovering import lan_addresses
    from imlmesh.render import emit, try_line

    program = await running.start_broker()
    mesh = running.mesh
    home = mesh.home
    made = "created" if is_new else "found"
    _line(f'mesh "{mesh.authority.mesh}" {made}', f"CA and keys in {home.root} (mode 0700)")
    addresses = lan_addresses(mesh) if running.lan else []
    shown = " ".join(f"mqtts://{address}" for address in addresses or [mesh.broker_address])
    _line("broker", f"{shown}  {program}, client certificate required")
    client = await running.start_orchestrator()
    reached = home.api_socket if home.socket_fits() else "loopback, with a token"
    _line("orchestrator", str(reached))
    own = await _own_node(running, client, name, policy)
    record: dict[str, Any] = {"home": str(home.root), "broker": mesh.broker_address, "node": own}
    record["broker_program"] = program
    trouble = await _announce(running, addresses) if running.lan else None
    record |= {"lan": addresses, "mdns": "off" if trouble is None else trouble or "announced"}
    if emit({"schema": "imlmesh.up/1", **record}):
        return
    await asyncio.to_thread(_tell_join, client)
    hints = (try_line("node list"), "imlmesh plan new first.iml.yaml", try_line("status"))
    _line("", f"Next: {'   ·   '.join(hints)}", shape=" ")
    if is_new:
        _line("", "Once: the root key signs whom nodes trust, nothing else needs it. Move it away:")
        _line(
            "", f"  mv {shlex.quote(str(home.ca / 'root.key'))} /media/STICK/    (docs/rotation.md)"
        )
    _line("", "Ctrl-C stops all of it", shape=" ")


async def _own_node(running: Any, client: Any, name: str, policy: Path | None) -> str | None:
    """Start the node of this computer; its name, or None when nobody can be that node any more: ids are
    never used twice, and the mesh is more than this node."""
    import asyncio

    from imlmesh_protocol.errors import MeshError

    mesh, lost = running.mesh, ""
    if await asyncio.to_thread(mesh.has_removed, client, name):
        lost = "was removed"
    else:
        try:
            folder = await asyncio.to_thread(mesh.own_node, client, name, policy)
        except MeshError as exc:
            if exc.code != "node.exists":
                raise
            lost = "has no folder here any more"
    if lost:
        text = "is not started; as another one: imlmesh node join TOKEN --name NAME"
        _line(f"node {name}", f"{lost} and {text}", shape="!")
        return None
    await running.start_node(folder, client)
    _line(f"node {name}", "this computer")
    return name


def _tell_join(client: Any) -> None:
    """A line to paste on the next machine; a mesh with too many tokens has no other one."""
    from imlmesh.render import clock, try_line
    from imlmesh_protocol.errors import MeshError

    try:
        token = client.post("tokens", {})
    except MeshError as exc:
        _line("", f"Add a node: {try_line('token create')}   ({exc.message})", shape=" ")
        return
    until = clock(token["expires_at_ms"])
    _line("", f"Add a node: run this on it (one machine, until {until}):", shape=" ")
    _line("", f"  {token['line']}", shape=" ")


async def _announce(running: Any, addresses: list[str]) -> str:
    """Tell the network; why that cannot work, or nothing. A network may come later."""
    from imlmesh.discovering import node_line
    from imlmesh.render import say

    discovery = running.announce()
    await discovery.until(lambda: discovery.trouble is not None)
    line = node_line(addresses[0] if addresses else "ADDRESS:PORT")
    if discovery.trouble:
        say(f"! mDNS does not work here: {discovery.trouble} [discovery.blocked]")
        say(f"  on a node use:  {line}")
    else:
        mesh = running.mesh.authority.mesh
        _line("announced by mDNS", f"{mesh}; where it does not reach: {line}")
    return str(discovery.trouble)


def _line(what: str, text: str, shape: str = "✔") -> None:
    from imlmesh.render import console, write

    if settings.output == "table" and not settings.quiet:
        write(f"{shape} {what:<24} {text}" if what else text)
        console().file.flush()
