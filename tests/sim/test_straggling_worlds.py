"""Worlds full of slow pure work: copies run beside what they copy, and every fault meets both."""

import random
from typing import Any

import pytest

from imlmesh_orchestrator.core.changes import DispatchEnded
from imlmesh_protocol.states import DispatchState
from world import World

WORLDS = 60
BATCH = 15


def slow_plan(dice: random.Random, nodes: list[str]) -> dict[str, Any]:
    """Quick ones and slow ones of one kind, side by side, and something after some of them."""
    actions: list[dict[str, Any]] = []
    for index in range(dice.randint(8, 14)):
        slow = index > 5 and dice.random() < 0.6
        earlier = [action["id"] for action in actions if slow or dice.random() < 0.1]
        actions.append(
            {
                "id": f"a{index}",
                "module": "toy",
                "action": "look",
                "depends_on": dice.sample(earlier, min(len(earlier), dice.choice((0, 0, 1)))),
                "timeout": 40,
                "on_error": dice.choice(("abort", "continue", "skip")),
                "params": {
                    "ms": dice.choice((4_000, 9_000, 15_000)) if slow else dice.choice((50, 300)),
                    "fails": dice.choice((1, 2)) if dice.random() < 0.1 else 0,
                },
            }
        )
    head = {"protocol_version": "2.0", "plan_id": "sim", "description": ""}
    return {**head, "execution_mode": "parallel", "actions": actions}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("first", range(1, WORLDS + 1, BATCH))
def test_copies_break_no_invariant_and_every_run_ends(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("script.random_plan", slow_plan)
    copied = stopped = 0
    for seed in range(first, first + BATCH):
        world = World(seed)
        try:
            world.run()
        except Exception as exc:
            story = "\n".join(world.story[-120:])
            pytest.fail(f"seed {seed}: {exc}\n{story}")
        assert world.orchestrator.idle()
        ends = [
            change.state
            for change in world.orchestrator.stored
            if isinstance(change, DispatchEnded)
            and change.fault is not None
            and change.fault.code == "action.straggler"
        ]
        copied += ends.count(DispatchState.UNKNOWN)
        stopped += ends.count(DispatchState.SUPERSEDED)
    assert copied > 0
    assert stopped > 0
