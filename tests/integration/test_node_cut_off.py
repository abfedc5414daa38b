"""A node process that is cut off: what it measures is kept on its disk and comes later, behind live traffic."""

import asyncio
import sqlite3
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imlmesh.chaos.proxy import Mode, Proxy, opened_proxy
from imlmesh_node.spool import Spool
from imlmesh_node.stock import Sort
from imlmesh_runtime.clock import MeshClock, boot_ms
from orchestrator_mesh import Mesh, action, opened_mesh, plan
from scripted_control import (
    Control,
    NodeProcess,
    dispatch,
    is_birth,
    opened_control,
    opened_home,
    opened_node,
)

RECORDS = 100_000
ROW = 50


async def fill(folder: Path, records: int = RECORDS) -> None:
    """Readings of the last half hour, as a node leaves them that was cut off for so long."""
    kept = Spool.at(folder / "spool.db", MeshClock(), lambda: None, lambda code, text, count: None)
    since_ms = boot_ms() - 1_800_000
    for start in range(0, records, ROW):
        rows = [
            (since_ms + 10 * number, "fake", "fake.level", "%", float(number))
            for number in range(start, start + ROW)
        ]
        assert kept.keep(Sort.READINGS, rows)
    await kept.close()


def spooled(folder: Path) -> int:
    """Records on the disk of the node."""
    return asked(folder / "spool.db", "SELECT total(count) FROM records")


def unfinished(folder: Path) -> int:
    """Dispatches that the node's journal knows no end of."""
    return asked(folder / "journal.db", "SELECT count(*) FROM dispatches WHERE result IS NULL")


def asked(path: Path, question: str) -> int:
    if not path.exists():
        return 0
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return int(database.execute(question).fetchone()[0])
    except sqlite3.OperationalError:
        return 0  # it is only just being made
    finally:
        database.close()


def counted(count: int) -> Any:
    return lambda found: any(
        series["metric"] == "fake.level" and series["count"] >= count for series in found["series"]
    )


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[tuple[Mesh, Proxy]]:
    async with opened_mesh(tmp_path) as made, opened_proxy(made.port) as proxy:
        await made.orchestrator()
        broker_port, made.port = made.port, proxy.port
        await made.node("pi-1")
        made.port = broker_port
        await made.online("pi-1")
        yield made, proxy


async def test_what_is_measured_while_cut_off_survives_a_kill_and_comes_once(
    mesh: tuple[Mesh, Proxy],
) -> None:
    made, proxy = mesh
    params = {"readings": 200, "delay_ms": 3_000}
    acts = [action(f"a{n}", "act", params=params | {"marker": f"m{n}"}) for n in range(8)]
    run = (await made.submit(plan(*acts)))["run"]
    # four run at once; the others begin when they are cut off
    await made.until("telemetry?metric=fake.level", counted(800))
    proxy.mode = Mode.CUT
    folder = made.home.node("pi-1")
    await made.until("health", lambda _: spooled(folder) == 800 and not unfinished(folder))
    await made.kill("pi-1")
    await made.node("pi-1")
    proxy.mode = Mode.PASS
    assert (await made.ended(run))["state"] == "completed"
    found = await made.until("telemetry?metric=fake.level", counted(1_600))
    assert [series["count"] for series in found["series"]] == [1_600]
    markers = [(folder / "files" / f"m{n}").read_text().splitlines() for n in range(8)]
    assert [len(lines) for lines in markers] == [1] * 8
    await made.until("health", lambda _: spooled(folder) == 0)
    shown = await made.until("nodes/pi-1", lambda found: not found["spool"]["records"])
    assert shown["spool"] == {"records": 0, "dropped_events": 0, "dropped_readings": 0}


async def test_100_000_records_reach_the_orchestrator_whole(mesh: tuple[Mesh, Proxy]) -> None:
    made, _ = mesh
    await made.kill("pi-1")
    folder = made.home.node("pi-1")
    await fill(folder)
    await made.node("pi-1")
    waiting = await made.until("nodes/pi-1", lambda shown: shown["spool"]["records"])
    assert waiting["spool"]["records"] > RECORDS // 2
    found = await made.until("telemetry?metric=fake.level", counted(RECORDS))
    assert [series["count"] for series in found["series"]] == [RECORDS]
    await made.until("health", lambda _: spooled(folder) == 0)


@pytest.fixture
async def scripted(tmp_path: Path) -> AsyncIterator[tuple[Control, NodeProcess]]:
    async with (
        opened_home(tmp_path) as (home, broker),
        opened_control(home, broker) as control,
        opened_node(home, broker) as node,
    ):
        await control.wait(is_birth)
        yield control, node


async def round_trip(control: Control, number: int) -> float:
    began_s = time.perf_counter()
    one = dispatch(number, "noop", "pure")
    control.delegate(one)
    await control.result(one)
    taken_s = time.perf_counter() - began_s
    await asyncio.sleep(0.02)  # people and plans pause, and a drain needs its turns
    return taken_s


def drained(control: Control) -> int:
    messages = [m for m in control.heard if m.channel == "telemetry/fake"]
    return sum(len(m.fields["readings"]["fake.level"][0]) for m in messages)


def nearly_worst(taken: list[float]) -> float:
    """What 19 of 20 did not exceed."""
    return statistics.quantiles(taken, n=20)[-1]


async def test_a_start_with_100_000_records_is_quick_and_the_drain_delays_no_action(
    scripted: tuple[Control, NodeProcess],
) -> None:
    control, node = scripted
    await node.end()
    await fill(node.folder)
    control.heard.clear()
    began_s = time.perf_counter()
    await node.start()
    await control.wait(is_birth)
    ready_s = time.perf_counter() - began_s
    assert ready_s < 3
    during: list[float] = []
    while drained(control) < RECORDS:
        during.append(await round_trip(control, len(during) + 1))
    assert len(during) > 50, "the drain is in no haste"
    after = [await round_trip(control, number) for number in range(100_000, 100_150)]
    print(f"ready {ready_s:.2f} s, during {during}, after {after}")
    assert statistics.median(during) < 2 * statistics.median(after) + 0.002
    assert nearly_worst(during) < 2 * nearly_worst(after) + 0.05
    assert node.process is not None
    assert node.process.returncode is None
