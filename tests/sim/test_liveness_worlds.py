"""What the design asks of liveness, each as a world that shows it.

The one rule: what the cores do not do yet is marked, strictly: whoever builds it takes the mark away.
"""

from imlmesh_orchestrator.core import changes as c
from stage import Stage, does


def test_our_own_sleep_is_not_the_silence_of_nodes() -> None:
    stage = Stage()
    own = stage.orchestrator
    stage.plan(does("a", ms=15_000))
    stage.do(1_000, "the orchestrator's machine sleeps", own.suspend)
    stage.do(21_000, "it wakes", lambda: own.resume_machine(timers_first=True))
    stage.until(60_000)
    assert stage.run_of().state == "completed"
    assert not stage.changes(c.LivenessChanged, liveness="lost")


def test_most_nodes_silent_at_once_is_not_their_loss() -> None:
    stage = Stage(5)
    stage.plan(does("a", ms=15_000))
    for node in ("n0", "n1", "n2", "n3"):
        stage.fault(1_000, "cut", node, 20_000)
    stage.until(60_000)
    assert stage.run_of().state == "completed"
    assert not stage.changes(c.LivenessChanged, liveness="lost")


def test_a_node_that_cannot_hear_gets_no_new_work() -> None:
    stage = Stage()
    stage.fault(0, "half deaf", "n0", 30_000)
    stage.do(
        12_000,
        "a plan",
        lambda: stage.plan(does("a", target_selector="node == 'n0' or node == 'n1'")),
    )
    stage.until(60_000)
    assert stage.run_of().state == "completed"
    assert [d.node for d in stage.changes(c.DispatchPlanned)] == ["n1"]
