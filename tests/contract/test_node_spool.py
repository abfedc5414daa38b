"""The spool over a real file and over memory: what it keeps, gives back and drops; the drain behind it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from imlmesh_node import spool as spool_file
from imlmesh_node import stock
from imlmesh_node.drain import Drain
from imlmesh_node.spool import MIGRATIONS, Kept, Spool
from imlmesh_node.stock import Sort
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_runtime.clock import MeshClock, boot_ms
from imlmesh_runtime.sqlite import Database, FailingStore, MemoryStore, Store, run
from waiting import eventually

WITHIN_S = 10


class Rig:
    """A spool that is opened again and again, as restarts do."""

    def __init__(self, make_store: Callable[[], Store]) -> None:
        self._make_store = make_store
        self._store: Store | None = None
        self.clock = MeshClock()
        self.notes: Counter[str] = Counter()
        self.fault: Fault | None = None

    def open(self, *, load: bool = True) -> Spool:
        made = Spool(self._make, self.clock, lambda: self.fault, self._note)
        if load:
            made.load()
        return made

    async def reopen(self) -> Spool:
        """As after an end that wrote down everything."""
        if self._store is not None:
            await run(self._store, lambda database: None)
        return self.open()

    def _make(self) -> Store:
        self._store = self._make_store()
        return self._store

    def _note(self, code: str, text: str, count: int) -> None:
        self.notes[code] += count


@pytest.fixture(params=["file", "memory"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    memory = MemoryStore(MIGRATIONS)
    opened: list[Store] = []

    def make() -> Store:
        if request.param == "memory":
            return memory
        path = tmp_path / "spool.db"
        opened.append(Database(path, MIGRATIONS, synchronous="NORMAL", presize_bytes=0))
        return opened[-1]

    yield Rig(make)
    for store in opened:
        await store.close()


async def ready(kept: Spool, records: int) -> None:
    await eventually(lambda: len(kept.stock) == records)


async def read_all(kept: Spool, sort: Sort) -> list[Kept]:
    ended: asyncio.Future[list[Kept]] = asyncio.get_running_loop().create_future()
    kept.read(kept.stock.oldest(sort, 1_000_000), ended.set_result)
    return await asyncio.wait_for(ended, WITHIN_S)


async def test_what_is_kept_comes_back_after_a_restart_in_order_and_with_its_age(rig: Rig) -> None:
    kept = rig.open(load=False)
    at_ms = boot_ms() - 60_000
    assert kept.keep(Sort.EVENTS, [(at_ms, "gpio-4", {"value": 1}), (at_ms + 1, "gpio-4", {})])
    assert kept.keep(Sort.READINGS, [(at_ms, "iot", "iot.soil", "%", 1.5)])
    assert kept.keep(Sort.EVENTS, [(at_ms + 2, "gpio-5", {"value": None})])
    again = await rig.reopen()
    await ready(again, 4)
    rig.clock.sync(rig.clock.now_ms() + 5_000)  # the time was known late: what waits moves with it
    events = await read_all(again, Sort.EVENTS)
    assert [each.values for each in events] == [
        ("gpio-4", {"value": 1}),
        ("gpio-4", {}),
        ("gpio-5", {"value": None}),
    ]
    assert all(60_000 <= each.age_ms + 2 < 60_000 + WITHIN_S * 1_000 for each in events)
    (reading,) = await read_all(again, Sort.READINGS)
    assert reading.values == ("iot", "iot.soil", "%", 1.5)
    assert abs(reading.at_ms - (rig.clock.now_ms() - 60_000)) < WITHIN_S * 1_000


async def test_a_time_that_was_known_stays_as_it_is(rig: Rig) -> None:
    """So a reading that goes out again, after the clock was set again, is the same reading."""
    rig.clock.sync(5_000_000)
    kept = rig.open(load=False)
    kept.keep(Sort.READINGS, [(boot_ms(), "iot", "iot.soil", "", 1)])
    again = await rig.reopen()
    await ready(again, 1)
    (before,) = await read_all(again, Sort.READINGS)
    rig.clock.sync(5_000_000 + 60_000)
    (after,) = await read_all(again, Sort.READINGS)
    assert before.at_ms == after.at_ms
    assert abs(after.at_ms - 5_000_000) < WITHIN_S * 1_000


async def test_of_another_boot_of_the_machine_the_time_is_what_it_was_thought_to_be(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = rig.open(load=False)
    thought_ms = rig.clock.now_ms()
    kept.keep(Sort.READINGS, [(boot_ms(), "iot", "iot.soil", "", 1)])
    monkeypatch.setattr(spool_file, "machine_boot", lambda: "another")
    rig.clock.sync(rig.clock.now_ms() + 3_600_000)
    again = await rig.reopen()
    await ready(again, 1)
    (reading,) = await read_all(again, Sort.READINGS)
    assert abs(reading.at_ms - thought_ms) < WITHIN_S * 1_000
    assert abs(reading.age_ms - 3_600_000) < WITHIN_S * 1_000


async def test_what_is_too_much_is_dropped_counted_and_told_also_after_a_restart(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stock._MOST, Sort.READINGS, 5)
    kept = rig.open(load=False)
    kept.keep(Sort.EVENTS, [(1, "gpio-4", {})])
    for number in range(8):
        kept.keep(Sort.READINGS, [(number, "iot", "iot.soil", "", number)])
    told = {"spooled_records": 6, "dropped_readings": 3}
    assert (kept.health(), rig.notes) == (told, {"spool.full": 3})
    again = await rig.reopen()
    await ready(again, 6)
    assert again.health() == told
    assert [each.values[-1] for each in await read_all(again, Sort.READINGS)] == [3, 4, 5, 6, 7]


async def test_without_room_on_the_disk_it_takes_nothing(rig: Rig) -> None:
    kept = rig.open(load=False)
    rig.fault = Fault("journal.full", "no room")
    assert kept.keep(Sort.EVENTS, [(1, "gpio-4", {})]) is False
    rig.fault = None
    assert kept.keep(Sort.EVENTS, [(1, "gpio-4", {})]) is True
    assert len(kept.stock) == 1


async def test_a_disk_that_fails_costs_what_was_to_be_written_and_says_so() -> None:
    rig = Rig(FailingStore)
    kept = rig.open(load=False)
    kept.keep(Sort.READINGS, [(1, "iot", "iot.soil", "", 1), (2, "iot", "iot.soil", "", 1)])
    assert (kept.health(), rig.notes) == ({"dropped_readings": 2}, {"spool.full": 2})


async def test_a_torn_spool_is_set_aside_and_the_node_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(b"torn" * 5_000)
    kept = Spool.at(path, MeshClock(), lambda: None, lambda code, text, count: None)
    await eventually(lambda: kept.keep(Sort.EVENTS, [(1, "gpio-4", {})]))
    await eventually(lambda: any(".lost-" in each.name for each in tmp_path.iterdir()))
    await kept.close()


async def test_a_node_that_is_never_cut_off_has_no_such_file(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    kept = Spool.at(path, MeshClock(), lambda: None, lambda code, text, count: None)
    await kept.close()
    assert not path.exists()


class Way:
    """Session, link and agent, as a test says."""

    session: int | None = None
    unacked = 0
    unsettled = 0


class Draining:
    def __init__(self, kept: Spool) -> None:
        self.way = Way()
        self.sent: list[tuple[Sort, Kept]] = []
        self.drain = Drain(kept, self.way, self._send)
        self.kept = kept
        self.now_ms = 0

    def _send(self, sort: Sort, records: list[Kept]) -> None:
        self.sent += [(sort, each) for each in records]

    async def turns(self, count: int = 1) -> int:
        """How many records went out in so many turns."""
        before = len(self.sent)
        for _ in range(count):
            self.now_ms += limits.SPOOL_TURN_MS
            self.drain.turn(self.now_ms)
            await eventually(lambda: not self.drain._reading or self.way.session is None)
        return len(self.sent) - before


@pytest.fixture
async def draining(rig: Rig) -> Draining:
    kept = rig.open(load=False)
    for number in range(3):
        kept.keep(Sort.READINGS, [(number, "iot", "iot.soil", "", number)] * 600)
    for number in range(30):
        kept.keep(Sort.EVENTS, [(number, "gpio-4", {"value": number})])
    return Draining(kept)


async def test_it_drains_events_first_then_readings_then_rests(draining: Draining) -> None:
    assert await draining.turns(3) == 0
    draining.way.session = 1
    await draining.turns(20)
    values = [kept.values[1]["value"] for sort, kept in draining.sent if sort is Sort.EVENTS]
    assert values == list(range(30))
    sorts = [sort for sort, _ in draining.sent]
    assert sorts == sorted(sorts)
    assert len(sorts) == 30 + 1_800
    assert (len(draining.kept.stock), draining.kept.stock.size) == (0, 0)
    assert await draining.turns(5) == 0


async def test_results_go_first_but_not_for_ever(draining: Draining) -> None:
    draining.way.session, draining.way.unsettled = 1, 3
    assert await draining.turns(50) == 0
    draining.way.unsettled = 0
    assert await draining.turns(2) == limits.SPOOL_EVENTS_ROW
    draining.way.session, draining.way.unsettled = 2, 1
    assert await draining.turns(limits.SPOOL_PATIENCE_MS // limits.SPOOL_TURN_MS) == 0
    assert await draining.turns(3) > 0


async def test_it_waits_behind_live_messages(draining: Draining) -> None:
    draining.way.session, draining.way.unacked = 1, limits.SPOOL_UNACKED + 1
    assert await draining.turns(100) == 0
    draining.way.unacked = limits.SPOOL_UNACKED
    assert await draining.turns(1) > 0
    # the next one only when the broker has the last
    assert await draining.turns(10) == 0
    draining.way.unacked = 0
    assert await draining.turns(1) > 0


async def test_what_the_disk_changed_is_dropped_counted_and_waited_for_by_nobody(
    draining: Draining, rig: Rig
) -> None:
    spoil = "UPDATE records SET body = x'c1' WHERE number = (SELECT min(number) FROM records)"
    await run(draining.kept._store, lambda database: database.execute(spoil) and None)  # type: ignore[arg-type]
    draining.way.session = 1
    await draining.turns(20)
    assert len(draining.sent) == 1_830 - 600
    assert len(draining.kept.stock) == 0
    assert draining.kept.health() == {"dropped_readings": 600}
    assert rig.notes == {"spool.full": 600}
    again = await rig.reopen()
    await eventually(lambda: again.health() == {"dropped_readings": 600})


async def test_what_a_broken_session_took_along_goes_out_again(draining: Draining) -> None:
    draining.way.session = 1
    await draining.turns(2)
    first = len(draining.sent)
    draining.way.session = None
    await draining.turns(2)
    draining.way.session = 2
    await draining.turns(2)
    again = draining.sent[first:]
    assert [(sort, kept.values) for sort, kept in again] == [
        (sort, kept.values) for sort, kept in draining.sent[:first]
    ]
    assert len(draining.kept.stock) == 1_830
