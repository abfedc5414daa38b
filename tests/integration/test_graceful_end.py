"""SIGTERM in the middle of a plan: nothing lost, nothing doubled, and the process ends in time."""

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from imlmesh_orchestrator.api.guard import Guard
from imlmesh_protocol import limits
from orchestrator_mesh import ME, Mesh, action, plan

pytestmark = pytest.mark.usefixtures("broker_program")
NODES = ("pi-1", "pi-2")


def effects(mesh: Mesh) -> Counter[str]:
    """How often each once effect happened, on whichever node."""
    files = [mesh.home.node(name) / "files" / "marker" for name in NODES]
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return Counter(lines)


def acts(count: int, delay_ms: int) -> str:
    params = {"delay_ms": delay_ms, "marker": "marker"}
    return plan(*(action(f"a{i}", "act", params=params | {"value": i}) for i in range(count)))


async def running(mesh: Mesh, run: str, count: int) -> None:
    """So many actions of the run have begun or ended."""

    def begun(found: dict) -> bool:
        states = [one["state"] for one in found["actions"]]
        return sum(state in ("running", "completed") for state in states) >= count

    await mesh.until(f"runs/{run}", begun)


async def told_to_end(mesh: Mesh, name: str) -> float:
    """SIGTERM, once; how many seconds the process took to end well."""
    process, began_s = mesh.processes.pop(name), time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    return time.monotonic() - began_s


def checkpointed(database: Path) -> bool:
    log = database.with_name(f"{database.name}-wal")
    return database.exists() and (not log.exists() or log.stat().st_size == 0)


async def test_a_node_finishes_what_runs_and_gives_the_rest_back(mesh: Mesh) -> None:
    run = (await mesh.submit(acts(16, 2_000)))["run"]
    await mesh.until(f"runs/{run}", lambda _: len(effects(mesh)) >= 8)
    took_s = await told_to_end(mesh, "pi-1")
    assert took_s < limits.LAN.finish_ms / 1_000
    found = await mesh.ended(run)
    assert found["state"] == "completed"
    assert sum(effects(mesh).values()) == 16
    assert len(effects(mesh)) == 16
    assert checkpointed(mesh.home.node("pi-1") / "journal.db")


async def test_what_takes_too_long_is_stopped_and_a_person_is_asked(mesh: Mesh) -> None:
    run = (await mesh.submit(acts(1, 50_000)))["run"]
    await mesh.until(f"runs/{run}", lambda _: len(effects(mesh)) == 1)
    (name,) = [name for name in NODES if (mesh.home.node(name) / "files" / "marker").exists()]
    took_s = await told_to_end(mesh, name)
    assert limits.LAN.finish_ms / 1_000 <= took_s < (limits.LAN.finish_ms + 5_000) / 1_000
    await mesh.until(f"runs/{run}", lambda found: found["actions"][0]["state"] == "unknown")
    assert sum(effects(mesh).values()) == 1


async def test_told_twice_a_node_ends_at_once_and_well(mesh: Mesh) -> None:
    run = (await mesh.submit(acts(1, 50_000)))["run"]
    await mesh.until(f"runs/{run}", lambda _: len(effects(mesh)) == 1)
    (name,) = [name for name in NODES if (mesh.home.node(name) / "files" / "marker").exists()]
    process, began_s = mesh.processes.pop(name), time.monotonic()
    process.send_signal(signal.SIGTERM)
    log = mesh.home.logs / f"{name}.log"
    while "told again" not in log.read_text():
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        if process.returncode is not None:
            break
    await process.wait()
    assert time.monotonic() - began_s < limits.LAN.finish_ms / 1_000
    await mesh.until(f"runs/{run}", lambda found: found["actions"][0]["state"] == "unknown")


async def test_an_orchestrator_that_is_told_to_end_loses_and_doubles_nothing(mesh: Mesh) -> None:
    run = (await mesh.submit(acts(40, 400)))["run"]
    for count in (4, 16, 28):
        await running(mesh, run, count)
        assert await told_to_end(mesh, ME) < 20
        for name in ("lifecycle", "output", "metadata"):
            assert checkpointed(mesh.home.orchestrator / f"{name}.db"), name
        await mesh.orchestrator()
    found = await mesh.ended(run)
    assert found["state"] == "completed"
    assert len(effects(mesh)) == 40
    assert set(effects(mesh).values()) == {1}


async def test_while_it_ends_the_api_answers_questions_and_takes_nothing() -> None:
    asked: list[str] = []

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        asked.append(scope["method"])

    guard = Guard(app, "secret")
    headers = [(b"authorization", b"Bearer secret")]
    told: list[dict] = []

    async def send(message) -> None:  # type: ignore[no-untyped-def]
        told.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def ask(method: str) -> None:
        scope = {"type": "http", "method": method, "path": "/v1/runs", "headers": headers}
        await guard(scope, receive, send)

    await ask("POST")
    guard.stopping = True
    for method in ("POST", "PUT", "DELETE", "GET", "HEAD"):
        await ask(method)
    assert asked == ["POST", "GET", "HEAD"]
    statuses = [message["status"] for message in told if "status" in message]
    assert statuses == [503, 503, 503]
    assert b'"orchestrator.stopping"' in b"".join(message.get("body", b"") for message in told)
