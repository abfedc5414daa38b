"""What a preview says of a plan on a fleet, and what its fingerprint depends on."""

import json
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.apply import apply
from imlmesh_orchestrator.core.state import NodeRecord, State
from imlmesh_orchestrator.fingerprint import Basis, Previewed, basis_of
from imlmesh_orchestrator.preview import make_preview
from imlmesh_orchestrator.submission import check, snapshot
from imlmesh_orchestrator.views.last_run import LastRun
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module, Undo
from imlmesh_protocol.states import Effect, Liveness


def spec(name: str, effect: Effect, impact: float = 0.1, **more: Any) -> ActionSpec:
    more = {"permission": "readonly", **more}
    return ActionSpec("toy", name, {"type": "object"}, (), effect=effect, impact=impact, **more)


def toy(version: str = "1.0", **more: ActionSpec) -> Manifest:
    undo = Undo("push", {"pin": "{{params.pin}}"})
    actions = {
        "look": spec("look", Effect.PURE),
        "send": spec("send", Effect.ONCE, vouch=True, permission="local_worker"),
        "push": spec("push", Effect.PHYSICAL, 0.9, claims=("pin:{pin}",), undo=undo),
        **more,
    }
    return Manifest({"toy": Module(version, actions)})


def fleet(*names: str) -> State:
    state = State()
    for name in names or ("a", "b", "c"):
        add(state, name)
    return state


def add(state: State, name: str, **more: Any) -> NodeRecord:
    fields: dict[str, Any] = {"manifest": toy(), "facts": {"cpu": 2}, "profile": "unrestricted"}
    fields |= more
    apply(
        state,
        c.NodeDescribed(
            0, "", name, f"{name}-pi", 1, 1, heartbeat_ms=2_000, lost_ms=6_000, **fields
        ),
    )
    record = state.nodes[name]
    record.liveness = Liveness.ONLINE
    return record


def do(name: str, action: str = "look", **more: Any) -> dict[str, Any]:
    return {"id": name, "module": "toy", "action": action, **more}


def document(*actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"protocol_version": "2.0", "plan_id": "p", "description": "d"}
    return {**head, "execution_mode": "parallel", **more, "actions": list(actions)}


def preview(state: State, plan: dict[str, Any], last: LastRun | None = None) -> dict[str, Any]:
    checked = check(json.dumps(plan), None, snapshot(state), 500)
    assert checked.outlook is not None
    return make_preview(checked, checked.outlook, basis_of(checked.outlook).fingerprint, last)


def basis(state: State, plan: dict[str, Any]) -> Basis:
    outlook = check(json.dumps(plan), None, snapshot(state), 500).outlook
    assert outlook is not None
    return basis_of(outlook)


def fingerprint(state: State, plan: dict[str, Any]) -> str:
    return basis(state, plan).fingerprint


