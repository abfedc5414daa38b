"""Checking actions against manifests and the fleet: params, effects, targets, versions."""

import pytest

from iml_plans import FLEET, MANIFEST, SPECS, act, checked, found, plan_of, spec
from imlmesh_protocol import limits
from imlmesh_protocol.iml.document import document_of
from imlmesh_protocol.iml.plan import Action
from imlmesh_protocol.iml.requirements import satisfies
from imlmesh_protocol.iml.validate import effect_of, validate
from imlmesh_protocol.manifest import Manifest, Module
from imlmesh_protocol.states import Effect


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


def test_params_that_may_be_null_are_told_like_others():
    errors = [
        checked(plan_of(act(params={"path": "x", "max_bytes": bad}))).errors for bad in (0, "1")
    ]
    assert [e.message for found in errors for e in found] == [
        'action "a": the parameter "max_bytes" must be at least 1',
        'action "a": the parameter "max_bytes" must be of type integer',
    ]


def test_params_need_to_fit_one_of_the_versions_that_nodes_have():
    newer = Manifest({"m": Module("2", {"read": spec("read", {"file": {"type": "string"}})})})
    document = document_of(plan_of(act(params={"file": "x"})))
    assert validate(document, [MANIFEST, newer]).errors == []
    assert [e.code for e in validate(document, [MANIFEST]).errors] == ["action.params"] * 2


LAUGHS = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {}}


@pytest.mark.parametrize(
    "path",
    [
        {"$ref": "http://127.0.0.1:9/schema"},
        {"$ref": "file:///etc/hostname"},
        {"$ref": "#/nowhere"},
        {"$ref": "#/$defs/round"},
        {"$ref": "#/$defs/0"},
        {"type": 5},
        {"type": "no such"},
        {"$id": 5},
    ],
    ids=str,
)
def test_a_schema_that_is_none_fetches_nothing_and_has_no_say(path, monkeypatch):
    fetched = []
    monkeypatch.setattr("urllib.request.urlopen", lambda *to, **_: fetched.append(to))
    odd = spec("read", {"path": path})
    odd.params["$defs"] = LAUGHS | {"round": {"$ref": "#/$defs/round"}}
    odder = Manifest({"m": Module("3", {"read": odd})})
    document = document_of(plan_of(act(params={"path": "x"})))
    assert validate(document, [odder, MANIFEST]).errors == []
    (error,) = validate(document, [odder]).errors
    assert (error.code, error.place.pointer) == ("action.params", "/actions/0/params")
    assert "what its driver says of its parameters cannot be used" in error.message
    wrong = document_of(plan_of(act(params={"path": 5})))
    assert [
        "must be of type string" in e.message for e in validate(wrong, [odder, MANIFEST]).errors
    ]
    assert fetched == []


@pytest.mark.parametrize(
    "fields",
    [{"pattern": "(a+)+$"}, {"patternProperties": {"(a+)+$": {}}, "additionalProperties": False}],
    ids=str,
)
def test_expressions_of_a_manifest_are_for_its_driver_to_try(fields):
    odd = spec("read", {"path": {**fields}})
    for value in ("a" * 60 + "!", {"a" * 60 + "!": 1}):
        document = document_of(plan_of(act(params={"path": value})))
        assert validate(document, [Manifest({"m": Module("3", {"read": odd})})]).errors == []


def test_shapes_that_a_driver_names_are_followed():
    lamp = spec("read", {"path": {"$ref": "#/$defs/Lamp"}})
    lamp.params["$defs"] = {"Lamp": {"type": "object", "required": ["on"]}}
    mesh = [Manifest({"m": Module("3", {"read": lamp})})]
    document = document_of(plan_of(act(params={"path": {"on": 1}})))
    assert validate(document, mesh).errors == []
    wrong = document_of(plan_of(act(params={"path": {}})))
    assert 'the parameter "path.on" is missing' in validate(wrong, mesh).errors[0].message


def test_params_that_no_dispatch_can_carry_are_refused():
    plan = plan_of(act("a", params={"path": "x" * limits.PARAMS_BYTES}))
    assert ("template.too_large", "/actions/0/params") in found(plan)
    (told,) = [e for e in checked(plan).errors if e.code == "template.too_large"]
    assert 'bytes, "path" most of them; at most' in told.message


