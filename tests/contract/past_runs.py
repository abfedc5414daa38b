"""A history with runs of every kind, and everything that people are told of it."""

from functools import partial
from types import SimpleNamespace
from typing import Any

from imlmesh_orchestrator.api.events import event_stream
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.state import RunRecord
from imlmesh_orchestrator.retrying import take_over
from imlmesh_orchestrator.store.reading import Reader
from imlmesh_orchestrator.stream import Stream
from imlmesh_orchestrator.views import approvals, last_run, logs, memory, runs, stories
from imlmesh_orchestrator.views.standing import standings
from imlmesh_orchestrator.views.telling import event_data
from imlmesh_protocol import limits
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_protocol.iml.plan import Plan
from scheduler_stage import Stage, action, plan

#: cut in answers; too large to be packed, unless it stands in a plan
CUT, LARGE = "c" * (limits.API_RESULT_BYTES + 1), "l" * (limits.COMPACT_BYTES + 1)
UNDONE = plan(
    action("a", target_group="both", target_mode="all", rollback={"action": "u"}),
    action("x", "a", target_node="pi-1", on_error="rollback"),
    action("u"),
    session_id="undone",
)
_NODES = ("pi-1", "pi-2", "pi-3")
_DAY_MS = 86_400_000


def submit(stage: Stage, what: Plan, **more: Any) -> RunRecord:
    """As `Stage.submit`, under the plan's own digest."""
    told = stage.post(
        e.PlanSubmitted, dice=7, plan=what, digest=plan_digest(what), by="eve", **more
    )
    (run,) = [each.value for each in told if isinstance(each, k.Reply)]
    record: RunRecord = stage.state.runs[run]
    return record