def one(state: State, *actions: dict[str, Any], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = preview(state, document(*actions, **more))["waves"][0][0]
    return found


def nodes_of(action: dict[str, Any]) -> dict[str, list[str]]:
    return {node["alias"]: node["reasons"] for node in action["nodes"]}


def test_each_node_that_is_left_out_has_its_reason():
    state = fleet("a")
    add(state, "b", profile="readonly")
    add(state, "c", manifest=Manifest())
    add(state, "d").liveness = Liveness.LOST
    add(state, "e", manifest=toy("0.9"))
    found = one(state, do("x", "send"), module_requirements={"toy": ">=1"})
    assert nodes_of(found) == {
        "a-pi": [],
        "b-pi": ["policy.profile"],
        "c-pi": ["module.unknown"],
        "d-pi": ["node.lost"],
        "e-pi": ["module.version"],
    }
    assert (found["chosen"], found["permission"], found["effect"]) == (
        "a-pi",
        "local_worker",
        "once",
    )


def test_targets_say_who_is_meant():
    state = fleet("a", "b", "c")
    state.groups["both"] = ("a", "b")
    state.nodes["c"].facts = {"cpu": 9}
    wanted = {
        ("any node", None): {},
        ("node c-pi", "c-pi"): {"target_node": "c-pi"},
        ("group both", "a-pi"): {"target_group": "both"},
        ("selector cpu > 4", "c-pi"): {"target_selector": "cpu > 4"},
        ("node b-pi", "b-pi"): {"target_node": "b-pi", "fallback_nodes": ["a"]},
    }
    for (text, chosen), target in wanted.items():
        found = one(state, do("x", **target))
        assert found["target"] == text
        assert chosen in (None, found["chosen"]), text
    state.nodes["b"].liveness = Liveness.LOST
    found = one(state, do("x", target_node="b-pi", fallback_nodes=["a"]))
    assert (found["chosen"], list(nodes_of(found))) == ("a-pi", ["b-pi", "a-pi"])


def test_a_member_wise_action_is_placeable_when_enough_nodes_are_here():
    state = fleet("a", "b", "c")
    state.groups["all"] = ("a", "b", "c")
    state.nodes["b"].liveness = Liveness.LOST
    wise = {"target_group": "all", "target_mode": "all"}
    whole = preview(state, document(do("x", **wise)))
    assert (whole["placeable"], whole["waves"][0][0]["chosen"]) == (False, None)
    assert whole["waves"][0][0]["nodes_needed"] == 3
    two = preview(state, document(do("x", **wise, quorum=2)))
    assert (two["placeable"], two["waves"][0][0]["nodes_needed"]) == (True, 2)
    assert preview(state, document(do("x")))["waves"][0][0]["nodes_needed"] is None
    rolling = {**wise, "target_mode": "rolling", "rolling": {"max_failures": 1}}
    assert preview(state, document(do("x", **rolling)))["placeable"] is True


def test_a_plan_that_nobody_could_run_is_shown_with_its_errors():
    state = fleet("a")
    state.nodes["a"].profile = "readonly"
    found = preview(state, document(do("x", "send"), do("y")))
    assert (found["placeable"], [error["code"] for error in found["errors"]]) == (
        False,
        ["place.no_node"],
    )
    assert nodes_of(found["waves"][0][0]) == {"a-pi": ["policy.profile"]}
    assert found["permissions"] == {"local_worker": ["x"], "readonly": ["y"]}


def test_what_will_be_asked_is_asked_as_the_scheduler_does():
    state = fleet("a")
    asked = {"message": "Sure?", "risk_level": "high", "timeout_seconds": 30}
    plan = document(
        do("quiet"),
        do("told", requires_approval=True, approval=asked),
        do("risky", "push", params={"pin": 4}),
        do("raised", impact=0.8),
    )
    found = preview(state, plan)
    quiet, told, risky, raised = (row["approval"] for row in found["waves"][0])
    assert (quiet, found["approvals"]) == (None, 3)
    assert (told["why"], told["message"], told["risk"], told["timeout_seconds"]) == (
        "the plan requires approval",
        "Sure?",
        "high",
        30,
    )
    assert (risky["why"], risky["timeout_seconds"]) == ("its impact is 0.9", 3_600)
    assert raised["why"] == "its impact is 0.8"
    pushed = found["waves"][0][2]
    assert (pushed["claims"], pushed["rollback"], pushed["on_node_loss"]) == (
        ["pin:4"],
        "toy.push",
        "ask",
    )


def test_a_vouched_effect_is_named_and_a_retry_is_the_one_that_counts():
    state = fleet("a")
    vouched = one(state, do("x", "send", effect="pure", on_error="retry"))
    assert (vouched["effect"], vouched["vouched"]) == ("pure", True)
    assert vouched["retry"]["max_attempts"] == 3
    plain = one(state, do("x", "send", on_error="retry"))
    assert (plain["vouched"], plain["retry"]) == (False, None), "once needs a written retry"


def test_what_only_undoes_stands_beside_the_waves():
    state = fleet("a")
    plan = document(
        do("x", "send", rollback={"action": "sorry"}),
        do("sorry", "send", target_node="a-pi"),
        do("y", depends_on=["x"], memory={"read_keys": ["k"], "write_key": "seen"}),
    )
    found = preview(state, plan)
    assert [[row["action"] for row in wave] for wave in found["waves"]] == [["x"], ["y"]]
    [undo] = found["compensations"]
    assert (undo["action"], undo["undoes"], undo["target"]) == ("sorry", ["x"], "any node")
    assert found["waves"][0][0]["rollback"] == "sorry"
    assert found["memory"] == {"reads": ["k"], "writes": ["seen"]}


def test_what_a_rollback_reaches_and_the_plan_does_not_undo_is_named():
    state = fleet("a")
    plan = document(
        do("valve", "push", params={"pin": 4}),
        do("told", "send"),
        do("seen"),
        do("named", "send", rollback={"action": "sorry"}),
        do("sorry", "send"),
        do("elsewhere", "send"),
        do("ends", depends_on=["valve", "told", "seen", "named"], on_error="rollback"),
    )
    assert preview(state, plan)["undoing"] == {
        "by_driver": [{"action": "valve", "call": "toy.push"}],
        "stays": ["told"],
    }
    assert preview(state, document(do("x", "send")))["undoing"] == {"by_driver": [], "stays": []}


def test_the_difference_to_the_last_run_names_actions_fields_and_nodes():
    state = fleet("a", "b")
    before = document(do("x", params={"n": 1}), do("gone"), do("moved"), barrier=True)
    after = document(do("x", params={"n": 2}), do("moved"), do("new"))
    nodes = {"x": frozenset({"a"}), "moved": frozenset({"c"})}
    last = LastRun("r-7-bcdf", "other", Plan.model_validate(before), nodes)
    changes = preview(state, after, last)["changes"]
    assert changes == {
        "last_run": "r-7-bcdf",
        "added": ["new"],
        "removed": ["gone"],
        "changed": [
            {"action": "(plan)", "field": "barrier", "before": True, "after": False},
            {"action": "x", "field": "params", "before": {"n": 1}, "after": {"n": 2}},
        ],
        "nodes_changed": ["moved"],
    }
    same = LastRun("r-8-bcdf", preview(state, after)["digest"], Plan.model_validate(after), {})
    quiet = preview(state, after, same)["changes"]
    assert [quiet[name] for name in ("added", "removed", "changed", "nodes_changed")] == [[]] * 4
    state.groups["both"] = ("a", "b")
    wise = document(do("x", target_group="both", target_mode="all"))
    ran = LastRun("r-9-bcdf", "other", Plan.model_validate(wise), {"x": frozenset({"a"})})
    assert preview(state, wise, ran)["changes"]["nodes_changed"] == ["x"]


def test_the_fingerprint_changes_with_what_would_happen_and_not_with_who_is_here():
    state = fleet("a", "b")
    state.groups["both"] = ("a", "b")
    plan = document(do("x", target_group="both"), do("y", target_selector="cpu >= 2"))
    first = fingerprint(state, plan)
    assert len(first) == 12
    assert int(first, 16) >= 0
    assert first == preview(state, plan)["fingerprint"]
    state.nodes["a"].liveness = Liveness.LOST
    add(state, "elsewhere", facts={"cpu": 1})
    assert fingerprint(state, plan) == first
    assert fingerprint(state, document(do("x", target_group="both"))) != first
    changed = [first]
    state.groups["both"] = ("a",)
    changed.append(fingerprint(state, plan))
    state.nodes["b"].manifest = toy(look=spec("look", Effect.PURE, 0.2))
    changed.append(fingerprint(state, plan))
    state.nodes["b"].labels = {"cpu": 1}
    changed.append(fingerprint(state, plan))
    state.nodes["a"].profile = "unrestricted"
    state.nodes["a"].manifest = toy("1.1")
    changed.append(fingerprint(state, plan))
    assert len(set(changed)) == len(changed)


def test_another_fingerprint_than_expected_says_what_changed():
    state = fleet("a", "b")
    state.groups["both"] = ("a", "b")
    plan = document(do("x", target_group="both"))
    first, previewed = basis(state, plan), Previewed()
    assert previewed.why_not(first.fingerprint, first).endswith(f"not {first.fingerprint}")
    previewed.add(first)

    def why(plan: dict[str, Any]) -> str:
        return previewed.why_not(first.fingerprint, basis(state, plan)).partition(": ")[2]

    assert why(document(do("x", "send", target_group="both"))) == "the plan changed"
    state.nodes["b"].manifest = toy("1.1")
    assert why(plan) == "the drivers of b changed"
    state.groups["both"] = ("a",)
    assert why(plan) == "the nodes that may run x changed"
