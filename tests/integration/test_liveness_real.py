"""Silence that is nobody's death, and silence that is: real processes, a broker, timing of a LAN."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator

import msgpack
import pytest

from imlmesh_protocol.states import Liveness
from orchestrator_mesh import ME, Mesh, action, plan

pytestmark = pytest.mark.usefixtures("broker_program")
BUSY_S = 20
STOPPED_S = 9  # longer than the window of 6 s
NODES = ("pi-1", "pi-2")


def verdicts(mesh: Mesh) -> list[tuple[str, str]]:
    """(node, liveness) of every change of it that was stored."""
    path = mesh.home.orchestrator / "lifecycle.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT body FROM changes WHERE kind = 'liveness-changed' ORDER BY seq"
        ).fetchall()
    return [(node, liveness) for node, liveness, _ in (msgpack.unpackb(body) for (body,) in rows)]


@contextlib.contextmanager
def saturated() -> Iterator[None]:
    """Every core is busy, twice over."""
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


@pytest.mark.alone
async def test_a_saturated_machine_is_not_dead(mesh: Mesh) -> None:
    before = verdicts(mesh)
    assert before == [(name, "online") for name in dict.fromkeys(n for n, _ in before)]
    busy = [action(f"a{i}", "act", params={"delay_ms": 1_000 * BUSY_S - 4_000}) for i in range(4)]
    run = (await mesh.submit(plan(*busy)))["run"]
    with saturated():
        await asyncio.sleep(BUSY_S)
    assert (await mesh.ended(run))["state"] == "completed"
    assert verdicts(mesh) == before


async def test_nobody_is_called_lost_while_the_broker_stands_still(mesh: Mesh) -> None:
    pid = mesh.broker.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    await mesh.online(*NODES)
    assert Liveness.LOST not in [liveness for _, liveness in verdicts(mesh)]
    log = (mesh.home.logs / f"{ME}.log").read_text()
    assert "does not come back: nobody is judged" in log


async def test_nobody_is_called_lost_when_the_orchestrator_stood_still(mesh: Mesh) -> None:
    before, process = verdicts(mesh), mesh.processes[ME]
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(STOPPED_S)
    finally:
        process.send_signal(signal.SIGCONT)
    run = (await mesh.submit(plan(action("a"))))["run"]
    assert (await mesh.ended(run))["state"] == "completed"
    assert verdicts(mesh) == before
    assert "nothing was done here" in (mesh.home.logs / f"{ME}.log").read_text()


@pytest.mark.alone
async def test_a_silent_death_is_noticed_within_its_window(mesh: Mesh) -> None:
    process = mesh.processes["pi-1"]
    began_s = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    try:
        await mesh.until(
            "nodes", lambda found: "lost" in [node["liveness"] for node in found["nodes"]]
        )
        took_s = time.monotonic() - began_s
    finally:
        process.send_signal(signal.SIGCONT)
    assert took_s <= 6.5
    assert ("pi-2", "lost") not in verdicts(mesh)


async def test_most_nodes_silent_at_once_are_an_alarm_until_a_person_judges(mesh: Mesh) -> None:
    more = ("pi-3", "pi-4")
    for name in more:
        await mesh.node(name)
    await mesh.online(*NODES, *more)
    silent = ("pi-2", *more)
    refused = await mesh.http.post("silence", json={"reason": "so"})
    assert (refused.status_code, refused.json()["code"]) == (409, "verdicts.not_frozen")
    for name in silent:
        mesh.processes[name].send_signal(signal.SIGSTOP)
    try:
        found = await mesh.until("health", lambda found: found["verdicts"]["frozen"])
        assert found["verdicts"]["silent"] == sorted(silent)
        assert found["nodes"] == {"online": 1, "suspect": 3, "lost": 0, "offline": 0}
        answer = await mesh.http.post("silence", json={"reason": "the fuse of hall 2"})
        assert answer.json() == {"schema": "imlmesh.silence/1", "nodes": 3}
        await mesh.until("health", lambda found: found["nodes"]["lost"] == 3)
    finally:
        for name in silent:
            mesh.processes[name].send_signal(signal.SIGCONT)
    await mesh.online(*NODES, *more)
