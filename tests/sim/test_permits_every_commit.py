"""A power cut at every commit of runs by permit, on either side of it, of the node and of the orchestrator.

Whatever is cut short: the budget holds, nothing that must happen once happens twice, and each run that
was begun is told once, whole.
"""

from typing import Any

import pytest

from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_protocol.permits import Rule
from permits import Wish, ask
from script import Script
from sim_orchestrator import AFTER, BEFORE
from world import World

BUDGET = 2
CUT_MS, END_MS = 40_000, 60_000


def act(name: str, do: str, *after: str) -> dict[str, Any]:
    params = {"ms": 50, "fails": 0}
    return {"id": name, "module": "toy", "action": do, "params": params, "depends_on": list(after)}


WISH = Wish(
    0,
    "n0",
    Rule("every", 2_000),
    BUDGET,
    3_600_000,
    (act("look", "look"), act("send", "send", "look"), act("note", "write", "send")),
)


class Play(World):
    """One permit, one time cut off, and back."""

    def __init__(self) -> None:
        super().__init__(Script(7, ("n0", "n1", "n2")))
        self.settle()

    def play(self) -> list[int]:
        """The numbers of runs that were told."""
        ask(self, WISH)
        self.advance(1_000)
        #: whether the permit came to its node before it was cut off
        self.held = bool(self.nodes["n0"].stored.permits)
        self.hub.partition("n0")
        self.advance(CUT_MS)
        self.hub.heal("n0")
        self.advance(END_MS)
        self.check_end()
        stored = self.orchestrator.stored
        return [change.number for change in stored if isinstance(change, p.PermitRunReported)]


@pytest.fixture(scope="module")
def undisturbed() -> Play:
    play = Play()
    assert play.play() == [1, 2]
    assert sorted(play.checks.effects.values()) == [1, 1]
    return play


def test_a_node_that_dies_at_any_commit_keeps_its_budget_and_tells_each_run_once(
    undisturbed: Play,
) -> None:
    points = undisturbed.nodes["n0"].commits
    assert points > 4 * BUDGET
    cut_short = 0
    for cut_at in range(1, points + 1):
        play = Play()
        play.nodes["n0"].cut_at = cut_at
        numbers = play.play()
        assert sorted(numbers) == sorted(set(numbers)), f"cut {cut_at}"
        assert len(numbers) <= BUDGET, f"cut {cut_at}"
        assert all(count == 1 for count in play.checks.effects.values()), f"cut {cut_at}"
        cut_short += any("unknown" in line for line in play.story)
    assert cut_short, "no cut fell between an intent and its result"


@pytest.mark.parametrize("where", [BEFORE, AFTER])
def test_an_orchestrator_that_dies_at_any_commit_records_each_run_once(
    undisturbed: Play, where: str
) -> None:
    commits = undisturbed.orchestrator.commits
    for number in range(1, commits + 1):
        play = Play()
        play.orchestrator.cut_at = (number, where)
        numbers = play.play()
        assert sorted(numbers) == ([1, 2] if play.held else []), f"{where} {number}"
