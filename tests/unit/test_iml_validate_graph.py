"""Checking who waits for whom, who undoes whom, and what templates take from others."""

import pytest

from iml_plans import FLEET, act, checked, found, plan_of


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
    assert found(plan) == [("template.not_ancestor", "/actions/4/params/path")]


def test_a_rollback_names_an_action_of_the_plan():
    report = checked(plan_of(act("a", rollback={"action": "unod"}), act("undo")))
    [error] = report.errors
    assert (error.code, error.place.pointer) == (
        "plan.unknown_rollback",
        "/actions/0/rollback/action",
    )
    assert 'did you mean "undo"?' in error.message


def test_every_rollback_cycle_is_named_once():
    plan = plan_of(
        act("c", rollback={"action": "b"}),
        act("a", rollback={"action": "b"}),
        act("b", rollback={"action": "d"}),
        act("d", rollback={"action": "b"}),
        act("self", rollback={"action": "self"}),
    )
    assert {(e.code, e.message, e.place.pointer) for e in checked(plan).errors} == {
        ("plan.rollback_cycle", "actions undo each other: b → d → b", "/actions/2/rollback/action"),
        (
            "plan.rollback_cycle",
            "actions undo each other: self → self",
            "/actions/4/rollback/action",
        ),
    }


def test_nothing_waits_for_what_only_undoes():
    plan = plan_of(
        act("a", rollback={"action": "undo"}),
        act("undo", depends_on=["a"]),
        act("b", depends_on=["a", "undo"]),
        act("c", rollback={"action": "undo2"}),
        act("undo2", depends_on=["undo"]),
    )
    assert found(plan) == [("plan.depends_on_compensation", "/actions/2/depends_on/1")]


def test_what_undoes_may_not_use_what_it_depends_on():
    plan = plan_of(
        act("first"),
        act("a", rollback={"action": "undo"}),
        act("undo", depends_on=["first"], params={"path": "{{result.first}}"}),
    )
    assert found(plan) == [("template.not_ancestor", "/actions/2/params/path")]


def test_params_of_a_rollback_may_use_what_is_undone():
    plan = plan_of(
        act("a"),
        act(
            "b",
            depends_on=["a"],
            rollback={"action": "undo", "params": {"path": "{{result.a}}{{result.b}}"}},
        ),
        act("c", rollback={"action": "undo", "params": {"path": "{{result.b}} {{result.c"}}),
        act("undo"),
    )
    assert found(plan) == [
        ("template.syntax", "/actions/2/rollback/params/path"),
        ("template.not_ancestor", "/actions/2/rollback/params/path"),
    ]


@pytest.mark.parametrize("mode", ["all", "rolling"])
@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("a", None),
        ("a.*", None),
        ("a.*.content", None),
        ("a._error.code", None),
        ("a.pi-garden", None),
        ("a.pi-attic.content", None),
        ("a.content", "template.member"),
        ("a.path.0", "template.member"),
        ("a.Field", "template.member"),
    ],
)
def test_a_result_of_several_nodes_is_taken_by_node(mode, path, code):
    plan = plan_of(
        act("a", target_mode=mode),
        act("b", depends_on=["a"], params={"path": f"{{{{result.{path}}}}}"}),
    )
    places = [(code, "/actions/1/params/path")] if code else []
    assert found(plan) == places
    assert found(plan, FLEET) == places


@pytest.mark.parametrize(
    ("target", "path", "code"),
    [
        ({}, "a.pi-gardn", "template.member"),
        ({}, "a.n2.content", None),
        ({"target_group": "soil-probes"}, "a.n2", None),
        ({"target_group": "soil-probes"}, "a.pi-attic", None),
        ({"target_group": "soil-probes"}, "a.pi-garden", "template.member"),
        ({"target_node": "pi-attic"}, "a.n2", None),
        ({"target_node": "pi-attic"}, "a.pi-garden", "template.member"),
    ],
)
def test_with_a_fleet_the_node_must_take_part(target, path, code):
    plan = plan_of(
        act("a", target_mode="all", **target),
        act("b", depends_on=["a"], params={"path": f"{{{{result.{path}}}}}"}),
    )
    places = [(code, "/actions/1/params/path")] if code else []
    assert found(plan, FLEET) == places
    assert found(plan) == []


def test_a_wildcard_needs_several_nodes():
    plan = plan_of(act("a"), act("b", depends_on=["a"], params={"path": "{{result.a.*.content}}"}))
    assert found(plan) == [("template.wildcard", "/actions/1/params/path")]


def test_memory_is_read_by_keys():
    reads = {"memory": {"read_keys": ["user:last", "place"]}}
    plan = plan_of(
        act("a", params={"path": "{{memory.user:last}}{{memory.place.0.x}}"}, **reads),
        act("b", params={"path": "{{memory.plaec}}"}, **reads),
        act("c", params={"path": "{{memory.place}}"}),
        act("d", rollback={"action": "u", "params": {"path": "{{memory.place}}"}}, **reads),
        act("u"),
    )
    report = checked(plan)
    assert [(e.code, e.place.pointer) for e in report.errors] == [
        ("template.memory_key", "/actions/1/params/path"),
        ("template.memory_key", "/actions/2/params/path"),
    ]
    assert 'did you mean "place"?' in report.errors[0].message
