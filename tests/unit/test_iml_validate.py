"""Checking plans: every kind of mistake with its code and place, all of them at once."""

import json

import pytest

from imlmesh_protocol import limits
from imlmesh_protocol.iml.document import document_of, parse
from imlmesh_protocol.iml.plan import ACTION_EXTENSIONS, PLAN_EXTENSIONS, Action, Plan
from imlmesh_protocol.iml.unsupported import TABLE
from imlmesh_protocol.iml.validate import Fleet, effect_of, validate
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect


def spec(action, properties, required=(), *, effect=Effect.PURE, impact=0.1, vouch=False):
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    return ActionSpec("m", action, schema, (), effect, "readonly", impact, vouch=vouch)


SPECS = {
    "read": spec(
        "read",
        {
            "path": {"type": "string", "maxLength": 20},
            "max_bytes": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
            "mode": {"enum": ["fast", "slow"]},
            "lines": {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
        },
        ["path"],
    ),
    "set": spec("set", {"n": {"type": "integer"}}, effect=Effect.IDEMPOTENT, impact=0.3),
    "run": spec("run", {}, effect=Effect.ONCE, impact=0.6, vouch=True),
    "append": spec("append", {}, effect=Effect.ONCE, impact=0.5),
    "pin": spec("pin", {}, effect=Effect.PHYSICAL, impact=0.5),
    "wipe": spec("wipe", {}, effect=Effect.ONCE, impact=0.75),
}
MANIFEST = Manifest({"m": Module("1", SPECS)})
FLEET = Fleet({"pi-garden": "pi-garden", "pi-attic": "n2"}, {"soil-probes": ("n2",), "empty": ()})


def act(id="a", action="read", **fields):
    params = {"path": "x"} if action == "read" else {}
    return {"id": id, "module": "m", "action": action, "params": params, **fields}


def plan_of(*actions, **fields):
    return {"protocol_version": "2.0", "description": "d", "actions": list(actions), **fields}


def checked(plan, fleet=None, **limit):
    report = validate(document_of(plan), [MANIFEST], fleet, **limit)
    assert (report.plan is None) == bool(report.errors)
    return report


def found(plan, fleet=None, **limit):
    return [(e.code, e.place.pointer) for e in checked(plan, fleet, **limit).errors]


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


def test_ids_are_unique_and_dependencies_known():
    plan = plan_of(
        act("a", depends_on=["a"]), act("b", depends_on=["a", "reed"]), act("a"), act("read")
    )
    report = checked(plan)
    assert [(e.code, e.place.pointer) for e in report.errors] == [
        ("plan.duplicate_id", "/actions/2/id"),
        ("plan.self_dependency", "/actions/0/depends_on/0"),
        ("plan.unknown_dependency", "/actions/1/depends_on/1"),
    ]
    assert 'did you mean "read"?' in report.errors[2].message


def test_every_cycle_is_named():
    plan = plan_of(
        act("c", depends_on=["a", "d"]),
        act("a", depends_on=["b"]),
        act("b", depends_on=["a"]),
        act("d", depends_on=["c"]),
        act("e", depends_on=["b"]),
        act("x", depends_on=["y"]),
        act("y", depends_on=["z"]),
        act("z", depends_on=["x"]),
    )
    report = checked(plan)
    assert {(e.code, e.message, e.place.pointer) for e in report.errors} == {
        ("plan.cycle", "actions wait for each other: a → b → a", "/actions/1/depends_on/0"),
        ("plan.cycle", "actions wait for each other: c → d → c", "/actions/0/depends_on/1"),
        ("plan.cycle", "actions wait for each other: x → y → z → x", "/actions/5/depends_on/0"),
    }


def test_templates_reach_ancestors_only():
    plan = plan_of(
        act("a"),
        act("b", depends_on=["a"]),
        act("c", depends_on=["b"], params={"path": "{{result.a.x}}{{result.b}}"}),
        act("d", params={"path": "{{result.a}}"}),
        act("e", params={"path": "{{result.f}}{{result.e}}"}),
        act("g", params={"path": "{{result.a"}),
        act("h", params={"path": "{{env.HOME}}"}),
        act("i", params={"path": "{{env.IML_X}}{{node.id}}"}),
    )
    assert found(plan) == [
        ("template.not_ancestor", "/actions/3/params/path"),
        ("template.not_ancestor", "/actions/4/params/path"),
        ("template.not_ancestor", "/actions/4/params/path"),
        ("template.syntax", "/actions/5/params/path"),
        ("template.env", "/actions/6/params/path"),
    ]


def test_a_compensation_may_use_what_it_undoes():
    plan = plan_of(
        act("a"),
        act("b", depends_on=["a"], rollback={"action": "undo"}),
        act("undo", params={"path": "{{result.a}}{{result.b}}"}),
        act("other"),
        act("undo2", params={"path": "{{result.other}}"}),
    )
    assert found(plan) == [
        ("plan.unsupported", "/actions/1/rollback"),
        ("template.not_ancestor", "/actions/4/params/path"),
    ]


def test_modules_and_actions_must_be_known():
    plan = plan_of(act("a", "raed"), {"id": "b", "module": "vision", "action": "look"})
    offline = checked(plan)
    assert [(e.code, e.place.pointer) for e in offline.errors] == [
        ("action.unknown", "/actions/0/action")
    ]
    assert 'did you mean "read"?' in offline.errors[0].message
    assert [(w.code, w.place.pointer) for w in offline.warnings] == [
        ("module.unknown", "/actions/1/module")
    ]
    assert ("module.unknown", "/actions/1/module") in found(plan, FLEET)


@pytest.mark.parametrize(
    ("params", "pointers"),
    [
        ({}, [""]),
        ({"path": 5}, ["/path"]),
        ({"path": "x" * 21}, ["/path"]),
        ({"path": "x", "max_bytes": 0}, ["/max_bytes"]),
        ({"path": "x", "mode": "odd"}, ["/mode"]),
        ({"path": "x", "lines": [1, "2"]}, ["/lines/1"]),
        ({"path": "x", "lines": [1, 2, 3]}, ["/lines"]),
        ({"path": "x", "lines": "{{node.id}} 1"}, ["/lines"]),
        ({"pth": "x", "foo": 1}, ["", "/foo", "/pth"]),
        ({"path": "x", "max_bytes": None, "mode": "slow"}, []),
        ({"path": "{{env.IML_A_LONG_NAME}}"}, []),
        ({"path": "x", "max_bytes": "{{env.IML_N}}"}, []),
        ({"path": "x", "mode": "{{env.IML_M}}"}, []),
        ({"path": "x", "lines": "{{env.IML_L}}"}, []),
        ({"path": "x", "lines": [1, "{{env.IML_L}}"]}, []),
    ],
)
def test_params_fit_the_manifest_as_far_as_they_are_known(params, pointers):
    expected = [("action.params", f"/actions/0/params{pointer}") for pointer in pointers]
    assert sorted(found(plan_of(act(params=params)))) == expected


def test_params_errors_say_what_to_do():
    errors = checked(plan_of(act(params={"pth": "x"}))).errors
    assert {e.message for e in errors} == {
        'action "a": the parameter "path" is missing',
        'action "a": the parameter "pth" is unknown; did you mean "path"?',
    }


def test_params_need_to_fit_one_of_the_versions_that_nodes_have():
    newer = Manifest({"m": Module("2", {"read": spec("read", {"file": {"type": "string"}})})})
    document = document_of(plan_of(act(params={"file": "x"})))
    assert validate(document, [MANIFEST, newer]).errors == []
    assert [e.code for e in validate(document, [MANIFEST]).errors] == ["action.params"] * 2


def test_params_that_no_dispatch_can_carry_are_refused():
    plan = plan_of(act("a", params={"path": "x" * limits.PARAMS_BYTES}))
    assert ("template.too_large", "/actions/0/params") in found(plan)


@pytest.mark.parametrize(
    ("action", "fields", "expected"),
    [
        ("read", {"effect": "physical"}, []),
        ("append", {"effect": "pure"}, [("plan.effect", "effect")]),
        ("pin", {"effect": "once"}, [("plan.effect", "effect")]),
        ("run", {"effect": "pure"}, []),
        ("read", {"impact": 0.5}, []),
        ("append", {"impact": 0.4}, [("plan.impact", "impact")]),
        ("read", {"impact": 0.71}, [("plan.unsupported", "impact")]),
        ("wipe", {}, [("plan.unsupported", "action")]),
        ("read", {"on_node_loss": "reroute"}, []),
        ("run", {"on_node_loss": "reroute"}, [("plan.reroute", "on_node_loss")]),
        ("run", {"on_node_loss": "reroute", "effect": "pure"}, []),
        ("read", {"on_node_loss": "reroute", "effect": "once"}, [("plan.reroute", "on_node_loss")]),
        ("pin", {"on_node_loss": "ask"}, []),
    ],
)
def test_effect_and_impact(action, fields, expected):
    plan = plan_of(act("a", action, **fields))
    assert found(plan) == [(code, f"/actions/0/{field}") for code, field in expected]


def test_the_effect_of_a_plan_counts_before_the_drivers():
    assert effect_of(Action(id="a", module="m", action="read"), SPECS["read"]) is Effect.PURE
    careful = Action(id="a", module="m", action="read", effect="once")
    assert effect_of(careful, SPECS["read"]) is Effect.ONCE


def test_targets_are_checked_against_the_fleet():
    plan = plan_of(
        act("a", target_node="pi-gardn"),
        act("b", target_group="soil-probe"),
        act("c", target_group="empty"),
        act("d", target_node="pi-attic"),
        act("e", target_group="soil-probes", target_node="n2"),
        act("f", target_selector="os = linux"),
    )
    report = checked(plan, FLEET)
    assert [(e.code, e.place.pointer) for e in report.errors] == [
        ("place.unknown_node", "/actions/0/target_node"),
        ("place.no_group", "/actions/1/target_group"),
        ("place.empty_group", "/actions/2/target_group"),
        ("plan.targets", "/actions/4/target_group"),
        ("place.unknown_node", "/actions/4/target_node"),
        ("selector.syntax", "/actions/5/target_selector"),
    ]
    assert 'did you mean "pi-garden"?' in report.errors[0].message
    assert 'did you mean "soil-probes"?' in report.errors[1].message
    assert [code for code, _ in found(plan)] == ["plan.targets", "selector.syntax"]


REFUSED = [
    ({"execution_mode": "reactive"}, "/execution_mode"),
    ({"plan_mode": "compiler"}, "/plan_mode"),
    ({"compiler_trace": {}}, "/compiler_trace"),
    ({"module_requirements": {"m": ">=1"}}, "/module_requirements"),
    ({"nonce": "n"}, "/nonce"),
    ({"not_before": "2026-01-01T00:00:00Z"}, "/not_before"),
    ({"barrier": True}, "/barrier"),
]
REFUSED_OF_ACTIONS = [
    {"perception": {}},
    {"memory": {"write_key": "k"}},
    {"target_mode": "all"},
    {"target_mode": "rolling"},
    {"quorum": 2},
    {"rolling": {}},
    {"fallback_nodes": ["n"]},
    {"on_error": "retry"},
    {"on_error": "rollback"},
    {"retry": {}},
    {"rollback": {"action": "a"}},
    {"requires_approval": True},
    {"approval": {}},
    {"claims": ["gpio:17"]},
    {"on_busy": "fail"},
]


@pytest.mark.parametrize(("fields", "pointer"), REFUSED)
def test_fields_of_a_plan_that_are_not_acted_on(fields, pointer):
    assert found(plan_of(act(), **fields)) == [("plan.unsupported", pointer)]


@pytest.mark.parametrize("fields", REFUSED_OF_ACTIONS)
def test_fields_of_an_action_that_are_not_acted_on(fields):
    [field] = fields
    assert found(plan_of(act(**fields))) == [("plan.unsupported", f"/actions/0/{field}")]


@pytest.mark.parametrize("root", ["memory.k", "trigger.payload.x"])
def test_templates_that_are_not_filled(root):
    plan = plan_of(act(params={"path": f"{{{{{root}}}}}"}))
    assert found(plan) == [("plan.unsupported", "/actions/0/params/path")]


def test_every_row_of_the_table_is_a_field_and_is_tested():
    tested = {("Plan", next(iter(fields))) for fields, _ in REFUSED}
    tested |= {("Action", next(iter(fields))) for fields in REFUSED_OF_ACTIONS}
    assert {(row.model.__name__, row.field) for row in TABLE} == tested
    assert all(row.field in row.model.model_fields for row in TABLE)
    assert set(Plan.model_fields) > PLAN_EXTENSIONS
    assert set(Action.model_fields) > ACTION_EXTENSIONS


def test_defaults_that_are_written_out_are_not_refused():
    fields = {
        name: f.get_default(call_default_factory=True) for name, f in Action.model_fields.items()
    }
    written = {k: v for k, v in fields.items() if k not in ("id", "module", "action", "params")}
    plan = plan_of(act(**written), barrier=False, execution_mode="sequential", nonce=None)
    assert found(plan) == []


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
    retry: {max_attempts: 2}
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
        ("plan.unsupported", "plan.iml.yaml:18:12"),
        ("place.no_group", "plan.iml.yaml:19:19"),
    ]
    assert all(e.hint for e in report.errors)
    assert "line 10" in report.errors[4].message
