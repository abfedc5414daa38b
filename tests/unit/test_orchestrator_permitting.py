"""From a plan to a permit: what is carried along, and what a node alone cannot honour, with its place."""

import json
from typing import Any

import pytest

from imlmesh_orchestrator.api.permits import _rule
from imlmesh_orchestrator.core.state import NodeRecord
from imlmesh_orchestrator.permitting import Ground, compiled_text
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.validate import validate
from imlmesh_protocol.limits import PERMIT_ACTIONS
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.permits import Filling, PermitAction, Rule
from imlmesh_protocol.states import Effect
from scheduler_stage import TOY, action


def ground(manifest: Manifest) -> Ground:
    node = NodeRecord("pi-1", "garden", 1, 1, manifest, {}, "unrestricted", 2_000, 6_000)
    return Ground(node, {"IML_SITE": "shed"})


def made(*actions: dict[str, Any], manifest: Manifest = TOY, **more: Any) -> Any:
    document = {"protocol_version": "2.0", "plan_id": "p", "execution_mode": "parallel"}
    text = json.dumps({**document, "actions": actions, **more}, indent=1)
    report = validate(parse(text, "p.json"), [TOY])
    assert report.plan is not None, report.errors
    return compiled_text(text, "p.json", report.plan, ground(manifest))


def refused(*actions: dict[str, Any], **more: Any) -> list[InputError]:
    with pytest.raises(InputErrors) as caught:
        made(*actions, **more)
    errors: list[InputError] = list(caught.value.errors)
    return errors


def test_actions_come_in_an_order_in_which_they_can_be_done() -> None:
    found = made(action("c", "b"), action("b", "a", do="push", params={"pin": 1}), action("a"))
    assert [one.id for one in found] == ["a", "b", "c"]
    assert found[1] == PermitAction("b", "toy", "push", {"pin": 1}, Effect.PHYSICAL, 60_000, ("a",))


def test_the_plan_may_be_more_careful_and_say_what_else_it_may() -> None:
    terms = {"on_error": "skip", "on_busy": "fail", "claims": ["bus"], "timeout": 7}
    [found] = made(action("a", effect="once", target_node="garden", **terms))
    assert (found.effect, found.on_error, found.on_busy) == (Effect.ONCE, "skip", "fail")
    assert (found.claims, found.timeout_ms) == (("bus",), 7_000)
    assert made(action("a", target_node="pi-1"))


def test_templates_are_filled_as_far_as_they_can_be_and_the_rest_is_carried_along() -> None:
    params = {
        "now": "{{env.IML_SITE}} on {{node.id}}",
        "deep": ["{{result.a.values.0}}", {"text": "of {{node.id}}: {{ result.a.x }}!"}],
    }
    _, found = made(action("a"), action("b", "a", params=params))
    assert found.params["now"] == "shed on pi-1"
    assert found.fillings == (
        Filling(("deep", 0), (("a", "values", "0"),)),
        Filling(("deep", 1, "text"), ("of ", "pi-1", ": ", ("a", "x"), "!")),
    )


@pytest.mark.parametrize(
    ("wrong", "code", "pointer"),
    [
        ({"target_node": "pi-2"}, "permit.target", "/actions/0/target_node"),
        ({"target_group": "all"}, "permit.target", "/actions/0/target_group"),
        ({"target_selector": "cpu > 1"}, "permit.target", "/actions/0/target_selector"),
        ({"requires_approval": True}, "permit.person", "/actions/0"),
        ({"impact": 0.9}, "permit.person", "/actions/0"),
        ({"do": "blast"}, "permit.person", "/actions/0"),
        ({"on_error": "retry"}, "permit.on_error", "/actions/0/on_error"),
        ({"memory": {"write_key": "k"}}, "permit.unfit", "/actions/0/memory"),
        ({"params": {"v": "{{env.IML_NONE}}"}}, "template.env", "/actions/0/params/v"),
    ],
)
def test_what_a_node_alone_cannot_honour_is_refused_with_its_place(
    wrong: dict[str, Any], code: str, pointer: str
) -> None:
    [error] = refused(action("a", **wrong))
    assert error.code == code
    assert error.place is not None
    assert error.place.pointer == pointer
    assert error.place.file == "p.json"
    assert error.place.line
    assert error.hint or code.startswith("template.")


def test_a_rollback_is_refused_although_the_action_aborts() -> None:
    [error] = refused(action("a", on_error="abort", rollback={"action": "u"}), action("u"))
    assert error.place is not None
    assert error.place.pointer == "/actions/0/rollback"
    assert error.message == 'action "a" has a rollback: nothing is undone while the node is cut off'
    assert error.hint is not None
    assert "no rollback" in error.hint


def test_all_that_is_wrong_is_said_at_once() -> None:
    errors = refused(
        action("a", target_group="g", target_mode="all", on_error="rollback"),
        action("b", "a", rollback={"action": "u"}, params={"v": "{{result.a.*.x}}"}),
        action("u"),
        nonce="n",
        ttl_seconds=9,
        not_before="2030-01-01T00:00:00Z",
    )
    codes = sorted(error.code for error in errors)
    assert codes == [
        *["permit.on_error"] * 2,
        *["permit.target"] * 2,
        "permit.template",
        *["permit.unfit"] * 3,
    ]


def test_a_value_of_a_failed_action_is_not_carried_along() -> None:
    [error] = refused(
        action("a", on_error="continue"), action("b", "a", params={"v": "{{result.a._error.code}}"})
    )
    assert error.code == "permit.template"


def test_what_the_node_does_not_offer() -> None:
    [error] = refused(action("a"), manifest=Manifest())
    assert error.code == "permit.node"
    assert "garden cannot run toy.look: module.unknown" in error.message


def test_a_permit_has_few_actions() -> None:
    many = [action(f"a{n}") for n in range(PERMIT_ACTIONS + 1)]
    [error] = refused(*many)
    assert error.code == "permit.too_large"


@pytest.mark.parametrize(
    ("written", "rule"),
    [
        ({"kind": "every", "ms": 60_000}, Rule("every", 60_000)),
        ({"kind": "cut_off", "ms": 0}, Rule("cut_off", 0)),
        ({"kind": "on", "source": "gpio-17"}, Rule("on", source="gpio-17")),
        ({"kind": "on", "source": "gpio-17", "value": 1}, Rule("on", source="gpio-17", value=1)),
    ],
)
def test_a_rule_as_it_is_asked_for(written: Any, rule: Rule) -> None:
    assert _rule(written) == rule


@pytest.mark.parametrize(
    "written",
    [
        None,
        "every",
        {},
        {"kind": "sometimes", "ms": 1_000},
        {"kind": "every"},
        {"kind": "every", "ms": 10},
        {"kind": "every", "ms": True},
        {"kind": "cut_off", "ms": -1},
        {"kind": "cut_off", "ms": 1 << 60},
        {"kind": "on"},
        {"kind": "on", "source": "GPIO 17"},
        {"kind": "on", "source": "gpio-17", "value": [1]},
        {"kind": "on", "source": "gpio-17", "value": "x" * 100},
        {"kind": "on", "source": "gpio-17", "value": float("nan")},
        {"kind": "on", "source": "gpio-17", "value": float("inf")},
        {"kind": "on", "source": "gpio-17", "value": 1 << 70},
        {"kind": "on", "source": "gpio-17", "value": -(1 << 70)},
        {"kind": "on", "source": "gpio-17", "value": "\ud800"},
    ],
)
def test_a_rule_that_is_none_is_refused(written: Any) -> None:
    with pytest.raises(InputError) as caught:
        _rule(written)
    assert caught.value.code == "permit.rule"
