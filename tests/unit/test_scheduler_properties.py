"""Random plans, outcomes and answers: the invariants hold, and the rules give what they say.

Every event that a `Stage` posts is followed by a check of the invariants.
"""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.scheduler import Scheduler
from scheduler_stage import Stage, action, plan

NODES = ("pi-1", "pi-2", "pi-3")


@st.composite
def plans(draw: st.DrawFn, on_error: tuple[str, ...]) -> list[dict[str, Any]]:
    """1 to 10 actions, each behind some of the earlier ones."""
    actions: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 10))):
        earlier = [one["id"] for one in actions]
        after = draw(st.lists(st.sampled_from(earlier), max_size=3)) if earlier else []
        more: dict[str, Any] = {"on_error": draw(st.sampled_from(on_error))}
        if draw(st.booleans()):
            more["target_node"] = draw(st.sampled_from(NODES))
        do = draw(st.sampled_from(("look", "write", "send")))
        actions.append(action(f"a{index}", *after, do=do, **more))
    return actions


def expected(actions: list[dict[str, Any]], failing: set[str]) -> dict[str, str]:
    """The rules of continue and skip, read aloud: in the order of the plan, which is topological."""
    ends: dict[str, str] = {}
    for one in actions:
        satisfied = all(ends[name] in ("completed", "failed") for name in one["depends_on"])
        if not satisfied:
            ends[one["id"]] = "skipped"
        elif one["id"] not in failing:
            ends[one["id"]] = "completed"
        else:
            ends[one["id"]] = "failed" if one["on_error"] == "continue" else "skipped"
    return ends


@settings(max_examples=30, deadline=None)
@given(plans(("continue", "skip")), st.sampled_from(("parallel", "sequential")), st.data())
def test_continue_and_skip_end_as_the_rules_say(
    actions: list[dict[str, Any]], mode: str, data: st.DataObject
) -> None:
    failing = data.draw(st.sets(st.sampled_from([one["id"] for one in actions])))
    stage = Stage(*NODES)
    run = stage.submit(plan(*actions, execution_mode=mode))
    while not run.ended:
        running = [name for name, state in stage.states(run).items() if state == "running"]
        assert mode == "parallel" or len(running) == 1
        name = data.draw(st.sampled_from(running))
        stage.end(run, name, "failed" if name in failing else "completed")
    assert stage.states(run) == expected(actions, failing)
    assert run.state == "completed"


@settings(max_examples=30, deadline=None)
@given(plans(("abort", "continue", "skip")), st.data())
def test_whatever_happens_every_run_ends_and_a_replay_agrees(
    actions: list[dict[str, Any]], data: st.DataObject
) -> None:
    stage = Stage(*NODES)
    run = stage.submit(plan(*actions))
    for _ in range(data.draw(st.integers(0, 12))):
        happen(stage, run, data)
    while not run.ended:
        if stage.state.approvals:
            stage.post(
                e.AnswerGiven, approval=next(iter(stage.state.approvals)), option="done", by="eve"
            )
            continue
        for node in NODES:
            stage.birth(node, boot=stage.state.nodes[node].boot + 1)
        running = [name for name, state in stage.states(run).items() if state == "running"]
        if running:
            stage.end(run, running[0])
        else:  # who came back too often gets nothing for a while
            stage.live(*NODES, for_ms=8_000)
    replayed = Scheduler({}, stage.changes).state
    for name in ("nodes", "runs", "dispatches", "approvals", "active"):
        assert getattr(replayed, name) == getattr(stage.state, name)


def happen(stage: Stage, run: Any, data: st.DataObject) -> None:
    """One of the things that happen to a mesh."""
    what = data.draw(
        st.sampled_from(("end", "end", "silence", "will", "birth", "accept", "answer"))
    )
    node = data.draw(st.sampled_from(NODES))
    running = [name for name, state in stage.states(run).items() if state == "running"]
    record = stage.state.nodes[node]
    if what == "end" and running:
        outcome = data.draw(st.sampled_from(("completed", "failed", "timed_out", "unknown")))
        code = data.draw(
            st.sampled_from(("driver.failed", "action.not_started", "node.interrupted"))
        )
        stage.end(run, data.draw(st.sampled_from(running)), outcome, code=code)
    elif what == "accept" and running:
        stage.accept(run, data.draw(st.sampled_from(running)))
    elif what == "silence":
        stage.live(*(other for other in NODES if other != node), for_ms=8_000)
    elif what == "will":
        stage.post(e.NodeGone, node=node, boot=record.boot, session=record.session)
    elif what == "birth":
        stage.birth(node, boot=record.boot + 1)
    elif what == "answer" and stage.state.approvals:
        option = data.draw(st.sampled_from(("rerun", "done", "fail")))
        approval = next(iter(stage.state.approvals))
        stage.post(e.AnswerGiven, approval=approval, option=option, by="eve")
