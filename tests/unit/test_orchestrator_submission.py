"""A plan's text against a fleet: all errors at once, and nodes that could never run it."""

import json
from typing import Any

from imlmesh_orchestrator.core.state import NodeRecord, State
from imlmesh_orchestrator.submission import check, snapshot
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect, Liveness

LOOK = ActionSpec("toy", "look", {"type": "object"}, (), Effect.PURE, "local_worker", 0.0)
TOY = Manifest({"toy": Module("1", {"look": LOOK})})


def fleet(**profiles: str) -> State:
    state = State()
    for name, profile in profiles.items():
        manifest = Manifest() if profile == "none" else TOY
        held = "readonly" if profile == "none" else profile
        record = NodeRecord(name, f"{name}-alias", 1, 1, manifest, {"cpu": 2}, held, 2_000, 6_000)
        record.liveness = Liveness.LOST
        state.nodes[name] = record
        state.aliases[record.alias] = name
    state.groups["both"] = tuple(state.nodes)
    return state


def text(*actions: dict[str, Any]) -> str:
    plan = {"protocol_version": "2.0", "plan_id": "p", "description": "d", "actions": actions}
    return json.dumps(plan, indent=1)


def look(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "module": "toy", "action": "look", **more}


def test_a_good_plan_comes_with_waves_and_places():
    known = snapshot(fleet(a="local_worker"))
    checked = check(text(look("x"), look("y", depends_on=["x"])), "p.json", known, 9)
    assert checked.errors == []
    assert checked.outlook is not None
    assert checked.waves == [["x"], ["y"]]
    assert len(checked.outlook.digest) == 64
    assert checked.source.file == "p.json"
    assert checked.source.places["y"][0] > checked.source.places["x"][0] > 1


def test_a_node_that_is_away_counts_and_one_that_never_could_does_not():
    known = snapshot(fleet(a="readonly", b="none"))
    for target in ({}, {"target_group": "both"}, {"target_selector": "cpu >= 2"}):
        checked = check(text(look("x", **target)), None, known, 9)
        [error] = checked.errors
        assert error.code == "place.no_node"
        assert "a-alias: policy.profile" in error.message
        assert "b-alias: module.unknown" in error.message
        assert error.place is not None
        assert error.place.line == 6
    [error] = check(text(look("x", target_selector="cpu > 2")), None, known, 9).errors
    assert "no node matches" in error.message


def test_a_selector_that_asks_for_what_no_node_has_is_warned_about():
    known = snapshot(fleet(a="local_worker"))
    wanted = 'romm == "kitchen" or cpu >= 2'
    checked = check(text(look("x", target_selector=wanted)), None, known, 9)
    [warning] = checked.warnings
    assert (warning.code, checked.errors) == ("selector.name", [])
    assert '"romm"' in warning.message
    assert warning.place is not None
    assert warning.place.pointer == "/actions/0/target_selector"


def test_a_lease_that_no_node_could_renew_is_warned_about():
    known = snapshot(fleet(a="local_worker"))
    plan = text(look("x", lease_seconds=3), look("y", lease_seconds=4), look("z"))
    [warning] = check(plan, None, known, 9).warnings
    assert (warning.code, warning.place.pointer) == ("plan.no_effect", "/actions/0/lease_seconds")
    assert "up to 4 s and not 3" in warning.message


def test_everything_wrong_is_said_at_once():
    known = snapshot(fleet(a="local_worker"))
    bad = text(look("x", depends_on=["x"]), look("x"), look("z", target_node="nobody"))
    codes = {error.code for error in check(bad, None, known, 9).errors}
    assert {"plan.self_dependency", "plan.duplicate_id", "place.unknown_node"} <= codes
    assert [e.code for e in check("{", None, known, 9).errors] == ["plan.syntax"]
    assert [e.code for e in check(text(look("x"), look("y")), None, known, 1).errors] == [
        "plan.too_many_actions"
    ]