@pytest.mark.parametrize(
    ("action", "fields", "expected"),
    [
        ("read", {"effect": "physical"}, []),
        ("append", {"effect": "pure"}, [("plan.effect", "effect")]),
        ("pin", {"effect": "once"}, [("plan.effect", "effect")]),
        ("run", {"effect": "pure"}, []),
        ("read", {"impact": 0.5}, []),
        ("append", {"impact": 0.4}, [("plan.impact", "impact")]),
        ("read", {"impact": 0.71}, []),
        ("wipe", {}, []),
        ("wipe", {"impact": 0.7}, [("plan.impact", "impact")]),
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
        ("selector.syntax", "/actions/5/target_selector"),
    ]
    assert 'did you mean "pi-garden"?' in report.errors[0].message
    assert 'did you mean "soil-probes"?' in report.errors[1].message
    assert [code for code, _ in found(plan)] == ["plan.targets", "selector.syntax"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"quorum": 1}, ("plan.target_mode", "quorum")),
        ({"rolling": {}}, ("plan.target_mode", "rolling")),
        ({"rolling": {}, "target_mode": "all"}, ("plan.target_mode", "rolling")),
        ({"rolling": {"batch_size": 2}, "target_mode": "rolling"}, None),
        ({"target_mode": "rolling"}, None),
        ({"target_mode": "all", "quorum": 7}, None),
        ({"target_mode": "all", "quorum": 1, "target_group": "soil-probes"}, None),
        (
            {"target_mode": "all", "quorum": 2, "target_group": "soil-probes"},
            ("plan.quorum", "quorum"),
        ),
        ({"target_mode": "rolling", "quorum": 2, "target_node": "n2"}, ("plan.quorum", "quorum")),
        ({"fallback_nodes": ["n2"]}, ("plan.fallback", "fallback_nodes")),
        (
            {"fallback_nodes": ["n2"], "target_group": "soil-probes"},
            ("plan.fallback", "fallback_nodes"),
        ),
        (
            {"fallback_nodes": ["n2", "n3"], "target_node": "pi-garden"},
            ("place.unknown_node", "fallback_nodes/1"),
        ),
        ({"fallback_nodes": ["n2"], "target_node": "pi-garden"}, None),
    ],
)
def test_target_modes_quorum_rolling_and_fallback(fields, expected):
    errors = [(expected[0], f"/actions/0/{expected[1]}")] if expected else []
    assert found(plan_of(act(**fields)), FLEET) == errors


def test_an_unknown_group_has_no_quorum_to_compare():
    plan = plan_of(act(target_mode="all", quorum=2, target_group="soil"))
    assert found(plan) == []
    assert found(plan, FLEET) == [("place.no_group", "/actions/0/target_group")]


def test_what_undoes_gets_the_params_of_the_rollback_too():
    plan = plan_of(
        act("a", rollback={"action": "undo", "params": {"path": "x"}}),
        act("b", rollback={"action": "undo", "params": {"max_bytes": 0}}),
        act("undo", params={"mode": "odd"}),
    )
    assert sorted(found(plan)) == [
        ("action.params", "/actions/1/rollback/params/max_bytes"),
        ("action.params", "/actions/2/params"),
        ("action.params", "/actions/2/params/mode"),
    ]


def test_params_and_those_of_the_rollback_must_fit_a_dispatch_together():
    half = limits.PARAMS_BYTES // 2
    plan = plan_of(
        act("a", "any", rollback={"action": "undo", "params": {"x": "x" * half}}),
        act("undo", "any", params={"y": "y" * half}),
    )
    assert found(plan) == [("template.too_large", "/actions/1/params")]


@pytest.mark.parametrize(
    ("specifier", "code"),
    [
        (">=1", None),
        ("==1.*", None),
        ("", None),
        (">=1,<3", None),
        (">=3", "module.version"),
        ("!=1,!=2.0rc1", "module.version"),
        ("newest", "plan.requirement"),
        ("1.0", "plan.requirement"),
    ],
)
def test_module_requirements(specifier, code):
    newer = Manifest({"m": Module("2.0rc1", SPECS)})
    report = validate(
        document_of(plan_of(act(), module_requirements={"m": specifier})), [MANIFEST, newer]
    )
    places = [(code, "/module_requirements/m")] if code else []
    assert [(e.code, e.place.pointer) for e in report.errors] == places


def test_only_versions_that_satisfy_the_plan_count_for_its_params():
    newer = Manifest({"m": Module("2", {"read": spec("read", {"file": {"type": "string"}})})})
    old, new = plan_of(act()), plan_of(act(params={"file": "x"}))

    def codes(plan, specifier):
        document = document_of({**plan, "module_requirements": {"m": specifier}})
        return {e.code for e in validate(document, [MANIFEST, newer], FLEET).errors}

    assert codes(old, "<2") == codes(new, ">=2") == set()
    assert codes(old, ">=2") == codes(new, "<2") == {"action.params"}


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("0.1.0", ">=0.1", True),
        ("0.1.0", ">0.1", False),
        ("0.2rc1", ">=0.1", True),
        ("1.4.2", "~=1.4", True),
        ("2.0", "~=1.4", False),
        ("nightly", ">=0", False),
        ("nightly", "===nightly", True),
    ],
)
def test_a_version_satisfies_a_specifier(version, specifier, expected):
    assert satisfies(version, specifier) is expected
