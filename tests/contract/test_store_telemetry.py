"""Readings in output: one body over a real file and memory; roll-ups, retention, a file cut anywhere."""

import asyncio
import random
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.rollups import (
    HOUR_MS,
    MINUTE_MS,
    Kept,
    forget,
    roll_up,
    used_bytes,
    write_readings,
)
from imlmesh_orchestrator.store.telemetry import Recorder, known_series
from imlmesh_orchestrator.store.upkeep import Upkeep
from imlmesh_protocol import limits
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.sqlite import Database, FailingStore, MemoryStore, Store, run

#: a whole hour
BEGIN_MS = 472_222 * HOUR_MS
Row = tuple[int, int, float]


@pytest.fixture(params=["real", "memory"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store
    if request.param == "real":
        made = Database(tmp_path / "output.db", migrations("output"), synchronous="NORMAL")
    else:
        made = MemoryStore(migrations("output"))
    yield made
    await made.close()


async def rows(store: Store, sql: str) -> list[Any]:
    return await run(store, lambda database: database.execute(sql).fetchall())


async def write(store: Store, readings: Sequence[Row]) -> None:
    await run(
        store,
        lambda database: write_readings(
            database, [((at,), series, (value,)) for at, series, value in readings]
        ),
    )


async def until_done(store: Store, piece: Callable[[sqlite3.Connection], bool]) -> int:
    """How many pieces there were."""
    for count in range(10_000):
        if not await run(store, piece):
            return count
    raise AssertionError("it never ends")


async def roll(store: Store, now_ms: int) -> int:
    return await until_done(store, lambda database: roll_up(database, now_ms))


def expected(readings: Sequence[Row], size_ms: int, before_ms: int) -> list[tuple[Any, ...]]:
    """(at, series, count, low, high, total, last) as anybody would compute it."""
    parts: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for at, series, value in readings:
        if at < before_ms:
            parts.setdefault((at // size_ms * size_ms, series), []).append((at, value))
    return [
        (
            *key,
            len(found),
            min(value for _, value in found),
            max(value for _, value in found),
            pytest.approx(sum(value for _, value in found)),
            max(found)[1],
        )
        for key, found in sorted(parts.items())
    ]


_COUNT = "SELECT count(*) FROM {}"
_COUNTS = "SELECT at_ms, series, sum(count) FROM {} GROUP BY 1, 2 ORDER BY 1, 2"
_ROLLED = "SELECT at_ms, series, count, low, high, total, last FROM {} ORDER BY at_ms, series"


def some_readings(seed: int, count: int = 400, span_ms: int = 2 * HOUR_MS) -> list[Row]:
    dice = random.Random(seed)
    times = sorted(dice.sample(range(span_ms), count))
    return [(BEGIN_MS + at, dice.randrange(3), dice.uniform(-5, 30)) for at in times]


async def test_what_is_over_is_rolled_up_and_nothing_else(store: Store) -> None:
    readings = some_readings(1)
    await write(store, readings)
    now_ms = BEGIN_MS + HOUR_MS + 90_000
    await roll(store, now_ms)
    # a minute that ended 30 s ago is over, the one that runs is not
    assert await rows(store, _ROLLED.format("minutes")) == expected(
        readings, MINUTE_MS, BEGIN_MS + HOUR_MS + MINUTE_MS
    )
    assert await rows(store, _ROLLED.format("hours")) == expected(
        readings, HOUR_MS, BEGIN_MS + HOUR_MS
    )
    assert await roll(store, now_ms) == 0


async def test_a_minute_waits_for_those_that_gather(store: Store) -> None:
    await write(store, [(BEGIN_MS, 1, 1.0)])
    await roll(store, BEGIN_MS + MINUTE_MS + limits.ROLL_UP_AFTER_MS - 1)
    assert await rows(store, _ROLLED.format("minutes")) == []
    await roll(store, BEGIN_MS + MINUTE_MS + limits.ROLL_UP_AFTER_MS)
    assert len(await rows(store, _ROLLED.format("minutes"))) == 1


@pytest.mark.parametrize("seed", range(5))
async def test_late_readings_end_in_the_same_roll_ups(store: Store, seed: int) -> None:
    readings = some_readings(seed)
    dice = random.Random(seed)
    late = [reading for reading in readings if dice.random() < 0.3]
    now_ms = BEGIN_MS + 3 * HOUR_MS
    await write(store, [reading for reading in readings if reading not in late])
    await roll(store, now_ms)
    dice.shuffle(late)
    for start in range(0, len(late), 7):
        # what comes twice counts once
        await write(store, late[start : start + 7] + late[start : start + 2])
        await roll(store, now_ms)
    for tier, size_ms in (("minutes", MINUTE_MS), ("hours", HOUR_MS)):
        assert await rows(store, _ROLLED.format(tier)) == expected(readings, size_ms, now_ms), tier
    assert await rows(store, "SELECT count(*) FROM readings") == [(len(readings),)]


async def test_each_tier_is_forgotten_in_its_time_and_in_small_pieces(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FORGET_ROWS", 50)
    kept = Kept(raw_ms=3 * HOUR_MS, minutes_ms=5 * HOUR_MS, hours_ms=9 * HOUR_MS)
    readings = some_readings(3)
    await write(store, readings)
    await run(
        store, lambda db: db.execute("INSERT INTO heartbeats VALUES (?, 'pi', 1)", (BEGIN_MS,))
    )

    async def left(now_ms: int) -> list[int]:
        await roll(store, now_ms)
        await until_done(store, lambda database: forget(database, now_ms, kept))
        return [
            (await rows(store, _COUNT.format(table)))[0][0]
            for table in ("readings", "heartbeats", "minutes", "hours")
        ]

    begun = await left(BEGIN_MS + 3 * HOUR_MS)
    assert begun == [400, 1, len(expected(readings, MINUTE_MS, BEGIN_MS * 2)), 6]
    pieces = await until_done(
        store, lambda database: forget(database, BEGIN_MS + 4 * HOUR_MS, kept)
    )
    raw = sum(at >= BEGIN_MS + HOUR_MS for at, _, _ in readings)
    assert pieces >= (400 - raw) / 50, "a piece is small"
    assert await left(BEGIN_MS + 4 * HOUR_MS) == [raw, 0, begun[2], 6]
    assert await left(BEGIN_MS + 8 * HOUR_MS) == [0, 0, 0, 6]
    assert await left(BEGIN_MS + 12 * HOUR_MS) == [0, 0, 0, 0]


async def test_what_is_not_rolled_up_is_never_forgotten(store: Store) -> None:
    await write(store, some_readings(4))
    await until_done(store, lambda database: forget(database, BEGIN_MS * 2, Kept()))
    assert await rows(store, "SELECT count(*) FROM readings") == [(400,)]


async def test_a_store_that_is_too_large_lets_the_oldest_raw_readings_go(store: Store) -> None:
    readings = [(BEGIN_MS + n * 10, n % 5, 0.5) for n in range(60_000)]
    await write(store, readings)
    now_ms = readings[-1][0] + 2 * MINUTE_MS
    await roll(store, now_ms)
    most = 1 << 20
    assert await run(store, used_bytes) > most
    await until_done(store, lambda database: forget(database, now_ms, Kept(store_bytes=most)))
    assert await run(store, used_bytes) <= most
    [(count, oldest_ms)] = await rows(store, "SELECT count(*), min(at_ms) FROM readings")
    assert 10_000 < count < 60_000
    assert oldest_ms == BEGIN_MS + (60_000 - count) * 10, "the newest stay"
    assert await rows(store, "SELECT sum(count) FROM minutes") == [(60_000,)]


async def test_copies_of_results_go_before_any_reading(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "FORGET_RESULTS", 3)
    readings = some_readings(6)
    await write(store, readings)
    now_ms = BEGIN_MS + 2 * HOUR_MS + 2 * MINUTE_MS
    await roll(store, now_ms)
    minutes = await rows(store, _COUNT.format("minutes"))
    copies = [(f"r/a{n}", "r", n, "result-taken", 1, bytes(100_000)) for n in range(20)]
    sql = "INSERT INTO results (id, run, at_ms, kind, version, body) VALUES (?,?,?,?,?,?)"
    await run(store, lambda database: database.executemany(sql, copies))
    most = 1 << 20
    assert await run(store, used_bytes) > most
    pieces = await until_done(
        store, lambda database: forget(database, now_ms, Kept(store_bytes=most))
    )
    assert pieces >= 3, "a piece is small"
    assert await run(store, used_bytes) <= most
    left = [row[0] for row in await rows(store, "SELECT at_ms FROM results ORDER BY at_ms")]
    assert 0 < len(left) < 20
    assert left == list(range(20))[-len(left) :], "the newest stay"
    assert await rows(store, "SELECT count(*) FROM readings") == [(len(readings),)]
    assert await rows(store, _COUNT.format("minutes")) == minutes


async def test_the_recorder_writes_a_batch_at_once_and_the_rest_after_a_moment(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TELEMETRY_WRITE_MS", 1)
    recorder = Recorder(lambda file: store, ManualClock())
    recorder.add_series((7, "pi", "iot.soil", "%"))
    times = [BEGIN_MS + n for n in range(limits.TELEMETRY_ROWS)]
    recorder.add([(times, 7, [float(at % 10) for at in times])])
    assert recorder.waiting == 0, "a whole batch does not wait"
    recorder.add([((BEGIN_MS - 1,), 7, (3.0,))])
    recorder.add_beat("pi", BEGIN_MS, 4)
    await recorder.close()
    assert (recorder.written, recorder.dropped) == (limits.TELEMETRY_ROWS + 2, 0)
    assert await rows(store, "SELECT count(*) FROM readings") == [(limits.TELEMETRY_ROWS + 1,)]
    assert await rows(store, "SELECT at_ms, node, beat FROM heartbeats") == [(BEGIN_MS, "pi", 4)]
    assert await run(store, known_series) == [(7, "pi", "iot.soil", "%")]


async def test_what_a_broken_disk_refuses_is_dropped_and_counted_and_its_series_come_later(
    store: Store,
) -> None:
    disks: list[Store] = [FailingStore()]
    clock = ManualClock(5_000)
    recorder = Recorder(lambda file: disks[0], clock)
    recorder.add_series((1, "pi", "iot.soil", "%"))
    recorder.add([((1, 2), 1, (1.0, 2.0))])
    recorder.add_beat("pi", 1, 1)
    recorder.write()
    assert (recorder.written, recorder.dropped, recorder.dropped_at_ms) == (0, 3, 5_000)
    disks[0] = store
    recorder.add([((3,), 1, (3.0,))])
    await recorder.close()
    assert await rows(store, "SELECT at_ms, series FROM readings") == [(3, 1)]
    assert await run(store, known_series) == [(1, "pi", "iot.soil", "%")]


async def test_a_disk_that_stands_still_costs_the_oldest_readings_and_no_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "TELEMETRY_UNWRITTEN", 1_000)

    class Still(FailingStore):
        def submit(self, work: Any, done: Any) -> None:
            self.first = self.first if hasattr(self, "first") else work

    recorder = Recorder(lambda file: Still(), ManualClock())
    for number in range(50):
        recorder.add([(range(number * 100, number * 100 + 100), 1, [0.0] * 100)])
        assert recorder.waiting <= 1_000
    assert recorder.full
    # 500 are under way, 1,000 wait: those are the newest
    assert recorder.dropped == 50 * 100 - 500 - 1_000
    assert [min(times) for times, _, _ in recorder._chunks] == list(range(4_000, 5_000, 100))


async def test_upkeep_makes_roll_ups_by_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "UPKEEP_EVERY_MS", 1)
    monkeypatch.setattr(limits, "UPKEEP_PAUSE_MS", 1)
    await write(store, [(BEGIN_MS, 1, 2.0), (BEGIN_MS + MINUTE_MS, 1, 4.0)])
    upkeep = Upkeep(lambda file: store, ManualClock(BEGIN_MS + 2 * HOUR_MS), Kept(), lambda: True)
    upkeep.start()
    async with asyncio.timeout(20):
        while not await rows(store, "SELECT 1 FROM hours"):  # noqa: ASYNC110 - a store has no event
            await asyncio.sleep(0)
    await upkeep.close()
    assert await rows(store, _ROLLED.format("hours")) == [(BEGIN_MS, 1, 2, 2.0, 4.0, 6.0, 4.0)]


async def test_a_file_of_the_version_before_keeps_its_beats(tmp_path: Path) -> None:
    path = tmp_path / "output.db"
    scripts = migrations("output")
    old = Database(path, scripts[:1])
    beats = [("pi", 5, 1, b"\x80"), ("pi", 7, 2, b"\x80"), ("nuc", 5, 1, b"\x80")]
    await run(
        old,
        lambda db: db.executemany(
            "INSERT INTO heartbeats (node, at_ms, beat, health) VALUES (?,?,?,?)", beats
        ),
    )
    await old.close()
    new = Database(path, scripts)
    assert await rows(new, "SELECT at_ms, node, beat FROM heartbeats") == [
        (5, "nuc", 1),
        (5, "pi", 1),
        (7, "pi", 2),
    ]
    assert await rows(new, "PRAGMA user_version") == [(len(scripts),)]
    await new.close()
    assert path.with_name(f"output.db.before-{len(scripts)}").exists()


#: writes, rolls up and forgets as if hours went by; says how far it is; begins where the file ends
_WRITER = """
import sqlite3, sys
from pathlib import Path
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.rollups import HOUR_MS, Kept, forget, roll_up, write_readings
from imlmesh_runtime.sqlite import open_file, transact
begin, end = map(int, sys.argv[2:4])
database = open_file(Path(sys.argv[1]), migrations("output"), synchronous="NORMAL")
kept = Kept(raw_ms=3 * HOUR_MS)
at = begin if (row := database.execute("SELECT max(at_ms) FROM readings").fetchone())[0] is None else row[0] + 5_000
while at < end:
    chunks = [((at,), series, (float(at % 977 + series),)) for series in (1, 2)]
    transact(database, lambda db: write_readings(db, chunks))
    # late for their minutes, and now and then for their hour
    if at % 50_000 == 0:
        late = [((at - 600_001 - series,), series, (1.5,)) for series in (1, 2)]
        transact(database, lambda db: write_readings(db, late))
    transact(database, lambda db: roll_up(db, at) or forget(db, at, kept))
    print(at, flush=True)
    at += 5_000
while transact(database, lambda db: roll_up(db, end + 2 * HOUR_MS)):
    pass
print("done", flush=True)
"""


async def test_kill_at_any_moment_costs_no_roll_up(tmp_path: Path) -> None:
    end_ms = BEGIN_MS + 5 * HOUR_MS

    def writer(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _WRITER, str(tmp_path / name), str(BEGIN_MS), str(end_ms)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def lines(child: subprocess.Popen[str], count: int | None = None) -> str:
        last = ""
        for number, line in enumerate(child.stdout, 1):  # type: ignore[arg-type]
            last = line.strip()
            if number == count:
                break
        return last

    dice = random.Random(7)
    for _ in range(6):
        child = writer("killed.db")
        lines(child, dice.randrange(20, 500))
        child.kill()
        child.wait()
    for name in ("killed.db", "whole.db"):
        child = writer(name)
        assert lines(child) == "done"
        assert child.wait() == 0
    killed, whole = (sqlite3.connect(tmp_path / name) for name in ("killed.db", "whole.db"))
    for tier in ("minutes", "hours"):
        sql = _COUNTS.format(tier)
        mine, other = ({(a, s): n for a, s, n in db.execute(sql)} for db in (killed, whole))
        assert mine.keys() == other.keys()
        # a late pair whose turn the kill took is lost, as what was never written; nothing counts twice
        assert all(0 <= other[key] - mine[key] <= 6 for key in other), tier
        assert sum(other.values()) - sum(mine.values()) <= 12
    sql = """SELECT count(*) FROM minutes m WHERE at_ms > (SELECT min(at_ms) FROM readings) + 60000
        AND count != (SELECT count(*) FROM readings r WHERE r.series = m.series
            AND r.at_ms >= m.at_ms AND r.at_ms < m.at_ms + 60000)"""
    assert killed.execute(sql).fetchone() == (0,), "a roll-up is what its readings say"
    assert killed.execute("PRAGMA integrity_check").fetchone() == ("ok",)
