"""Which node is next after refusals and silence, whose turn it is, and what the choice costs."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.state import RunRecord
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from scheduler_stage import HEARTBEAT_MS, LOST_MS, TOY, Stage, action, plan


class Facts(Mapping[str, Any]):
    """Facts that count how often a selector wants all of them."""

    reads = 0

    def __init__(self, **facts: Any) -> None:
        self._facts = facts

    def __getitem__(self, name: str) -> Any:
        return self._facts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)

    def keys(self) -> Any:
        Facts.reads += 1
        return self._facts.keys()


def refuse(stage: Stage, run: RunRecord, node: str) -> None:
    """The node that has the action refuses it."""
    dispatch = stage.dispatch_of(run, "a")
    assert dispatch.node == node
    refusals = ((dispatch.dispatch, Fault("policy.path", "no")),)
    stage.post(e.RejectArrived, node=node, refusals=refusals)


def test_a_suspect_first_choice_that_has_refused_does_not_hide_the_next_one() -> None:
    stage = Stage("pi-1", "pi-2", "pi-3")
    what = action("a", target_node="pi-1", fallback_nodes=["pi-2", "pi-3"])
    run = stage.submit(plan(what))
    refuse(stage, run, "pi-1")
    stage.post(e.NodeGone, node="pi-1", boot=1, session=1)
    refuse(stage, run, "pi-2")
    assert stage.dispatch_of(run, "a").node == "pi-3"


def test_a_suspect_node_that_has_not_refused_is_waited_for() -> None:
    stage = Stage("pi-1", "pi-2", "pi-3")
    what = action("a", target_node="pi-1", fallback_nodes=["pi-2", "pi-3"])
    run = stage.submit(plan(what))
    stage.post(e.NodeGone, node="pi-2", boot=1, session=1)
    refuse(stage, run, "pi-1")
    assert stage.states(run) == {"a": "waiting"}
    stage.beat("pi-2", "pi-2")
    assert stage.dispatch_of(run, "a").node == "pi-2"


@pytest.mark.parametrize("more", [{}, {"target_node": "pi-1", "fallback_nodes": ["pi-2"]}])
def test_a_suspect_node_that_has_refused_is_not_waited_for(more: dict[str, Any]) -> None:
    stage = Stage("pi-1", "pi-2")
    run = stage.submit(plan(action("a", **more)))
    refuse(stage, run, "pi-1")
    stage.post(e.NodeGone, node="pi-1", boot=1, session=1)
    refuse(stage, run, "pi-2")
    assert run.state == "failed"


def test_one_refused_action_does_not_hold_up_others_of_its_pool() -> None:
    stage = Stage("pi-1", "pi-2")
    window = [action(f"f{n}", target_node="pi-2") for n in range(limits.NODE_WINDOW)]
    stage.submit(plan(*window))
    first = stage.submit(plan(action("a")))
    refuse(stage, first, "pi-1")
    assert stage.states(first) == {"a": "waiting"}
    second = stage.submit(plan(action("b")))
    assert stage.running(second) == ["b"]


def test_an_alias_that_changes_hands_changes_who_is_meant() -> None:
    stage = Stage()
    stage.birth("n-1", alias="desk")
    stage.post(e.NodeLeft, node="n-1", boot=1, session=1)
    run = stage.submit(plan(action("a", target_node="desk")))
    assert stage.states(run) == {"a": "waiting"}
    stage.birth("n-2", alias="desk")
    assert stage.dispatch_of(run, "a").node == "n-2"


def test_every_run_of_a_pool_says_what_it_waits_for() -> None:
    stage = Stage("pi")
    full = stage.submit(plan(*(action(f"f{n}") for n in range(limits.NODE_WINDOW))))
    runs = [stage.submit(plan(action("a"))) for _ in range(2)]
    stage.end(full, "f0")
    (waits,) = (run for run in runs if not stage.running(run))
    stage.live(for_ms=12_000)
    assert stage.liveness("pi") == "lost"
    assert stage.states(waits) == {"a": "waiting"}


def test_a_new_run_starts_level_with_those_that_wait_for_the_same_node() -> None:
    def many(name: str, count: int, node: str) -> RunRecord:
        return stage.submit(plan(*(action(f"{name}{n}", target_node=node) for n in range(count))))

    stage = Stage("pi-1", "pi-2")
    full = many("f", limits.NODE_WINDOW, "pi-2")
    old = many("c", 100, "pi-2")
    many("a", 200, "pi-1")
    new = many("b", 100, "pi-2")
    for name in stage.running(full)[:20]:
        stage.end(full, name)
    shares = len(stage.running(old)), len(stage.running(new))
    assert shares == pytest.approx((10, 10), abs=1)


def test_an_all_action_with_a_target_node_means_that_one() -> None:
    stage = Stage("pi-1", "pi-2")
    what = action("a", target_mode="all", target_node="pi-1", fallback_nodes=["pi-2"])
    assert stage.running(stage.submit(plan(what))) == ["a@pi-1"]


def test_a_node_that_changes_is_the_only_one_that_selectors_look_at_again() -> None:
    stage, nodes, selectors = Stage(), 20, 50

    def born(number: int, session: int) -> None:
        name = f"n-{number}"
        stage.post(
            e.NodeBirth,
            node=name,
            alias=name,
            boot=1,
            session=session,
            manifest=TOY,
            facts=Facts(zone=number),
            profile="unrestricted",
            heartbeat_ms=HEARTBEAT_MS,
            lost_ms=LOST_MS,
        )

    for number in range(nodes):
        born(number, 1)
    runs = [
        stage.submit(plan(action("a", target_selector=f"zone == {100 + n}")))
        for n in range(selectors)
    ]
    Facts.reads = 0
    for number in range(nodes):
        stage.post(e.NodeGone, node=f"n-{number}", boot=1, session=1)
        born(number, 2)
    assert Facts.reads == 2 * nodes * selectors
    stage.post(e.LabelsSet, node="n-7", labels={"zone": 103})
    assert [n for n, run in enumerate(runs) if stage.running(run)] == [3]
