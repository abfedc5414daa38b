"""One body over the stores of the orchestrator: a real file, memory, and one that always fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.apply import apply
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.store.ledger import LedgerFile
from imlmesh_orchestrator.store.lifecycle import Lifecycle, Marks, Replay, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.mover import Mover
from imlmesh_orchestrator.store.projections import Source
from imlmesh_orchestrator.store.reading import FailingReader, FileReader, MemoryReader, Reader
from imlmesh_orchestrator.views import approvals, runs, stories
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, InputError, StoreError
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.states import (
    ActionState,
    Admission,
    ApprovalState,
    DispatchState,
    Effect,
    Liveness,
    RunState,
)
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.sqlite import Database, FailingStore, MemoryStore, Store

RUN = "r-1-bcdf"
OTHER = "r-2-bcdf"


@dataclass
class Twin:
    stores: dict[str, Store]
    readers: dict[str, Reader]

    async def lifecycle(self) -> tuple[Lifecycle, Replay]:
        held = await self.readers["lifecycle"].ask(replay)
        return Lifecycle(self.stores["lifecycle"], held.marks), held

    async def mover(
        self, lifecycle: Lifecycle, clock: ManualClock, on_behind: Callable[[bool], None]
    ) -> Mover:
        open_store = self.stores.__getitem__
        ledger = LedgerFile(open_store, lifecycle.last_seq)
        await ledger.load()
        return Mover(lifecycle, self.readers["lifecycle"], open_store, clock, on_behind, ledger)

    async def rows(self, file: str, sql: str) -> list[Any]:
        return await self.readers[file].ask(lambda database: database.execute(sql).fetchall())


@pytest.fixture(params=["real", "memory"])
async def twin(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Twin]:
    stores: dict[str, Store] = {}
    readers: dict[str, Reader] = {}
    for file in ("lifecycle", "output", "input", "metadata"):
        if request.param == "real":
            path = tmp_path / f"{file}.db"
            stores[file] = Database(path, migrations(file))
            readers[file] = FileReader(path)
        else:
            stores[file] = MemoryStore(migrations(file))
            readers[file] = MemoryReader(stores[file])
    yield Twin(stores, readers)
    for file in stores:
        readers[file].close()
        await stores[file].close()


async def commit(lifecycle: Lifecycle, *changes: c.Change) -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    lifecycle.commit(
        list(changes),
        lambda error: future.set_exception(error) if error else future.set_result(None),
    )
    await future


def described(node: str) -> c.NodeDescribed:
    return c.NodeDescribed(
        1, "m", node, f"{node}-alias", 1, 1, Manifest(), {}, "readonly", 2_000, 6_000
    )


def created(run: str, *names: str) -> c.RunCreated:
    plan = Plan.model_validate(
        {
            "plan_id": "p",
            "actions": [{"id": name, "module": "toy", "action": "look"} for name in names],
        }
    )
    counter, digest = int(run.split("-")[1]), f"digest-{run}"
    return c.RunCreated(10, "q-1-1", run, counter, plan, digest, "me", 999, 0, 0)


def planned(run: str, action: str, node: str = "pi-1", attempt: int = 1) -> c.DispatchPlanned:
    name = f"{run}/{action}/{node}/{attempt}"
    return c.DispatchPlanned(
        11,
        "q-1-1",
        run,
        name,
        action,
        node,
        attempt,
        b"bin",
        b"hash",
        Effect.ONCE,
        60_000,
        6_000,
        "ask",
    )


def taken(run: str, action: str, result: Any = None, attempt: int = 1) -> c.ResultTaken:
    name = f"{run}/{action}/pi-1/{attempt}"
    done = (DispatchState.COMPLETED, ActionState.COMPLETED)
    return c.ResultTaken(20, "m-2", run, name, action, *done, result, None, 7)


def ended(run: str) -> c.RunEnded:
    return c.RunEnded(30, "m-3", run, RunState.COMPLETED, None, False, False)


async def test_seqs_rise_and_watchers_hear_after_the_commit(twin):
    lifecycle, _ = await twin.lifecycle()
    heard: list[Any] = []
    told = asyncio.Event()
    lifecycle.watch(heard.extend)
    lifecycle.watch(lambda _: told.set())
    first, second = described("pi-1"), created(RUN, "a")
    lifecycle.commit([first, second], lambda error: heard.append((0, error)))
    await told.wait()
    assert heard == [(0, None), (1, first), (2, second)]
    assert (lifecycle.before_seq, lifecycle.last_seq) == (0, 2)
    await commit(lifecycle, planned(RUN, "a"))
    assert (lifecycle.before_seq, lifecycle.last_seq) == (2, 3)
    again, held = await twin.lifecycle()
    assert (again.last_seq, held.marks.run_counter) == (3, 1)


async def test_a_watcher_that_fails_harms_nobody(twin, caplog):
    lifecycle, _ = await twin.lifecycle()
    heard: list[Any] = []

    def fail(numbered: Any) -> None:
        raise ZeroDivisionError

    lifecycle.watch(fail)
    lifecycle.watch(heard.extend)
    for name in ("pi-1", "pi-2"):
        await commit(lifecycle, described(name))
        lifecycle.tell()
    assert [change.node for _, change in heard] == ["pi-1", "pi-2"]
    assert "a watcher failed" in caplog.text


async def test_replay_gives_the_state_of_what_goes_on(twin):
    lifecycle, _ = await twin.lifecycle()
    story = [
        c.EpochRaised(1, "e", 3),
        described("pi-1"),
        c.LivenessChanged(2, "m", "pi-1", Liveness.ONLINE, "birth"),
        described("pi-2"),
        c.LivenessChanged(3, "m", "pi-2", Liveness.ONLINE, "birth"),
        c.LabelsChanged(3, "q", "pi-2", {"room": "shed"}),
        c.LivenessChanged(4, "m", "pi-2", Liveness.SUSPECT, "will"),
        c.LivenessChanged(5, "m", "pi-2", Liveness.LOST, "silence"),
        c.GroupChanged(5, "q", "both", ("pi-1", "pi-2")),
        c.GroupChanged(5, "q", "gone", ("pi-1",)),
        c.GroupChanged(6, "q", "gone", ()),
        created(RUN, "a", "b"),
        planned(RUN, "a"),
        c.DispatchAccepted(12, "m", RUN, f"{RUN}/a/pi-1/1"),
        taken(RUN, "a"),
        planned(RUN, "b"),
    ]
    ended_run = [created(OTHER, "a"), planned(OTHER, "a"), taken(OTHER, "a"), ended(OTHER)]
    for change in (*story, *ended_run):
        await commit(lifecycle, change)
    _, held = await twin.lifecycle()
    expected, found = State(), State()
    for change in story:
        apply(expected, change)
    for change in held.changes:
        apply(found, change)
    expected.generation = found.generation = 0
    assert found == expected
    marks = held.marks
    assert (marks.epoch, marks.run_counter, marks.seq, marks.at_ms) == (3, 2, 20, 30)
    assert not [change for change in held.changes if getattr(change, "run", None) == OTHER]


async def test_a_run_says_from_which_absent_node_it_waits_for_word(twin):
    lifecycle, _ = await twin.lifecycle()
    ask = twin.readers["lifecycle"].ask
    await commit(lifecycle, created(RUN, "a", "b"), planned(RUN, "a"))
    said = []
    for liveness in (Liveness.ONLINE, Liveness.SUSPECT, Liveness.LOST):
        await commit(lifecycle, c.LivenessChanged(9, "m", "pi-1", liveness, "silence"))
        said.append((await ask(lambda db: runs.show_run(db, "r-1", str, {})))["waits_for"])
    assert said == [[], [], ["word of a from pi-1 (lost)"]]
    await commit(lifecycle, taken(RUN, "a"))
    assert (await ask(lambda db: runs.list_runs(db, str, 9, None, "")))[0]["waits_for"] == []


async def test_a_run_is_shown_as_its_changes_say(twin):
    lifecycle, _ = await twin.lifecycle()
    ask = twin.readers["lifecycle"].ask
    lifecycle.expect("q-1-1", Source("a.yaml", {"a": (4, 5)}))
    await commit(lifecycle, created(RUN, "a", "b", "c", "d"))
    assert (await ask(lambda db: runs.list_runs(db, str, 9, None, "")))[0]["state"] == "pending"
    lost = Fault("node.lost", "silent")
    unknown = c.ActionUnknown(25, "m", RUN, "b", f"{RUN}/b/pi-1/1", lost)
    await commit(lifecycle, planned(RUN, "a"), planned(RUN, "b"), taken(RUN, "a", {"x": b"raw"}))
    await commit(
        lifecycle,
        c.DispatchEnded(25, "m", RUN, f"{RUN}/b/pi-1/1", DispatchState.UNKNOWN, lost),
        unknown,
        c.ApprovalAsked(
            25,
            "m",
            RUN,
            "a-1",
            1,
            "lost_effect",
            "b",
            f"{RUN}/b/pi-1/1",
            "Did it?",
            ("done", "fail"),
            "fail",
            99,
            "",
            "",
        ),
        c.ActionWaiting(26, "m", RUN, "c", {"pi-1": "node.lost"}),
    )
    shown = await ask(lambda db: runs.show_run(db, "r-1", str, {("toy", "look"): "pure"}))
    assert shown["state"] == "running"
    assert shown["counts"] == {"completed": 1, "unknown": 1, "waiting": 1, "pending": 1}
    assert shown["waits_for"] == ["approval a-1 of b", "a node for c (pi-1 node.lost)"]
    a, b, waiting, d = shown["actions"]
    assert (a["state"], a["result"], a["duration_ms"], a["line"]) == (
        "completed",
        {"x": b"raw"},
        7,
        4,
    )
    assert (b["state"], b["error"]["code"], b["effect"]) == ("unknown", "node.lost", "once")
    assert (waiting["node"], waiting["reasons"], d["effect"]) == (
        None,
        {"pi-1": "node.lost"},
        "pure",
    )
    # a person answers, the work is placed again and ends
    await commit(
        lifecycle,
        c.ApprovalClosed(40, "q", RUN, "a-1", ApprovalState.APPROVED, "rerun", "me"),
        c.DispatchEnded(40, "q", RUN, f"{RUN}/b/pi-1/1", DispatchState.SUPERSEDED, lost),
        c.ActionWaiting(40, "q", RUN, "b", {}),
        planned(RUN, "b", attempt=2),
    )
    again = await ask(lambda db: runs.show_run(db, RUN, str, {}))
    assert (again["actions"][1]["state"], again["actions"][1]["attempt"]) == ("running", 2)
    await commit(
        lifecycle,
        taken(RUN, "b", attempt=2),
        c.ActionsEnded(50, "m", RUN, ("c", "d"), ActionState.SKIPPED, lost),
        c.RunEnded(50, "m", RUN, RunState.FAILED, lost, True, False),
    )
    last = await ask(lambda db: runs.show_run(db, RUN, str, {}))
    assert (last["state"], last["unconfirmed"], last["error"]["code"]) == (
        "failed",
        True,
        "node.lost",
    )
    assert [each["state"] for each in last["actions"]] == [
        "completed",
        "completed",
        "skipped",
        "skipped",
    ]
    assert last["waits_for"] == []
    answered = await ask(lambda db: approvals.show_approval(db, "a-1"))
    assert (answered["state"], answered["option"], answered["by"]) == ("approved", "rerun", "me")
    assert len(await ask(lambda db: stories.story(db, RUN, str))) == last["seq"]
    with pytest.raises(InputError, match=r"run\.not_found"):
        await ask(lambda db: runs.find_run(db, "r-9"))


async def test_of_two_ends_in_one_commit_the_later_counts_and_nobody_elses(twin):
    lifecycle, _ = await twin.lifecycle()
    names = [f"a{number}" for number in range(40)]
    await commit(lifecycle, created(RUN, *names), *(planned(RUN, name) for name in names))
    lost = DispatchState.UNKNOWN
    ends = [c.DispatchEnded(4, "c", RUN, f"{RUN}/{name}/pi-1/1", lost, None) for name in names]
    await commit(lifecycle, *ends, *(taken(RUN, name, {"n": name}) for name in names[::2]))
    found = await twin.rows("lifecycle", "SELECT dispatch, state, action_state FROM dispatches")
    late = {f"{RUN}/{name}/pi-1/1" for name in names[::2]}
    assert {tuple(row) for row in found} == {
        (name, "completed", "completed") if name in late else (name, "unknown", None)
        for name in (f"{RUN}/{each}/pi-1/1" for each in names)
    }


async def test_prefixes_find_one_run_or_say_which(twin):
    lifecycle, _ = await twin.lifecycle()
    await commit(lifecycle, created(RUN, "a"), created(OTHER, "a"))
    ask = twin.readers["lifecycle"].ask
    assert await ask(lambda db: runs.find_run(db, "r-2")) == OTHER
    with pytest.raises(InputError) as caught:
        await ask(lambda db: runs.find_run(db, "r-"))
    assert caught.value.code == "run.ambiguous"
    listed = await ask(lambda db: runs.list_runs(db, str, 1, 2, ""))
    assert [run["run"] for run in listed] == [RUN]
    await commit(lifecycle, created("r-10-bcdf", "a"), created("r-11-bcdf", "a"))
    # a whole number is not the beginning of another one
    assert await ask(lambda db: runs.find_run(db, "r-1")) == RUN
    assert await ask(lambda db: runs.find_run(db, "r-10")) == "r-10-bcdf"
    with pytest.raises(InputError, match=r"run\.not_found"):
        await ask(lambda db: runs.find_run(db, ""))


async def test_a_plan_is_written_once_however_often_it_runs(twin):
    lifecycle, _ = await twin.lifecycle()
    first = created(RUN, "a")
    again = replace(created(OTHER, "a"), digest=first.digest)
    await commit(lifecycle, first)
    await commit(lifecycle, again)
    assert await twin.rows("lifecycle", "SELECT digest FROM plans") == [(first.digest,)]
    assert await twin.rows("lifecycle", "SELECT seq, id FROM outflow") == [(1, first.digest)]
    # who starts anew knows nothing of it, and doubles nothing
    restarted, _ = await twin.lifecycle()
    await commit(restarted, replace(again, run="r-3-bcdf", counter=3))
    assert await twin.rows("lifecycle", "SELECT digest FROM plans") == [(first.digest,)]
    ask = twin.readers["lifecycle"].ask
    assert [
        action.id for action in (await ask(lambda db: runs.plan_of(db, first.digest))).actions
    ] == ["a"]


async def test_the_mover_copies_once_and_lets_go(twin):
    lifecycle, _ = await twin.lifecycle()
    clock = ManualClock(100)
    told: list[bool] = []
    mover = await twin.mover(lifecycle, clock, told.append)
    await commit(lifecycle, created(RUN, "a"), planned(RUN, "a"))
    await commit(lifecycle, taken(RUN, "a", {"x": 1}), ended(RUN))
    assert lifecycle.outflow(clock.now_ms())[0] == 2
    clock.advance(limits.OUTFLOW_AGE_MS)
    mover.measure()
    assert told == [True]
    assert await mover.move() is False
    assert (told, lifecycle.outflow(clock.now_ms())) == ([True, False], (0, 0))
    late = c.ResultKept(60, "m", RUN, f"{RUN}/a/pi-1/1", "completed", 1, None)
    await commit(lifecycle, late)
    left = await twin.rows("lifecycle", "SELECT seq FROM outflow")
    assert left == [(5,)], "what was copied leaves with the next commit"
    # a mover that starts anew copies again what it finds; nothing is doubled
    await mover.move()
    again = await twin.mover(lifecycle, clock, told.append)
    await again.move()
    results = await twin.rows("output", "SELECT id, run, kind FROM results ORDER BY at_ms")
    assert results == [
        (f"{RUN}/a/pi-1/1", RUN, "result-taken"),
        (f"{RUN}/a/pi-1/1@5", RUN, "result-kept"),
    ]
    [(digest, document)] = await twin.rows("input", "SELECT digest, document FROM plans")
    assert digest == f"digest-{RUN}"
    assert Plan.model_validate_json(document).actions[0].id == "a"


async def test_a_store_that_fails_says_so_and_tells_no_watcher():
    lifecycle = Lifecycle(FailingStore(), Marks(4, 0, 0, 0, 0, 0, 0))
    heard: list[Any] = []
    lifecycle.watch(heard.extend)
    with pytest.raises(StoreError) as caught:
        await commit(lifecycle, created(RUN, "a"))
    assert (caught.value.code, heard, lifecycle.last_seq) == ("store.failed", [], 4)
    told: list[bool] = []
    mover = Mover(
        lifecycle,
        FailingReader(),
        lambda file: FailingStore(),
        ManualClock(),
        told.append,
        LedgerFile(lambda file: FailingStore()),
    )
    with pytest.raises(StoreError):
        await mover.move()


async def test_a_question_that_nobody_waits_for_harms_nobody(tmp_path):
    path = tmp_path / "lifecycle.db"
    store = Database(path, migrations("lifecycle"))
    reader = FileReader(path)
    begun, may_end = threading.Event(), threading.Event()

    def slow(database: Any) -> None:
        begun.set()
        assert may_end.wait(10)
        database.execute("SELECT count(*) FROM changes").fetchone()

    asking = asyncio.ensure_future(reader.ask(slow))
    await asyncio.to_thread(begun.wait, 10)
    asking.cancel()
    following = asyncio.ensure_future(reader.ask(replay))
    with pytest.raises(asyncio.CancelledError):
        await asking
    may_end.set()
    assert (await following).marks.seq == 0
    reader.close()
    await store.close()


async def test_what_became_of_nodes_is_given_back_and_told(twin):
    lifecycle, _ = await twin.lifecycle()
    decided = [
        (Admission.CORDONED, "wires", 0),
        (Admission.QUARANTINED, "it smells", 0),
        (Admission.QUARANTINED, "it still smells", 9_000),
    ]
    for at_ms, (admission, reason, until_ms) in enumerate(decided, 1):
        change = a.AdmissionChanged(at_ms, "q", "a", admission, reason, "eve", until_ms)
        await commit(lifecycle, change)
    await commit(
        lifecycle,
        a.AdmissionChanged(5, "q", "b", Admission.DRAINING, "move", "eve", 0),
        a.AdmissionChanged(6, "q", "ghost", Admission.REVOKED, "stolen", "eve", 0),
        a.EvidenceKept(7, "m", "a", "malformed", "no such field", "counted"),
        a.AdmissionChanged(8, "q", "b", Admission.OPEN, "moved", "eve", 0),
    )
    _, held = await twin.lifecycle()
    state = State()
    for change in held.changes:
        apply(state, change)
    assert set(state.admissions) == {"a", "ghost"}
    assert state.admissions["a"].reason == "it still smells"
    rows = await twin.rows(
        "lifecycle", "SELECT node, admission, since_ms, until_ms FROM admissions"
    )
    assert sorted(rows) == [("a", "quarantined", 2, 9_000), ("ghost", "revoked", 6, 0)]
    rows = await twin.rows("lifecycle", "SELECT node, kind, verdict FROM evidence")
    assert rows == [("a", "malformed", "counted")]
