"""Every field of IML v2 by its name: a value that is taken, and one that is refused, with its place."""

import pytest

from iml_plans import FLEET, act, checked, found, plan_of
from imlmesh_protocol.iml.plan import (
    ACTION_EXTENSIONS,
    PLAN_EXTENSIONS,
    Action,
    Approval,
    CompilerTrace,
    Memory,
    Metadata,
    Perception,
    Plan,
    Retry,
    Rollback,
    Rolling,
    instant_ms,
)
from imlmesh_protocol.iml.unsupported import TABLE

LONG = "x" * 2_000

#: field → what is taken, what is refused, and the code and place of the refusal
PLAN_FIELDS = {
    "protocol_version": ("2.0", "2.1", "plan.version", ""),
    "plan_id": ("night_Run-1", "a/b", "plan.field", ""),
    "description": ("water the beds", LONG, "plan.field", ""),
    "session_id": ("Grün 1", "", "plan.field", ""),
    "execution_mode": ("parallel", "reactive", "plan.unsupported", ""),
    "plan_mode": ("standard", "compiler", "plan.unsupported", ""),
    "compiler_trace": (None, {"generation_approved": True}, "plan.unsupported", ""),
    "metadata": ({"context": {"any": [1]}}, [], "plan.field", ""),
    "metadata.created_by": ("me", 5, "plan.field", ""),
    "metadata.llm_model": ("m", 5, "plan.field", ""),
    "metadata.tags": (["a"], [1], "plan.field", "/0"),
    "metadata.context": ({"any": 1}, [], "plan.field", ""),
    "module_requirements": ({"m": ">=1,<2"}, {"m": "newest"}, "plan.requirement", "/m"),
    "actions": ([act()], [], "plan.field", ""),
    "app_id": ("a" * 128, "a" * 129, "plan.field", ""),
    "agent_id": ("agent", "a\tb", "plan.field", ""),
    "ttl_seconds": (60, 0, "plan.field", ""),
    "nonce": ("n-1", "", "plan.field", ""),
    "not_before": ("2026-11-21T06:00:00+01:00", "2026-02-29T06:00:00Z", "plan.field", ""),
    "barrier": (True, "yes", "plan.field", ""),
}
ACTION_FIELDS = {
    "id": ("Sum_a-1", "a@b", "plan.field", ""),
    "module": ("m", "M", "plan.field", ""),
    "action": ("read", "red", "action.unknown", ""),
    "params": ({"path": "y"}, {"path": 5}, "action.params", "/path"),
    "depends_on": (["other"], ["nobody"], "plan.unknown_dependency", "/0"),
    "on_error": ("retry", "ignore", "plan.field", ""),
    "requires_approval": (True, 1, "plan.field", ""),
    "timeout": (3_600, 3_601, "plan.field", ""),
    "retry": ({}, 3, "plan.field", ""),
    "retry.max_attempts": (10, 11, "plan.field", ""),
    "retry.delay_seconds": (0.1, 300.5, "plan.field", ""),
    "retry.backoff_factor": (1, 0.5, "plan.field", ""),
    "retry.retry_on": ([], "TimeoutError", "plan.field", ""),
    "rollback": ({"action": "other"}, {}, "plan.missing", ""),
    "rollback.action": ("other", "nobody", "plan.unknown_rollback", ""),
    "rollback.params": ({"path": "z"}, {"pth": "z"}, "action.params", "/pth"),
    "perception": (None, {"capture_after": True}, "plan.unsupported", ""),
    "memory": ({"write_key": "k"}, "k", "plan.field", ""),
    "memory.read_keys": (["user:last"], ["a b"], "plan.field", "/0"),
    "memory.write_key": ("k" * 128, "k" * 129, "plan.field", ""),
    "memory.vector_search": (None, "leaves", "plan.unsupported", ""),
    "memory.top_k": (3, 5, "plan.unsupported", ""),
    "approval": ({}, True, "plan.field", ""),
    "approval.message": ("Now?\n" * 400, "x" * 2_001, "plan.field", ""),
    "approval.risk_level": ("critical", "huge", "plan.field", ""),
    "approval.timeout_seconds": (10, 9, "plan.field", ""),
    "approval.timeout_behavior": ("skip", "approve", "plan.field", ""),
    "approval.clarification_options": (["left", "x" * 256], "left", "plan.field", ""),
    "label": ("Read it", LONG, "plan.field", ""),
    "tags": (["x"] * 20, ["x"] * 21, "plan.field", ""),
    "target_node": ("pi-attic", "pi-attik", "place.unknown_node", ""),
    "target_group": ("soil-probes", "soil", "place.no_group", ""),
    "target_selector": ('os == "linux"', "os = linux", "selector.syntax", ""),
    "target_mode": ("rolling", "some", "plan.field", ""),
    "quorum": ("all", 0, "plan.field", ""),
    "rolling": (None, {}, "plan.target_mode", ""),
    "fallback_nodes": ([], ["pi-attic"], "plan.fallback", ""),
    "on_node_loss": ("ask", "move", "plan.field", ""),
    "effect": ("once", "maybe", "plan.field", ""),
    "impact": (0.71, 0.05, "plan.impact", ""),
    "claims": (["gpio:17"], ["gpio:{pin}"], "plan.field", "/0"),
    "on_busy": ("fail", "queue", "plan.field", ""),
    "lease_seconds": (60, 0, "plan.field", ""),
}
ROLLING_FIELDS = {
    "rolling.batch_size": (5, 0, "plan.field", ""),
    "rolling.max_failures": (1, -1, "plan.field", ""),
}
INNER = {
    "metadata": Metadata,
    "retry": Retry,
    "rollback": Rollback,
    "memory": Memory,
    "approval": Approval,
    "rolling": Rolling,
}


