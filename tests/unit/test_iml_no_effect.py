"""Warnings for what a plan says and nothing comes of, and silence where something does."""

import pytest

from iml_plans import act, plan_of, warned

NO_EFFECT = "plan.no_effect"


@pytest.mark.parametrize(
    ("action", "fields", "expected"),
    [
        ("read", {"retry": {}}, "retry"),
        ("read", {"on_error": "continue", "retry": {"max_attempts": 2}}, "retry"),
        ("read", {"on_error": "retry", "retry": {}}, None),
        ("read", {"on_error": "retry"}, None),
        ("append", {"on_error": "retry"}, "on_error"),
        ("append", {"on_error": "retry", "retry": {}}, None),
        ("run", {"on_error": "retry", "effect": "pure"}, None),
        ("read", {"on_error": "retry", "retry": {"retry_on": ["Oops"]}}, "retry/retry_on/0"),
        ("read", {"on_error": "retry", "retry": {"retry_on": ["OSError", "Exception"]}}, None),
        ("read", {"approval": {"message": "Now?"}}, "approval"),
        ("read", {"approval": {}, "requires_approval": True}, None),
        ("read", {"approval": {}, "impact": 0.71}, None),
        ("read", {"approval": {}, "impact": 0.7}, "approval"),
        ("wipe", {"approval": {}}, None),
        ("read", {"target_mode": "all", "on_node_loss": "reroute"}, "on_node_loss"),
        ("read", {"on_node_loss": "reroute"}, None),
        ("read", {"on_busy": "fail"}, None),
    ],
)
def test_fields_of_an_action(action, fields, expected):
    places = [(NO_EFFECT, f"/actions/0/{expected}")] if expected else []
    assert warned(plan_of(act("a", action, **fields))) == places


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"label": "of {{node.id}}"}, "label"),
        ({"target_node": "{{memory.place}}"}, "target_node"),
        ({"target_selector": 'room == "{{memory.room}}"'}, "target_selector"),
        ({"target_group": "{{env.IML_SITE}}"}, "target_group"),
        ({"label": "{ {node.id} }"}, None),
    ],
)
def test_templates_outside_of_params(fields, expected):
    places = [(NO_EFFECT, f"/actions/0/{expected}")] if expected else []
    assert warned(plan_of(act("a", **fields))) == places


def test_templates_in_what_a_person_is_asked():
    asked = {"message": "Open {{result.a.path}}?", "clarification_options": ["one", "{{node.id}}"]}
    assert warned(plan_of(act("a", requires_approval=True, approval=asked))) == [
        (NO_EFFECT, "/actions/0/approval/message"),
        (NO_EFFECT, "/actions/0/approval/clarification_options/1"),
    ]


def test_choices_that_sound_like_a_refusal_and_are_none():
    asked = {"clarification_options": ["yes", "No", "half"]}
    assert warned(plan_of(act("a", requires_approval=True, approval=asked))) == [
        (NO_EFFECT, "/actions/0/approval/clarification_options/1")
    ]


def test_fallback_nodes_of_several_nodes():
    fields = {"target_node": "n", "fallback_nodes": ["m"]}
    assert warned(plan_of(act(**fields))) == []
    assert warned(plan_of(act(**fields, target_mode="all"))) == [
        (NO_EFFECT, "/actions/0/fallback_nodes")
    ]


def test_a_barrier_without_waves():
    assert warned(plan_of(act(), barrier=True)) == [(NO_EFFECT, "/barrier")]
    assert warned(plan_of(act(), barrier=True, execution_mode="parallel")) == []


def test_a_requirement_of_a_module_that_nobody_uses():
    assert warned(plan_of(act(), module_requirements={"m": ">=1", "iot": ">=1"})) == [
        (NO_EFFECT, "/module_requirements/iot")
    ]


def test_what_only_undoes_others_reads_neither_dependencies_nor_targets():
    plan = plan_of(
        act("a", rollback={"action": "undo"}),
        act("undo", depends_on=["a"], target_node="n", target_mode="all", on_error="retry"),
    )
    assert warned(plan) == [
        (NO_EFFECT, f"/actions/1/{field}") for field in ("depends_on", "target_node", "target_mode")
    ]


def test_an_approval_of_an_unknown_module_may_be_asked():
    plan = plan_of({"id": "a", "module": "vision", "action": "look", "approval": {}})
    assert warned(plan) == [("module.unknown", "/actions/0/module")]
