"""Checking plans as a whole: their fields, what is unknown, and everything at once."""

import json

import pytest

from iml_plans import FLEET, MANIFEST, act, checked, found, plan_of
from imlmesh_protocol import limits
from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.validate import validate
from imlmesh_protocol.states import Effect


def test_a_good_plan_becomes_models_with_defaults():
    report = checked(plan_of(act(timeout=5), act("b", depends_on=["a"], effect="once")))
    assert report.warnings == []
    first, second = report.plan.actions
    assert (first.timeout, first.depends_on, first.on_error, first.effect) == (5, (), "abort", None)
    assert second.depends_on == ("a",)
    assert second.effect is Effect.ONCE
    assert second.timeout == 60


def test_what_is_often_missing_is_warned_about():
    report = checked({"actions": [act()]})
    assert [(w.code, w.place.pointer) for w in report.warnings] == [("plan.missing", "")] * 2
    assert report.plan.protocol_version == "2.0"


def test_a_nameless_plan_is_named_by_its_content():
    one, two = checked(plan_of(act())).plan, checked(plan_of(act(timeout=9))).plan
    assert one.plan_id.startswith("plan-")
    assert len(one.plan_id) == len("plan-") + 8
    assert one.plan_id == checked(plan_of(act())).plan.plan_id != two.plan_id
    assert checked(plan_of(act(), plan_id="mine")).plan.plan_id == "mine"


@pytest.mark.parametrize(
    ("fields", "code", "pointer"),
    [
        ({"protocol_version": "1.0"}, "plan.version", "/protocol_version"),
        ({"protocol_version": 2.0}, "plan.version", "/protocol_version"),
        ({"plan_id": "a b"}, "plan.field", "/plan_id"),
        ({"plan_id": ""}, "plan.field", "/plan_id"),
        ({"plan_id": "x" * 129}, "plan.field", "/plan_id"),
        ({"description": "x" * 1025}, "plan.field", "/description"),
        ({"execution_mode": "both"}, "plan.field", "/execution_mode"),
        ({"ttl_seconds": 0}, "plan.field", "/ttl_seconds"),
        ({"ttl_seconds": "60"}, "plan.field", "/ttl_seconds"),
        ({"actions": []}, "plan.field", "/actions"),
        ({"actions": {"a": 1}}, "plan.field", "/actions"),
        ({"metadata": {"tags": "x"}}, "plan.field", "/metadata/tags"),
    ],
)
def test_wrong_fields_of_a_plan(fields, code, pointer):
    assert found({**plan_of(act()), **fields}) == [(code, pointer)]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"id": "a b"}, "id"),
        ({"id": "x" * 65}, "id"),
        ({"id": 5}, "id"),
        ({"module": "M"}, "module"),
        ({"action": "read-file"}, "action"),
        ({"params": None}, "params"),
        ({"depends_on": "b"}, "depends_on"),
        ({"on_error": "ignore"}, "on_error"),
        ({"timeout": "5"}, "timeout"),
        ({"timeout": 5.0}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 3601}, "timeout"),
        ({"label": "x" * 257}, "label"),
        ({"tags": ["x"] * 21}, "tags"),
        ({"tags": ["x" * 65]}, "tags/0"),
        ({"on_node_loss": "move"}, "on_node_loss"),
        ({"effect": "maybe"}, "effect"),
        ({"impact": 1.5}, "impact"),
        ({"lease_seconds": 0}, "lease_seconds"),
        ({"target_node": ""}, "target_node"),
    ],
)
def test_wrong_fields_of_an_action(fields, pointer):
    assert found(plan_of({**act(), **fields})) == [("plan.field", f"/actions/0/{pointer}")]


def test_missing_fields_are_named_with_their_action():
    report = checked(plan_of({"id": "a"}, act("b"), 5))
    assert [(e.code, e.message) for e in report.errors] == [
        ("plan.missing", 'action "a": "module" is missing'),
        ("plan.missing", 'action "a": "action" is missing'),
        ("plan.field", "action number 3 must be an object of fields"),
    ]


@pytest.mark.parametrize("data", [5, None, [], "actions"])
def test_what_is_no_object_is_no_plan(data):
    assert found(data) == [("plan.field", "")]


def test_unknown_fields_of_a_plain_json_plan_are_warnings():
    plan = plan_of(act(dependson=["b"], metadatum=1), colour="red", metadata={"x": 1})
    report = validate(parse(json.dumps(plan)), [MANIFEST])
    assert report.errors == []
    assert [(w.code, w.place.pointer) for w in report.warnings] == [
        ("plan.unknown_field", "/actions/0/dependson"),
        ("plan.unknown_field", "/actions/0/metadatum"),
        ("plan.unknown_field", "/colour"),
        ("plan.unknown_field", "/metadata/x"),
    ]
    assert 'did you mean "depends_on"?' in report.warnings[0].message


def test_unknown_fields_are_errors_in_yaml_and_beside_fields_of_ours():
    assert found(plan_of(act(colour=1, target_group="g"))) == [
        ("plan.unknown_field", "/actions/0/colour")
    ]
    assert found(plan_of(act(), ttl_seconds=5, colour=1)) == [("plan.unknown_field", "/colour")]
    report = validate(parse("actions:\n- {id: a, module: m, action: run, time: 5}\n"), [MANIFEST])
    [error] = report.errors
    assert (error.code, error.place.line, error.place.column) == ("plan.unknown_field", 2, 35)


def test_too_many_actions():
    plan = plan_of(*(act(f"a{n}") for n in range(limits.PLAN_ACTIONS + 1)))
    assert found(plan) == [("plan.too_many_actions", "/actions")]
    assert found(plan, max_actions=1_000) == []


def test_errors_are_bounded():
    plan = plan_of(*(act(f"a{n}", timeout=0) for n in range(300)))
    assert len(found(plan)) == limits.PLAN_ERRORS


def test_a_message_is_bounded():
    [error] = checked(plan_of(act(), ttl_seconds=1, **{"k" * 10_000: 1})).errors
    assert error.code == "plan.unknown_field"
    assert len(error.message) == limits.FINDING_CHARS + 1


def test_all_errors_of_a_file_come_at_once_in_its_order():
    text = """\
protocol_version: "2.0"
description: everything is wrong
actions:
  - id: read
    module: m
    action: read
    params: {path: 5}
    depends_on: [decide]
    timeout: 4000
  - id: decide
    module: m
    action: think
    depends_on: [read, nobody]
  - id: decide
    module: m
    action: append
    effect: pure
    rollback: {action: nobody}
    target_group: soil-probe
"""
    report = validate(parse(text, "plan.iml.yaml"), [MANIFEST], FLEET)
    assert [(e.code, str(e.place)) for e in report.errors] == [
        ("plan.cycle", "plan.iml.yaml:8:18"),
        ("plan.field", "plan.iml.yaml:9:14"),
        ("action.unknown", "plan.iml.yaml:12:13"),
        ("plan.unknown_dependency", "plan.iml.yaml:13:24"),
        ("plan.duplicate_id", "plan.iml.yaml:14:9"),
        ("plan.effect", "plan.iml.yaml:17:13"),
        ("plan.unknown_rollback", "plan.iml.yaml:18:24"),
        ("place.no_group", "plan.iml.yaml:19:19"),
    ]
    assert all(e.hint for e in report.errors)
    assert "line 10" in report.errors[4].message
