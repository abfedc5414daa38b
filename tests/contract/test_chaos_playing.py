"""How scenarios are played one after the other: what fails in one is told, and costs no other its result."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from imlmesh.chaos import playing
from imlmesh.chaos.field import Field
from imlmesh.chaos.plans import Work, marked
from imlmesh.chaos.playing import BUSY_AGAIN_S, Order, play
from imlmesh.chaos.table import Scenario
from imlmesh.chaos.trial import Measured, Trial
from imlmesh.chaos.watching import Seen
from imlmesh_orchestrator.core.changes import ActionUnknown, RunEnded
from imlmesh_protocol.errors import Fault, MeshError
from imlmesh_protocol.states import RunState

SECONDS = 300.0
RUN = "r-1-abcd"


class Place:
    """Stands for the mesh: `fails` has the name of a call and what it raises, and when, from 1."""

    def __init__(self, fails: tuple[str, Exception, int] | None = None) -> None:
        self.calls: list[str] = []
        self.watcher = self
        self.seen: list[Seen] = []
        self._fails = fails

    def since(self, _: float) -> Iterator[Any]:
        return iter(self.seen)

    async def settle(self) -> None:
        self._call("settle")

    async def mend(self) -> None:
        self._call("mend")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self._fails and self._fails[::2] == (name, self.calls.count(name)):
            raise self._fails[1]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder of the mesh is made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def opened(place: Place, closing: Callable[[], Awaitable[None]] | None = None) -> Any:
    @contextlib.asynccontextmanager
    async def opened_field(folder: Path) -> AsyncIterator[Place]:
        (folder / "log").write_text("evidence")
        try:
            yield place
        finally:
            if closing is not None:
                await closing()

    return opened_field


def scenario(name: str, act: Callable[[Trial], Awaitable[None]]) -> Scenario:
    return Scenario(name, (), play=act, person=False)


async def fine(_: Trial) -> None:
    pass


async def rows_of(
    place: Place, monkeypatch: pytest.MonkeyPatch, *scenarios: Scenario, runs: int = 1
) -> tuple[list[dict[str, Any]], Path | None, list[Measured]]:
    monkeypatch.setattr(playing, "opened_field", opened(place))
    told: list[Measured] = []
    order = Order(scenarios, runs, 1, SECONDS, 1)
    rows, kept = await play(order, lambda *words: told.append(words[-1]))
    return rows, kept, told


async def test_whatever_fails_in_a_scenario_is_its_result_and_the_next_is_played(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_room(_: Trial) -> None:
        raise OSError(28, "No space left on device")

    async def no_link(_: Trial) -> None:
        raise subprocess.CalledProcessError(2, ("ip", "link"), stderr="no such device\n")

    acts = {"one": no_room, "two": no_link, "three": fine}
    wanted = [scenario(*each) for each in acts.items()]
    rows, kept, told = await rows_of(Place(), monkeypatch, *wanted)
    assert [row["n"] for row in rows] == [1, 1, 1]
    assert rows[0]["broken"] == ["OSError: [Errno 28] No space left on device"]
    (why,) = rows[1]["broken"]
    assert why.startswith("CalledProcessError: ")
    assert why.endswith("no such device")
    assert rows[2]["broken"] == []
    assert len(told) == 3
    assert kept is not None
    assert (kept / "log").read_text() == "evidence"


async def test_what_cannot_be_judged_is_told_and_the_next_is_played(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(("mend", MeshError("broker.failed", "no answer"), 1))
    rows, kept, _ = await rows_of(place, monkeypatch, scenario("one", fine), scenario("two", fine))
    assert len(rows[0]["broken"]) == 1
    assert "no answer" in rows[0]["broken"][0]
    assert (rows[1]["n"], rows[1]["broken"]) == (1, [])
    assert kept is not None


async def test_a_mesh_that_cannot_be_mended_ends_it_with_the_rows_so_far(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(("settle", MeshError("process.failed", "nodes never came"), 4))
    wanted = [scenario(name, fine) for name in ("one", "two", "three")]
    rows, kept, told = await rows_of(place, monkeypatch, *wanted, runs=2)
    assert [(row["scenario"], row["n"]) for row in rows] == [("one", 2), ("two", 1)]
    (why,) = rows[1]["broken"]
    assert "nothing more was played" in why
    assert "nodes never came" in why
    assert [each.played for each in told] == [True, True, True, False]
    assert kept is not None


def test_nothing_is_kept_of_what_is_whole(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, kept, _ = asyncio.run(rows_of(Place(), monkeypatch, scenario("one", fine)))
    assert kept is None
    assert list(room.iterdir()) == []


def test_what_fails_outside_of_any_scenario_leaves_its_evidence(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closing() -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(playing, "opened_field", opened(Place(), closing))
    with pytest.raises(OSError, match="Input/output"):
        asyncio.run(play(Order((scenario("one", fine),), 1, 1, 1.0, 1), lambda *_: None))
    (folder,) = room.iterdir()
    assert (folder / "log").read_text() == "evidence"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_ends_it_and_the_next_disturb_no_clean_up(
    room: Path, monkeypatch: pytest.MonkeyPatch, first: signal.Signals
) -> None:
    cleaned = []

    async def closing() -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            # the loop takes both turns that a signal needs to cancel somebody
            for _ in range(10):
                await asyncio.sleep(0.001)
        cleaned.append(True)

    async def ended(_: Trial) -> None:
        os.kill(os.getpid(), first)
        await asyncio.Event().wait()

    monkeypatch.setattr(playing, "opened_field", opened(Place(), closing))
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(play(Order((scenario("one", ended),), 1, 1, 1.0, 1), lambda *_: None))
    assert cleaned == [True]
    assert list(room.iterdir()) == []


async def test_what_is_random_is_drawn_from_the_seed_and_one_time_is_as_long_as_asked(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []

    async def draws(trial: Trial) -> None:
        drawn.append((trial.dice.random(), trial.busy_s))

    for _ in range(2):
        await rows_of(Place(), monkeypatch, scenario("one", draws), runs=2)
    assert drawn[:2] == drawn[2:]
    assert drawn[0][0] != drawn[1][0]
    assert [busy_s for _, busy_s in drawn[:2]] == [SECONDS, BUSY_AGAIN_S]


class Ended(Place):
    """The mesh after a run of two effects, one behind the other, that ended as it is told."""

    def __init__(self, state: str, *states: str) -> None:
        super().__init__()
        self.seen = [Seen(0.0, RunEnded(1, "c", RUN, RunState(state), None, False, False))]
        actions = [{"id": f"mark-0-{row}", "state": each} for row, each in enumerate(states)]
        self._run = {"run": RUN, "state": state, "ended_at_ms": 1, "actions": actions}

    async def until(self, _path: str, _holds: Callable[..., Any]) -> dict[str, Any]:
        return self._run

    def files(self) -> list[Path]:
        return []


async def broken_in(place: Ended, work: Work) -> list[str]:
    trial = Trial(cast("Field", place), random.Random(1), person=False)
    trial.works[RUN] = work
    found = await trial.judge()
    assert found.lost == []
    return found.broken


async def test_actions_that_fail_and_are_skipped_silently_are_no_whole_round() -> None:
    """As if the kill of an orchestrator failed what ran, and all behind it was never done."""
    place = Ended("failed", "failed", "skipped")
    told = f"{RUN}: 2 did not complete and nobody was asked: mark-0-0 is failed"
    assert await broken_in(place, marked(1, 2, 0)) == [told]
    place.seen.append(
        Seen(0.0, ActionUnknown(1, "c", RUN, "mark-0-0", "d", Fault("node.lost", "gone")))
    )
    assert await broken_in(place, marked(1, 2, 0)) == []
    # where no node dies not even a question explains it
    (otherwise,) = await broken_in(place, marked(1, 2, 0, ends_as_told=True))
    assert "ended otherwise" in otherwise
