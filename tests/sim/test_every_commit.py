"""A power cut at every commit point of a run that retries, asks, rolls and rolls back.

The one plan goes through every kind of waiting. Wherever the orchestrator dies, the run ends as it
does undisturbed; wherever a node dies, the invariants hold and the run ends.
"""

from typing import Any

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.admission_changes import AdmissionChanged
from imlmesh_orchestrator.core.changes import DispatchEnded, RunEnded
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import Admission
from plans import GROUP
from script import Script
from sim_orchestrator import AFTER, BEFORE
from world import World

END_MS = 60_000


def step(name: str, *after: str, do: str = "write", fails: int = 0, **more: Any) -> dict[str, Any]:
    params = {"ms": 50, "fails": fails}
    return {"id": name, "module": "toy", "action": do, "params": params, **more} | {
        "depends_on": list(after)
    }


PLAN = Plan.model_validate(
    {
        "protocol_version": "2.0",
        "plan_id": "all-waits",
        "description": "",
        "session_id": "s",
        "execution_mode": "parallel",
        "actions": [
            step(
                "retried",
                do="send",
                fails=2,
                on_error="retry",
                retry={"delay_seconds": 0.2, "retry_on": []},
                rollback={"action": "undo"},
                memory={"write_key": "k"},
            ),
            step("asked", "retried", requires_approval=True, rollback={"action": "undo"}),
            step(
                "rolled",
                "asked",
                target_group=GROUP,
                target_mode="rolling",
                rollback={"action": "undo"},
            ),
            step("breaks", "rolled", do="send", fails=9, on_error="rollback"),
            step("undo", do="write"),
        ],
    }
)


class Play(World):
    """The plan in a world without other faults, where every gate is approved."""

    def __init__(self) -> None:
        super().__init__(Script(7, ("n0", "n1", "n2")))
        self.settle()

    def now_answer(self) -> None:
        for approval in list(self.orchestrator.core.state.approvals.values()):
            option = "approve" if approval.kind == "gate" else "done"
            self.orchestrator.post(
                e.AnswerGiven, approval=approval.approval, option=option, by="adam"
            )

    def play(self) -> dict[str, str]:
        """Plays to the end; the states of all units of the run."""
        self.orchestrator.submit(PLAN)
        end_ms = self.now_ms + END_MS
        while self.now_ms < end_ms and not self._ended():
            self.advance(100)
        self.check_end()
        # a restart forgets what has ended; the store does not
        (run,) = Scheduler({}, self.orchestrator.stored).state.runs.values()
        return {"run": str(run.state)} | {key: str(unit.state) for key, unit in run.units.items()}

    def _ended(self) -> bool:
        stored = self.orchestrator.stored
        return self.orchestrator.idle() and any(isinstance(c, RunEnded) for c in stored)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Play, dict[str, str]]:
    play = Play()
    return play, play.play()


def test_the_run_goes_through_everything(undisturbed: tuple[Play, dict[str, str]]) -> None:
    play, states = undisturbed
    assert states["run"] == "failed"
    rolled_back = {name for name, state in states.items() if state == "rolled_back"}
    assert rolled_back >= {"retried", "asked", "rolled"}
    kinds = {type(change).__name__ for change in play.orchestrator.stored}
    assert kinds >= {"RetryPlanned", "ApprovalAsked", "MembersFixed", "CompensationsPlanned"}


@pytest.mark.parametrize("where", [BEFORE, AFTER])
def test_an_orchestrator_that_dies_at_any_commit_changes_no_ending(
    undisturbed: tuple[Play, dict[str, str]], where: str
) -> None:
    calm, expected = undisturbed
    first = Play().orchestrator.commits
    for commit in range(first, calm.orchestrator.commits + 1):
        play = Play()
        play.orchestrator.cut_at = (commit, where)
        assert _by_action(play.play()) == _by_action(expected), (where, commit)


def _by_action(states: dict[str, str]) -> dict[str, list[str]]:
    """Which node did what is free; how each action, its members and its undoing ended is not."""
    found: dict[str, list[str]] = {}
    for key, state in states.items():
        found.setdefault(key.split("~")[0], []).append(state)
    return found


@pytest.mark.parametrize("node", ["n0", "n1", "n2"])
def test_a_node_that_dies_at_any_commit_breaks_no_invariant(node: str) -> None:
    calm = Play()
    calm.play()
    for commit in range(calm.nodes[node].commits + 1):
        play = Play()
        play.nodes[node].cut_at = commit
        assert play.play()["run"] in ("failed", "completed"), commit


class Judged(Play):
    """The same, while a person quarantines, releases and drains nodes, and insists on it."""

    DECISIONS = (
        (20, "n0", Admission.QUARANTINED),
        (100, "n1", Admission.DRAINING),
        (300, "n0", Admission.OPEN),
        (500, "n2", Admission.QUARANTINED),
        (400, "n1", Admission.OPEN),
        (500, "n2", Admission.OPEN),
    )

    def __init__(self) -> None:
        super().__init__()
        self._left = list(self.DECISIONS)
        self.at(self.now_ms + self._left[0][0], self._decide)

    def _decide(self) -> None:
        """The next decision, until it holds: who asks while nobody answers asks again."""
        _, node, admission = self._left[0]
        self.orchestrator.decide(node, admission)
        held = self.orchestrator.alive and self.orchestrator.core.state.admission_of(node)
        if held is admission:
            self._left.pop(0)
        if self._left:
            pause_ms = self._left[0][0] if held is admission else 100
            self.at(self.now_ms + pause_ms, self._decide)


def _admitted(play: Judged) -> list[Admission]:
    return [
        change.admission
        for change in play.orchestrator.stored
        if isinstance(change, AdmissionChanged)
    ]


@pytest.mark.parametrize("where", [BEFORE, AFTER])
def test_what_people_decide_of_nodes_holds_whenever_the_orchestrator_dies(where: str) -> None:
    calm = Judged()
    calm.play()
    assert set(_admitted(calm)) == {Admission.QUARANTINED, Admission.DRAINING, Admission.OPEN}
    lost = [c for c in calm.orchestrator.stored if isinstance(c, DispatchEnded)]
    assert any(c.fault and c.fault.code == "node.quarantined" for c in lost)
    for commit in range(Judged().orchestrator.commits, calm.orchestrator.commits + 1):
        play = Judged()
        play.orchestrator.cut_at = (commit, where)
        assert play.play()["run"] in ("failed", "completed"), commit
        assert not play.orchestrator.core.state.admissions, commit


@pytest.mark.parametrize("node", ["n0", "n1", "n2"])
def test_what_people_decide_of_a_node_holds_whenever_that_node_dies(node: str) -> None:
    calm = Judged()
    calm.play()
    for commit in range(calm.nodes[node].commits + 1):
        play = Judged()
        play.nodes[node].cut_at = commit
        assert play.play()["run"] in ("failed", "completed"), commit
        play.advance(10_000)
        agent = play.nodes[node].agent
        assert agent is not None
        assert not agent.state.quarantined, commit