def history() -> tuple[Stage, int]:
    """The stage behind it all, and a time: most runs had ended by then, one ended later, one goes on."""
    stage = Stage(*_NODES)
    stage.set_group("both", "pi-1", "pi-2")
    stage.post(e.MemorySet, session="s", key="mine", value=1, by="eve")
    # side by side, so that their changes are mixed
    written = action("a", memory={"write_key": "k"})
    named = [action(name, "a", target_node="pi-1") for name in ("cut", "large", "small")]
    chain = submit(stage, plan(written, *named, session_id="s"))
    undone = submit(stage, UNDONE)
    half = {"text": LARGE[len(LARGE) // 2 :]}
    many = [action(f"w{number}", params=half if number < 2 else {}) for number in range(150)]
    wide = submit(stage, plan(*many, session_id="wide"))
    stage.end(chain, "a", result={"t": 21})
    stage.end(undone, "a@pi-2", result=2)
    for name, result in (("cut", CUT), ("large", LARGE), ("small", b"raw")):
        if name == "small":
            _end_all(stage, wide)
        stage.end(chain, name, result=result)
    stage.end(undone, "a@pi-1", result=1)
    stage.end(undone, "x", "failed")
    stage.end(undone, "a~pi-1")
    stage.end(undone, "a~pi-2", "failed")
    stage.answer("fail")
    _asked(stage)
    _failed_and_cancelled(stage)
    _lost(stage)
    # the same plan once more: of it no text is kept twice
    retried = e.Retried(
        undone.run, {"a": [["pi-1", "pi-2"], {"pi-1": 1, "pi-2": CUT}]}, {"x": "before"}, ()
    )
    again = submit(stage, UNDONE, retried=retried)
    stage.answer("approve")
    _end_all(stage, again)
    middle_ms = stage.now_ms + _DAY_MS
    stage.live(*_NODES, for_ms=8_000)
    stage.now_ms += 2 * _DAY_MS
    young = submit(stage, plan(action("a", target_node="pi-1"), session_id="young"))
    stage.birth("pi-1", boot=2)
    stage.beat("pi-1")
    _end_all(stage, young)
    submit(stage, plan(action("a", requires_approval=True), session_id="open"))
    return stage, middle_ms


def _end_all(stage: Stage, run: RunRecord) -> None:
    while not run.ended:
        for key in stage.running(run):
            stage.end(run, key, result={"of": key})


def _asked(stage: Stage) -> None:
    """Gates: opened, and kept shut; a pause between."""
    for option in ("approve", "deny"):
        gate = action("a", requires_approval=True, on_error="continue")
        run = submit(stage, plan(gate, action("b", "a"), session_id=option))
        stage.post(e.PauseAsked, run=run.run, by="eve")
        stage.post(e.ResumeAsked, run=run.run, by="eve")
        stage.answer(option)
        _end_all(stage, run)


def _failed_and_cancelled(stage: Stage) -> None:
    again = {"max_attempts": 2, "delay_seconds": 1.0, "backoff_factor": 1.0, "retry_on": []}
    run = submit(stage, plan(action("a", on_error="retry", retry=again), action("b", "a")))
    stage.end(run, "a", "failed")
    stage.live(*_NODES, for_ms=4_000)
    stage.end(run, "a", "failed")
    run = submit(stage, plan(action("a", do="send"), action("b", "a"), session_id="cancelled"))
    stage.accept(run, "a")
    stage.post(e.CancelAsked, run=run.run, by="eve")
    stage.end(run, "a", "cancelled", code="action.cancelled")
    waits = submit(stage, plan(action("a", target_selector="cpu >= 99"), session_id="waits"))
    stage.post(e.CancelAsked, run=waits.run, by="eve")


def _lost(stage: Stage) -> None:
    """A node is lost with an effect, a person says what became of it, and the node comes back with more."""
    risky = action("a", do="send", target_node="pi-3", on_node_loss="ask")
    run = submit(stage, plan(risky, action("b", "a", target_node="pi-1"), session_id="lost"))
    stage.accept(run, "a")
    dispatch = stage.dispatch_of(run, "a")
    stage.live("pi-1", "pi-2", for_ms=20_000)
    stage.answer("done")
    _end_all(stage, run)
    stage.birth("pi-3", boot=2)
    stage.report(dispatch, result="late")


async def told(reader: Reader, last_seq: int) -> dict[str, Any]:
    """All that views, streams and retries say; `last_seq` is that of the newest change."""
    return {**await reader.ask(_viewed), **await _streamed(reader, last_seq)}


def _viewed(database: Any) -> dict[str, Any]:
    listed = runs.list_runs(database, str, 500, None, "")
    found: dict[str, Any] = {
        "runs": listed,
        "approvals": approvals.list_approvals(database, ""),
        "memory": memory.list_memory(database, None),
        "value": memory.show_memory(database, "s", "k"),
        "last": last_run.last_run(database, "play"),
        "pages": {size: _pages(database, None, size) for size in (3, 100, 10_000)},
    }
    retried = {row["of"] for row in listed}
    for run in (row["run"] for row in listed):
        ended = runs.run_ended(database, run)
        ways = (False, True) if ended and run not in retried else ()
        found[run] = {
            "ended": ended,
            "shown": runs.show_run(database, run, str, {}),
            "whole": runs.show_run(database, run, str, {}, whole=True),
            "story": stories.story(database, run, str),
            "first": stories.first_seq(database, run),
            "pages": {size: _pages(database, run, size) for size in (1, 7, 10_000)},
            "standings": standings(database, run),
            "failed": logs.failed_units(database, run),
            "taken": [take_over(database, run, str, only) for only in ways],
        }
    return found


def _pages(database: Any, run: str | None, size: int) -> list[dict[str, Any]]:
    """Everything, in pages of so many changes."""
    found: list[dict[str, Any]] = []
    while page := stories.changes_after(database, run, found[-1]["seq"] if found else 0, size):
        found += [event_data(seq, change, str) for seq, change in page]
    return found


async def _streamed(reader: Reader, last_seq: int) -> dict[str, Any]:
    """What whoever comes back gets from the event stream of an ended run."""
    listed = await reader.ask(partial(runs.list_runs, alias=str, limit=500, before=None, state=""))
    stream = Stream()
    shell: Any = SimpleNamespace(
        lifecycle=SimpleNamespace(last_seq=last_seq), stream=stream, reader=reader, name_of=str
    )
    found = {}
    for row in listed:
        if row["ended_at_ms"] is not None:
            for after in (0, last_seq // 3, last_seq):
                frames = event_stream(shell, stream.subscribe(row["run"]), after)
                name = f"{row['run']} after {after}"
                found[name] = b"".join([some async for some in frames])
    return found
