"""The engine: persist, then act; one commit for many events; a failed commit lets nothing out."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from imlmesh_protocol.errors import MeshError, StoreError
from imlmesh_runtime import engine
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.engine import Engine


class Echo:
    """A core that turns "x" into the change "x!" and the command "do x"; "quiet" into nothing."""

    def __init__(self) -> None:
        self.deadline_ms: int | None = None
        self.handled: list[str] = []

    def handle(self, event: str) -> tuple[list[str], list[str]]:
        self.handled.append(event)
        if event == "boom":
            raise ZeroDivisionError
        if event == "tick":
            self.deadline_ms = None
        changes = [] if event.startswith("quiet") else [f"{event}!"]
        return changes, [f"do {event}"]

    def next_deadline_ms(self) -> int | None:
        return self.deadline_ms


class Rig:
    """An engine whose commits end when the test says so; `log` is what happened, in order."""

    def __init__(self) -> None:
        self.core = Echo()
        self.log: list[str] = []
        self.commits: list[Callable[[MeshError | None], None]] = []
        self.early_ends: dict[str, str] = {}
        #: what does not wait for its commit
        self.hasty: set[str] = set()
        #: whether a commit ends before `commit` returns, as on a quick disk
        self.quick = False
        self.clock = ManualClock()
        self.engine: Engine[str, str, str] = Engine(
            self.core, self, self.commit, self.clock, lambda at_ms: "tick"
        )

    def commit(self, changes: list[str], done: Callable[[MeshError | None], None]) -> None:
        self.log.append(f"commit {' '.join(changes)}")
        if self.quick:
            done(None)
        else:
            self.commits.append(done)

    def early(self, commands: Sequence[str]) -> Sequence[str]:
        for command in commands:
            if command in self.early_ends:
                self.log.append(f"early {command}")
                self.engine.post(self.early_ends[command])
        return [command for command in commands if command not in self.early_ends]

    def ahead(self, commands: Sequence[str]) -> Sequence[str]:
        self.log += [f"ahead {command}" for command in commands if command in self.hasty]
        return [command for command in commands if command not in self.hasty]

    def prepare(self, commands: Sequence[str]) -> None:
        self.prepared = list(commands)
        self.log.append(f"prepare {', '.join(commands)}")

    def release(self) -> None:
        self.log.append("release")

    async def turn(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def ticked(self) -> None:
        async with asyncio.timeout(5):
            while "tick" not in self.core.handled:  # noqa: ASYNC110 - the loop's timer is what is tested
                await asyncio.sleep(0)


async def test_nothing_is_released_before_the_commit_ended() -> None:
    rig = Rig()
    rig.engine.post("a")
    await rig.turn()
    assert rig.log == ["commit a!", "prepare do a"]
    rig.commits.pop()(None)
    assert rig.log[-1] == "release"


async def test_what_need_not_wait_leaves_before_the_commit_and_once() -> None:
    rig = Rig()
    rig.hasty = {"do b", "do quiet"}
    rig.engine.post("a")
    rig.engine.post("b")
    await rig.turn()
    assert rig.log == ["ahead do b", "commit a! b!", "prepare do a"]
    rig.commits.pop()(None)
    rig.engine.post("quiet")
    await rig.turn()
    assert rig.log[3:] == ["release", "prepare do quiet", "release"], (
        "there is no commit to precede"
    )


async def test_events_of_one_turn_share_a_commit() -> None:
    rig = Rig()
    rig.engine.post("a")
    rig.engine.post("b")
    await rig.turn()
    assert rig.log == ["commit a! b!", "prepare do a, do b"]


async def test_events_wait_while_a_commit_is_under_way() -> None:
    rig = Rig()
    rig.engine.post("a")
    await rig.turn()
    rig.engine.post("b")
    await rig.turn()
    assert rig.core.handled == ["a"]
    rig.commits.pop()(None)
    await rig.turn()
    assert rig.log == ["commit a!", "prepare do a", "release", "commit b!", "prepare do b"]


async def test_a_commit_that_ends_at_once_is_followed_by_one_release() -> None:
    rig = Rig()
    rig.quick = True
    rig.early_ends["do a"] = "a-ended"
    rig.engine.post("a")
    await rig.turn()
    assert rig.log == ["early do a", "commit a! a-ended!", "prepare do a-ended", "release"]


async def test_what_was_posted_is_handled_at_once_when_nothing_more_comes() -> None:
    rig = Rig()
    rig.engine.post("a")
    rig.engine.post("b")
    rig.engine.turn_now()
    assert rig.log == ["commit a! b!", "prepare do a, do b"]
    rig.engine.post("c")
    rig.engine.turn_now()
    assert rig.core.handled == ["a", "b"], "a commit is under way"
    await rig.turn()
    rig.commits.pop()(None)
    await rig.turn()
    assert rig.core.handled == ["a", "b", "c"], "once each"


async def test_without_changes_there_is_no_commit() -> None:
    rig = Rig()
    rig.engine.post("quiet")
    await rig.turn()
    assert rig.log == ["prepare do quiet", "release"]


async def test_early_work_that_ends_at_once_rides_on_the_same_commit() -> None:
    rig = Rig()
    rig.early_ends["do a"] = "a-ended"
    rig.engine.post("a")
    await rig.turn()
    assert rig.log == ["early do a", "commit a! a-ended!", "prepare do a-ended"]


async def test_a_failed_commit_stops_the_engine_and_releases_nothing() -> None:
    rig = Rig()
    rig.engine.post("a")
    await rig.turn()
    rig.commits.pop()(StoreError("store.full", "no room"))
    rig.engine.post("b")
    await rig.turn()
    assert "release" not in rig.log
    assert rig.core.handled == ["a"]
    with pytest.raises(StoreError):
        await rig.engine.failed


async def test_a_commit_that_fails_at_once_prepares_nothing() -> None:
    rig = Rig()
    rig.engine._commit = lambda changes, done: done(StoreError("store.failed", "broken"))
    rig.engine.post("a")
    await rig.turn()
    assert rig.log == []
    assert rig.engine.failed.done()


async def test_an_exception_of_the_core_stops_the_engine() -> None:
    rig = Rig()
    rig.engine.post("boom")
    await rig.turn()
    with pytest.raises(ZeroDivisionError):
        await rig.engine.failed
    assert rig.log == []


async def test_quiet_events_come_behind_and_a_few_a_turn() -> None:
    rig = Rig()
    for index in range(50):
        rig.engine.post_quiet(lambda index=index: f"quiet {index}")  # type: ignore[misc]
    rig.engine.post("quiet loud")
    rig.engine._turn()
    assert rig.core.handled[0] == "quiet loud"
    assert len(rig.core.handled) == 21
    for _ in range(10):
        await rig.turn()
    assert len(rig.core.handled) == 51


async def test_a_refused_quiet_event_is_dropped() -> None:
    rig = Rig()
    rig.engine.post_quiet(lambda: None)
    await rig.turn()
    assert rig.core.handled == []


async def test_the_deadline_of_the_core_brings_a_tick() -> None:
    rig = Rig()
    rig.core.deadline_ms = rig.clock.now_ms() + 5
    rig.engine.post("quiet")
    await rig.turn()
    rig.clock.advance(4)
    assert rig.core.handled == ["quiet"]
    rig.clock.advance(1)
    await rig.ticked()
    assert rig.core.handled == ["quiet", "tick"]


async def test_a_deadline_that_passed_in_a_suspend_is_soon_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The clock went on, and the loop's timers did not."""
    monkeypatch.setattr(engine, "TIMER_MS", 10)
    rig = Rig()
    rig.core.deadline_ms = rig.clock.now_ms() + 3_600_000
    rig.engine.post("quiet")
    await rig.turn()
    rig.clock.advance(7_200_000)
    await rig.ticked()
    assert rig.core.handled == ["quiet", "tick"]


async def test_a_stopped_engine_does_nothing_more() -> None:
    rig: Any = Rig()
    rig.engine.stop()
    rig.engine.post("a")
    await rig.turn()
    assert rig.core.handled == []


async def test_a_commit_that_raises_stops_the_engine() -> None:
    rig = Rig()

    def commit(changes: list[str], done: Callable[[MeshError | None], None]) -> None:
        raise OverflowError("a number that no store can hold")

    rig.engine._commit = commit
    rig.engine.post("a")
    await rig.turn()
    assert isinstance(rig.engine.failed.exception(), OverflowError)
    assert rig.log == []
