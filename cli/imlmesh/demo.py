"""The demonstration: two simulated Pis and a desktop water a greenhouse, and one Pi is killed.

The one rule: nothing is staged but the kill; orchestrator, nodes, broker, plan and files are the
real ones, and what is shown is what happened. It runs in a mesh that it made itself and in no other.
Deliberately absent: anything left running.
"""

import asyncio
import os
import tempfile
from pathlib import Path

from imlmesh.client import Client, path_of
from imlmesh.exits import ExitCode
from imlmesh.live import follow, show_end
from imlmesh.mesh import Mesh, make_mesh
from imlmesh.render import say, try_line, write
from imlmesh.running import RunningMesh
from imlmesh.settings import settings
from imlmesh.shipped import shipped
from imlmesh.supervise import Supervised
from imlmesh_broker import choose_broker
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.states import RUN_ENDED
from imlmesh_runtime.files import write_private
from imlmesh_runtime.paths import find_home

PI_BED, PI_ROOF, DESK = "pi-bed", "pi-roof", "desk"
#: carries group work alone, all of it pure
VICTIM = PI_ROOF
GROUPS = {"garden": [PI_BED, PI_ROOF], "office": [DESK]}
_POLL_S = 0.2


async def run_demo(home: str | None) -> ExitCode:
    """Run it; the exit code of its run. `home` None: a folder of its own, kept for a look."""
    choose_broker(os.environ)
    folder = Path(home) if home else Path(tempfile.mkdtemp(prefix="imlmesh-demo-"))
    # The commands that are shown must reach this mesh.
    settings.home = str(folder)
    mesh = _own_mesh(folder)
    running = RunningMesh(mesh, lambda line: say(f"! {line}"))
    try:
        client, victim = await _start(running)
        plan = shipped("examples", "greenhouse.iml.yaml")
        body = {"text": plan.read_text(), "file": plan.name}
        run = (await asyncio.to_thread(client.post, "runs", body))["run"]
        code = await _follow_and_kill(client, run, victim)
    finally:
        await running.stop()
    if settings.output == "table":
        _tell_what_is_left(folder, run)
    return code


def _own_mesh(folder: Path) -> Mesh:
    """The mesh of an earlier demonstration, or a new one; InputError `folder.exists` for any other, whose
    groups and policies it would replace."""
    home = find_home(folder, os.environ)
    parts = (home.ca, home.broker, home.orchestrator, home.nodes)
    if not home.demo.exists() and any(part.exists() for part in parts):
        text = f"{home.root} has a mesh that no demonstration made"
        raise InputError(
            "folder.exists", text, hint="imlmesh demo run --home ANOTHER, or no --home"
        )
    mesh, is_new = make_mesh(folder, "lan")
    if is_new:
        write_private(home.demo, b"imlmesh demo made this mesh, and may run in it again.\n")
    return mesh


async def _start(running: RunningMesh) -> tuple[Client, Supervised]:
    say("starting a mesh: broker, orchestrator, two simulated Pis and a desktop")
    say(f"✔ broker: {await running.start_broker()}")
    client = await running.start_orchestrator()
    policy = shipped("examples", "greenhouse.policy.toml")
    folders = [
        await asyncio.to_thread(running.mesh.own_node, client, name, policy)
        for name in (PI_BED, PI_ROOF, DESK)
    ]
    nodes = await asyncio.gather(*(running.start_node(folder, client) for folder in folders))
    for group, members in GROUPS.items():
        await asyncio.to_thread(client.put, path_of("groups", group), {"nodes": members})
        say(f"✔ group {group}: {', '.join(members)}")
    return client, nodes[[PI_BED, PI_ROOF, DESK].index(VICTIM)]


async def _follow_and_kill(client: Client, run: str, victim: Supervised) -> ExitCode:
    snapshot = await asyncio.to_thread(client.get, path_of("runs", run))
    killing = asyncio.create_task(_kill_in_the_middle(client, run, victim))
    try:
        if not await follow(client, snapshot, limits.DEMO_RUN_S):
            say(f"{run} did not end within {limits.DEMO_RUN_S:g} s")
            return ExitCode.TIMED_OUT
        was_killed = await killing
    finally:
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
    code = await asyncio.to_thread(show_end, client, run)
    if was_killed:
        return code
    say(f"{run} ended before {VICTIM} was busy: nothing was killed")
    return code or ExitCode.FAILED


async def _kill_in_the_middle(client: Client, run: str, victim: Supervised) -> bool:
    """SIGKILL the victim once it has worked for a second; False when the run ended before."""
    busy = False
    while True:
        now = await asyncio.to_thread(client.get, path_of("runs", run))
        if now["state"] in RUN_ENDED:
            return False
        if busy:
            break
        busy = any(a["state"] == "running" and a["node"] == VICTIM for a in now["actions"])
        await asyncio.sleep(1.0 if busy else _POLL_S)
    names = [a["id"] for a in now["actions"] if a["state"] == "running" and a["node"] == VICTIM]
    await victim.kill()
    say(f"✖ killed {VICTIM} (SIGKILL) in the middle of {', '.join(names)}")
    return True


def _tell_what_is_left(folder: Path, run: str) -> None:
    report = folder / "nodes" / DESK / "files" / "report.txt"
    if report.exists():
        write()
        for line in report.read_text().splitlines():
            write(f"    {line}")
        write()
    write(f"store    {folder / 'orchestrator' / 'lifecycle.db'}")
    write(f"results  {report.parent}")
    write("Nothing is left running. Try next:")
    write(f"    {try_line('up')}")
    write(f"    {try_line(f'run story {run}')}      (in another terminal)")
    write("    imlmesh up                                a mesh of your own")