def nested(name, value):
    """{"retry": {"max_attempts": 3}} of "retry.max_attempts"; a rollback needs its action."""
    outer, _, inner = name.partition(".")
    if not inner:
        return {outer: value}
    return {outer: ({"action": "other"} if outer == "rollback" else {}) | {inner: value}}


def plan_with(name, value):
    if name in PLAN_FIELDS:
        return {**plan_of(act()), **nested(name, value)}
    more = {"target_mode": "rolling"} if name in ROLLING_FIELDS else {}
    return plan_of({**act(), **nested(name, value), **more}, act("other"))


CASES = {**PLAN_FIELDS, **ACTION_FIELDS, **ROLLING_FIELDS}


@pytest.mark.parametrize("name", CASES)
def test_field_is_taken(name):
    assert found(plan_with(name, CASES[name][0]), FLEET) == []


@pytest.mark.parametrize("name", CASES)
def test_field_is_refused(name):
    _, value, code, inside = CASES[name]
    place = "/" + name.replace(".", "/") + inside
    if code == "plan.missing":
        place = "/rollback"
    expected = place if name in PLAN_FIELDS else "/actions/0" + place
    assert found(plan_with(name, value), FLEET) == [(code, expected)]


#: fields within what is not acted on, each with a value of its own
UNSUPPORTED = {
    "compiler_trace.analysis": "a",
    "compiler_trace.resolution": "r",
    "compiler_trace.validation": "v",
    "compiler_trace.generation_approved": True,
    "compiler_trace.llm_model": "m",
    "compiler_trace.prompt_tokens": 5,
    "compiler_trace.extra": {"any": 1},
    "perception.capture_before": True,
    "perception.capture_after": False,
    "perception.ocr_enabled": True,
    "perception.validate_output": "$.ok",
    "perception.timeout_seconds": 60,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_field_of_what_is_not_acted_on_is_refused(name):
    outer = name.partition(".")[0]
    place = f"/{outer}" if outer in Plan.model_fields else f"/actions/0/{outer}"
    assert found(plan_with(outer, nested(name, UNSUPPORTED[name])[outer]), FLEET) == [
        ("plan.unsupported", place)
    ]


@pytest.mark.parametrize("name", ["session_id", "app_id", "agent_id"])
@pytest.mark.parametrize(
    "sign", ["\0", "\n", "\x7f", "\x85", "\u2028", "\u202e", "\u2066", "\u200f"]
)
def test_a_name_beyond_the_plan_is_printable(name, sign):
    assert found(plan_of(act(), **{name: f"a{sign}b"})) == [("plan.field", f"/{name}")]


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["one", "approve"], "/1"),
        (["deny"], "/0"),
        # the gate would deny and skip
        (["fail", "skip"], "/0 /1"),
        (["Approve", "yes", " DENY"], "/0 /2"),
        (["one", "one"], ""),
        ([""], "/0"),
        (["x" * 257], "/0"),
        (["a\x1bb"], "/0"),
        (["a\nb"], "/0"),
        ([str(n) for n in range(21)], ""),
    ],
)
def test_an_answer_is_a_word_of_its_own(options, place):
    asked = act("a", "wipe", approval={"clarification_options": options})
    pointer = "/actions/0/approval/clarification_options"
    places = [pointer + each for each in place.split()] or [pointer]
    assert found(plan_of(asked)) == [("plan.field", each) for each in places]


