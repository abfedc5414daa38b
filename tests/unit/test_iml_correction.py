"""The text that asks a plan's author to correct it: complete, bounded, always the same."""

import pytest

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.iml.correction import correction
from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.repair import repair
from imlmesh_protocol.iml.validate import validate
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect

PARAMS = {
    "type": "object",
    "properties": {"path": {"type": "string"}},
    "required": ["path"],
    "additionalProperties": False,
}
READ = ActionSpec("files", "read", PARAMS, (), Effect.PURE, "readonly", 0.1)
WRITE = ActionSpec("files", "write", {"type": "object"}, (), Effect.PURE, "readonly", 0.1)
FILES = Manifest({"files": Module("1.0", {"read": READ, "write": WRITE})})


def asked(text):
    """The correction of a text that can be read."""
    repaired = repair(text)
    report = validate(repaired.document, [FILES])
    return correction(text, report.errors, repaired.losses, repaired.document, [FILES])


def plan(*actions):
    return (
        '{"protocol_version": "2.0", "description": "d", "actions": [\n'
        + ",\n".join(actions)
        + "]}"
    )


def action(fields, call='"module": "files", "action": "read"'):
    return f'{{"id": "a", {call}{fields}}}'


def test_an_error_comes_with_place_line_hint_and_rule():
    text = plan(action(', "params": {"path": "x"}, "timeout": "10"'))
    assert asked(text) == (
        "This plan (IML v2) cannot be used as it is. Correct it and answer with the whole plan as\n"
        "one JSON object, without comments and code fences, and with nothing else. "
        "Leave what is right as it is.\n"
        "\n"
        "1 thing is wrong:\n"
        "\n"
        '1. [plan.field] action "a": "timeout" must be a whole number\n'
        "   at: /actions/0/timeout, line 2, column 86\n"
        '   there: {"id": "a", "module": "files", "action": "read", "params": {"path": "x"}, '
        '"timeout": "10"}]}\n'
        "   try: imlmesh plan schema\n"
        '   rule: timeout: {"default": 60, "maximum": 3600, "minimum": 1, "type": "integer"} '
        "(Seconds)\n"
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (plan('{"id": "a"}'), "required: id, module, action; known: id, module"),
        (plan(action(', "on_error": "stop"')), '"enum": ["abort", "continue", "retry"'),
        (plan(action(', "retry": {"max_attempts": 99}')), 'max_attempts: {"default": 3, "maximum"'),
        (plan(action(', "params": {}')), 'params of files.read: {"additionalProperties": false'),
        (
            plan(action("", '"module": "files", "action": "rea"')),
            "actions of files are: read, write",
        ),
        (plan(action(', "params": {"path": "{{x}}"}')), "templates are {{result.ID.field}}"),
        (plan(action(', "depends_on": ["b"], "params": {"path": ""}')), "depends_on names ids of"),
        (plan(action(', "target_selector": "a ="')), "a selector is, for example"),
        ('{"actions": [], "nonce": 5}', 'nonce: {"anyOf": [{"maxLength": 128'),
        ('{"action": [], "nonce": "n"}', "known: protocol_version, plan_id"),
    ],
)
def test_the_rule_is_of_the_schema_or_the_manifest(text, rule):
    assert any(line.startswith("   rule: ") and rule in line for line in asked(text).splitlines())


def test_a_rule_is_told_once():
    text = asked(plan(action(', "params": {"pat": "a", "mode": "b"}')))
    assert text.count("params of files.read") == 1
    assert text.count("   rule: as for 1\n") == 2


def test_a_rollback_is_ruled_by_the_action_that_it_calls():
    undo = '{"id": "undo", "module": "files", "action": "write"}'
    error = InputError(
        "action.params", "wrong", place=parse("[]").place("/actions/0/rollback/params")
    )
    document = parse(plan(action(', "rollback": {"action": "undo"}'), undo))
    assert "params of files.write" in correction("", [error], (), document, [FILES])


def test_what_cannot_be_read_is_ruled_by_json():
    text = '{"actions": [1,, 2]}'
    with pytest.raises(InputError) as caught:
        repair(text)
    told = correction(text, [caught.value])
    assert 'there: {"actions": [1,, 2]}' in told
    assert "rule: JSON (RFC 8259): keys and texts in double quotes" in told


def test_yaml_is_asked_for_as_yaml():
    text = "actions:\n  - id: a\n"
    document = parse(text)
    told = correction(text, validate(document, []).errors, (), document)
    assert "the whole plan as\nYAML, and with nothing else" in told


def test_a_cut_plan_is_asked_for_to_its_end():
    text = plan(action(', "params": {"path": "x"}'))[:-2]
    assert 'It is cut off: the text ends after action "a"; actions that followed, if any,' in asked(
        text
    )


def test_it_is_bounded_and_always_the_same():
    text = plan(*[action(f', "timeout": "{"9" * 5_000}"') for _ in range(limits.PLAN_ERRORS + 1)])
    told = asked(text)
    assert told == asked(text)
    assert len(told) < 40_000
    assert f"{limits.PLAN_ERRORS - limits.CORRECTION_ERRORS} more are told when these" in told
    with pytest.raises(InputErrors):
        repair("{'a': 1, 'a': 2, 'actions': []}")
