"""Plans and nodes that joined: who was never here takes no part, and an alias may move on."""

import pytest

from imlmesh_orchestrator.core import events as e
from imlmesh_protocol.states import ActionState
from scheduler_stage import Stage, action, plan


def let_in(stage: Stage, node: str, *groups: str, uses: int = 1, replaces: str = "") -> None:
    """By a token with groups, or by a person who replaces another node with it."""
    identity = node.encode().ljust(32, b".")
    asked = {"node": node, "identity": identity, "profile": "", "address": "lan"}
    if replaces:
        stage.post(e.JoinAsked, **asked, token="", proven=False, code="4KT-9QX")
        answer = {"name": node, "approved": True, "profile": "", "replaces": replaces}
        stage.post(e.JoinAnswered, **answer, by="anna")
        return
    token = {"token": f"t-{node}", "key": b"k", "uses": uses, "profile": "local_worker"}
    stage.post(e.TokenAsked, **token, groups=groups, ttl_ms=9_000, by="anna")
    stage.post(e.JoinAsked, **asked, token=f"t-{node}", proven=True, code="")


@pytest.mark.parametrize("mode", ["all", "rolling"])
def test_who_was_never_here_is_no_member_yet(mode):
    stage = Stage("a")
    let_in(stage, "b", "roof")
    stage.post(e.GroupSet, group="roof", nodes=("a", "b"))
    run = stage.submit(plan(action("x", target_group="roof", target_mode=mode)))
    assert list(run.units["x"].members) == ["x@a"]
    stage.birth("b")
    again = stage.submit(plan(action("x", target_group="roof", target_mode="all")))
    assert list(again.units["x"].members) == ["x@a", "x@b"]


def test_a_group_of_nobody_who_was_ever_here_waits_or_fails_but_breaks_nothing():
    stage = Stage("a")
    let_in(stage, "b", "roof")
    assert stage.state.groups["roof"] == ("b",)
    one = stage.submit(plan(action("x", target_group="roof")))
    every = stage.submit(plan(action("x", target_group="roof", target_mode="all")))
    assert one.units["x"].state is ActionState.WAITING
    assert every.units["x"].fault.code == "place.no_node"
    stage.birth("b")
    assert one.units["x"].dispatch.split("/")[2] == "b"


def test_a_plan_for_an_alias_goes_to_the_node_that_took_it_over():
    stage = Stage()
    let_in(stage, "pi")
    stage.birth("pi")
    stage.post(e.NodeLeft, node="pi", boot=1, session=1)
    let_in(stage, "new", replaces="pi")
    stage.birth("new", alias=stage.state.alias_of("new"))
    assert stage.state.alias_of("new") == "pi"
    run = stage.submit(plan(action("x", target_node="pi")))
    assert run.units["x"].dispatch.split("/")[2] == "new"
    # the old one comes back under its own new name
    stage.birth("pi", alias=stage.state.alias_of("pi"), boot=2)
    run = stage.submit(plan(action("x", target_node="pi-old")))
    assert run.units["x"].dispatch.split("/")[2] == "pi"
    stage.post(e.LabelsSet, node="pi", labels={"site": "attic"})
    assert (stage.state.nodes["pi"].labels, stage.state.nodes["new"].labels) == (
        {"site": "attic"},
        {},
    )
    assert Stage(history=stage.changes).state.aliases == stage.state.aliases