def test_a_question_is_text_without_control_characters():
    [error] = checked(plan_of(act("a", "wipe", approval={"message": "Now\x1b[2J?"}))).errors
    assert (error.code, error.place.pointer) == ("plan.field", "/actions/0/approval/message")
    assert "no control character" in error.message


def test_every_field_is_tested():
    tested = {name for name in CASES if "." not in name}
    assert tested == Plan.model_fields.keys() | Action.model_fields.keys()
    for outer, model in INNER.items():
        inner = {name.partition(".")[2] for name in CASES if name.startswith(f"{outer}.")}
        assert inner == set(model.model_fields)
    for outer, model in {"compiler_trace": CompilerTrace, "perception": Perception}.items():
        inner = {name.partition(".")[2] for name in UNSUPPORTED if name.startswith(f"{outer}.")}
        assert inner == set(model.model_fields)
    assert set(Plan.model_fields) > PLAN_EXTENSIONS
    assert set(Action.model_fields) > ACTION_EXTENSIONS


def test_every_refused_field_is_one_and_is_tested():
    prefix = {Plan: "", Action: "", Memory: "memory."}
    refused = {prefix[row.model] + row.field for row in TABLE}
    assert refused == {name for name, case in CASES.items() if case[2] == "plan.unsupported"}
    assert all(row.field in row.model.model_fields for row in TABLE)


def test_defaults_that_are_written_out_are_not_refused():
    fields = {
        name: f.get_default(call_default_factory=True) for name, f in Action.model_fields.items()
    }
    written = {k: v for k, v in fields.items() if k not in ("id", "module", "action", "params")}
    memory = {"read_keys": [], "write_key": None, "vector_search": None, "top_k": 3}
    plan = plan_of(act(**{**written, "memory": memory}), barrier=False, nonce=None)
    assert found(plan) == []


def test_what_no_trigger_gives_is_not_filled():
    plan = plan_of(act(params={"path": "{{trigger.payload.x}}"}))
    assert found(plan) == [("plan.unsupported", "/actions/0/params/path")]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1970-01-01T00:00:01Z", 1_000),
        ("1970-01-01t01:00:00.5+01:00", 500),
        ("2026-11-21 00:00:00.123456789z", 1_795_219_200_123),
    ],
)
def test_not_before_is_an_instant(written, expected):
    assert checked(plan_of(act(), not_before=written)).plan.not_before == written
    assert instant_ms(written) == expected


@pytest.mark.parametrize(
    "written", ["2026-13-01T00:00:00Z", "2026-01-01T25:00:00Z", "2026-01-01T00:00:00+24:00", "now"]
)
def test_not_before_must_exist(written):
    [error] = checked(plan_of(act(), not_before=written)).errors
    assert (error.code, error.place.pointer) == ("plan.field", "/not_before")


@pytest.mark.parametrize("junk", [None, 5, "{{", [[]], {"action": []}])
def test_no_value_of_any_field_breaks_the_check(junk):
    templates = act("b", depends_on=["a"], params={"path": "{{result.a.x.y}}{{memory.k}}"})
    for name in CASES:
        several = act(target_mode="all", target_group="soil-probes", memory={"read_keys": ["k"]})
        field = nested(name, junk)
        plans = (
            plan_of({**several, **field}, templates, act("other")),
            plan_of({**several, "rollback": {"action": "b"}}, {**templates, **field}),
            {**plan_of(several, templates), **field},
        )
        for plan in plans:
            checked(plan, FLEET)
