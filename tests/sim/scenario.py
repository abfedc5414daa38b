"""The registry of golden scenarios, and what many of them must show.

The one rule: a scenario's docstring says the fault and the behaviour that is wanted; its musts are
asked of the store and of the effects, not of the story. Numbers are those of the list of 25 in
docs/simulation.md, which says also which of them are not here and why.
"""

from collections.abc import Callable

from imlmesh_orchestrator.core import changes as c
from stage import Stage

Scenario = Callable[[], Stage]
SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str) -> Callable[[Scenario], Scenario]:
    """`name` is number and title, and the file's name."""

    def kept(made: Scenario) -> Scenario:
        SCENARIOS[name] = made
        return made

    return kept


def none_lost(stage: Stage) -> None:
    stage.must("no node was declared lost", not stage.changes(c.LivenessChanged, liveness="lost"))


def completed(stage: Stage) -> None:
    stage.must("the run completed", stage.run_of().state == "completed")
