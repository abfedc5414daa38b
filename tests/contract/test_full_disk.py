"""What a disk without room does to an orchestrator's commits, its telemetry and what it takes."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from imlmesh_orchestrator import room as room_module
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.room import Room
from imlmesh_orchestrator.store.lifecycle import Lifecycle, Marks
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.telemetry import Recorder
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError, StoreError
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.sqlite import Done, MemoryStore, Work, free_space
from waiting import eventually

NEW = Marks(0, 0, 0, 0, 0, 0, 0)
MB = 1 << 20


class FullStore(MemoryStore):
    """Finds no room so many times."""

    def __init__(self, file: str, full: int) -> None:
        super().__init__(migrations(file))
        self.full = full
        self.tries = 0

    def submit(self, work: Work, done: Done) -> None:
        self.tries += 1
        if self.tries <= self.full:
            done(None, StoreError("store.full", "no room"))
        else:
            super().submit(work, done)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STORE_RETRY_MS", 1)


def commit(lifecycle: Lifecycle) -> "asyncio.Future[MeshError | None]":
    ended: asyncio.Future[MeshError | None] = asyncio.get_running_loop().create_future()
    lifecycle.commit([c.EpochRaised(1, "e", 7)], ended.set_result)
    return ended


async def test_a_commit_waits_until_there_is_room_and_is_stored_once() -> None:
    store = FullStore("lifecycle", 5)
    lifecycle = Lifecycle(store, NEW)
    lifecycle.patient = True
    heard: list[Any] = []
    lifecycle.watch(heard.extend)
    ended = commit(lifecycle)
    assert lifecycle.waits
    assert not ended.done()
    async with asyncio.timeout(10):
        # what a watchdog looks at: it lives, although no turn ends
        await lifecycle.tried()
        assert heard == []
        assert await ended is None
    assert (store.tries, lifecycle.waits, lifecycle.last_seq) == (6, False, 1)
    await asyncio.sleep(0)
    assert [seq for seq, _ in heard] == [1]
    assert store.database.execute("SELECT count(*) FROM changes").fetchone() == (1,)


async def test_before_the_start_is_over_and_behind_its_end_nobody_waits() -> None:
    lifecycle = Lifecycle(FullStore("lifecycle", 1_000), NEW)
    error = await commit(lifecycle)
    assert error is not None
    assert error.code == "store.full"
    lifecycle.patient = True
    ended = commit(lifecycle)
    await lifecycle.tried()
    lifecycle.patient = False
    async with asyncio.timeout(10):
        error = await ended
    assert error is not None
    assert (error.code, lifecycle.waits) == ("store.full", False)


async def test_another_fault_of_the_disk_ends_it_at_once() -> None:
    store = FullStore("lifecycle", 0)
    lifecycle = Lifecycle(store, NEW)
    lifecycle.patient = True
    store.database.execute("DROP TABLE changes")
    error = await commit(lifecycle)
    assert error is not None
    assert (error.code, store.tries) == ("store.failed", 1)


async def test_who_asks_in_vain_leaves_nothing_behind() -> None:
    lifecycle = Lifecycle(FullStore("lifecycle", 0), NEW)
    for _ in range(100):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(lifecycle.tried(), 0)
    assert len(lifecycle._awaiting_try) <= 1


async def test_a_disk_has_room_is_low_and_is_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    free = [100 * MB]
    monkeypatch.setattr(room_module, "free_space", lambda folder: (free[0], 64 * MB))
    changed: list[tuple[bool, bool]] = []
    room = Room(Path("/"), lambda: changed.append((room.low(), room.scarce())))
    seen = []
    for left in (100, 63, 33, 31, 0, 40, 65):
        free[0] = left * MB
        room.look()
        seen.append((room.low(), room.scarce()))
        if room.low():
            with pytest.raises(StoreError) as caught:
                room.check()
            assert caught.value.code == "store.full"
        else:
            room.check()
    no, low, scarce = (False, False), (True, False), (True, True)
    assert seen == [no, low, low, scarce, scarce, low, no]
    assert changed == [scarce, low]


async def test_a_disk_that_does_not_say_is_as_it_was_and_asked_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = [OSError(5, "Input/output error"), (63 * MB, 64 * MB)]

    def free_space(folder: Path) -> tuple[int, int]:
        found = told.pop(0) if len(told) > 1 else told[0]
        if isinstance(found, OSError):
            raise found
        return found

    monkeypatch.setattr(room_module, "free_space", free_space)
    monkeypatch.setattr(limits, "ROOM_LOOK_MS", 1)
    room = Room(Path("/"), lambda: None)
    room.start()
    assert not room.low()
    assert "cannot be seen: [Errno 5]" in caplog.text
    await eventually(room.low)
    room.close()


async def test_in_memory_there_is_always_room() -> None:
    room = Room(None, lambda: None)
    room.start()
    room.check()
    room.close()
    assert not room.low()


def test_of_a_small_disk_a_part_is_kept_free(monkeypatch: pytest.MonkeyPatch) -> None:
    for total, floor in ((16 * MB, 16 * MB // 20), (1 << 40, limits.FREE_SPACE_BYTES)):
        usage = shutil._ntuple_diskusage(total, 0, 5)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, found=usage: found)
        assert free_space(Path("/")) == (5, floor)


async def test_telemetry_is_dropped_while_the_disk_is_low_and_kept_afterwards() -> None:
    output, low = MemoryStore(migrations("output")), [True]
    recorder = Recorder(lambda file: output, ManualClock(9), lambda: low[0])
    recorder.add_series((1, "pi-1", "m.x", ""))
    recorder.add([([1, 2], 1, [0.5, 0.5])])
    recorder.add_beat("pi-1", 3, 1)
    recorder.write()
    assert (recorder.dropped, recorder.waiting, recorder.written) == (3, 0, 0)
    assert recorder.dropped_at_ms == 9
    low[0] = False
    recorder.add([([4], 1, [0.5])])
    recorder.write()
    await recorder.close()
    assert (recorder.dropped, recorder.written) == (3, 1)
    # and they are still those of a series that has a name
    query = "SELECT s.metric, r.at_ms FROM readings r JOIN series s ON s.id = r.series"
    assert output.database.execute(query).fetchall() == [("m.x", 4)]
