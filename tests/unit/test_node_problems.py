"""What people are told of a node that is there and gets nothing new."""

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.views.nodes import Beats, Times, node_view
from scheduler_stage import Stage


def problems(stage: Stage, node: str) -> list[str]:
    record = stage.state.nodes[node]
    nobody = Beats({}, frozenset()), Times({}, {})
    found: list[str] = node_view(stage.state, record, *nobody, stage.now_ms)["problems"]
    return found


def test_a_deaf_node_is_told_as_long_as_it_is_deaf() -> None:
    stage = Stage("pi")
    stage.beat("pi")
    stage.beat_again("pi")
    assert problems(stage, "pi") == []  # an answer may get lost
    stage.pass_time(4_000)
    stage.beat_again("pi")
    assert problems(stage, "pi") == ["hears none of our answers"]
    stage.beat("pi")
    assert problems(stage, "pi") == []


def test_a_node_that_is_held_down_is_told_with_the_time_that_is_left() -> None:
    stage = Stage("pi")
    for session in range(1, 4):
        stage.post(e.NodeGone, node="pi", boot=1, session=session)
        stage.birth("pi", session=session + 1)
    assert problems(stage, "pi") == ["comes and goes: held down for 6 s more"]
    stage.live("pi", for_ms=4_000)
    assert problems(stage, "pi") == ["comes and goes: held down for 2 s more"]
    stage.live("pi", for_ms=4_000)
    assert problems(stage, "pi") == []
