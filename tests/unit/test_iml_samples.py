"""The plain IML v2 plans that must be accepted, their digest and the schema for editors."""

import json

import jsonschema
import pytest

from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_protocol.iml.document import document_of, parse
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.iml.schema import plan_schema
from imlmesh_protocol.iml.validate import validate
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect

LOOK = """\
{"protocol_version": "2.0", "description": "Look at one file", "actions": [
  {"id": "info", "module": "filesystem", "action": "get_file_info", "params": {"path": "notes.txt"}}]}
"""
COPY = """\
{"plan_id": "copy-and-check", "protocol_version": "2.0", "description": "Copy a file and compare checksums", "execution_mode": "parallel",
 "module_requirements": {"filesystem": ">=0.1"}, "metadata": {"created_by": "operator", "tags": ["check"]},
 "actions": [
  {"id": "Write_1", "module": "filesystem", "action": "write_file", "params": {"path": "a.txt", "content": "hello\\n"}, "timeout": 10, "label": "Write"},
  {"id": "copy", "module": "filesystem", "action": "copy_file", "params": {"source": "{{result.Write_1.path}}", "destination": "b.txt", "overwrite": true}, "depends_on": ["Write_1"], "on_error": "retry", "retry": {"max_attempts": 2, "delay_seconds": 0.5}},
  {"id": "sum-a", "module": "filesystem", "action": "compute_checksum", "params": {"path": "a.txt"}, "depends_on": ["copy"]},
  {"id": "sum-b", "module": "filesystem", "action": "compute_checksum", "params": {"path": "b.txt"}, "depends_on": ["copy"], "on_error": "continue"}]}
"""
ASK = """\
{"plan_id": "ask-first", "protocol_version": "2.0", "description": "Append a line, but only when a person agrees; undo on failure", "session_id": "s-1",
 "actions": [
  {"id": "append", "module": "filesystem", "action": "append_file", "params": {"path": "log.txt", "content": "started"}, "requires_approval": true,
   "approval": {"message": "Append to the log?", "risk_level": "low", "timeout_seconds": 60, "timeout_behavior": "skip"}, "on_error": "rollback", "rollback": {"action": "note"}, "memory": {"write_key": "last_append"}},
  {"id": "note", "module": "filesystem", "action": "append_file", "params": {"path": "log.txt", "content": "undone"}},
  {"id": "read", "module": "filesystem", "action": "read_file", "params": {"path": "log.txt", "max_bytes": 1000}, "depends_on": ["append"], "tags": ["end"]}]}
"""


def offered(action, effect, required, **optional):
    kinds = {"b": "boolean", "i": ["integer", "null"]}
    properties = {name: {"type": "string"} for name in required}
    properties |= {name: {"type": kinds[kind]} for name, kind in optional.items()}
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return ActionSpec("filesystem", action, schema, (), effect, "local_worker", 0.3)


FILESYSTEM = Manifest(
    {
        "filesystem": Module(
            "0.1",
            {
                "get_file_info": offered("get_file_info", Effect.PURE, ["path"]),
                "write_file": offered("write_file", Effect.IDEMPOTENT, ["path", "content"]),
                "copy_file": offered(
                    "copy_file", Effect.IDEMPOTENT, ["source", "destination"], overwrite="b"
                ),
                "compute_checksum": offered("compute_checksum", Effect.PURE, ["path"]),
                "append_file": offered("append_file", Effect.ONCE, ["path", "content"]),
                "read_file": offered("read_file", Effect.PURE, ["path"], max_bytes="i"),
            },
        )
    }
)


@pytest.mark.parametrize("text", [LOOK, COPY, ASK])
def test_plain_plans_are_accepted_unchanged(text):
    report = validate(parse(text, "plan.json"), [FILESYSTEM])
    assert (report.errors, report.warnings) == ([], [])
    assert report.plan.description == json.loads(text)["description"]


@pytest.mark.parametrize("text", [LOOK, COPY, ASK])
def test_models_and_schema_accept_plain_plans(text):
    data = json.loads(text)
    jsonschema.Draft202012Validator(plan_schema()).validate(data)
    plan = Plan.model_validate(data)
    assert plan.model_dump(mode="json", exclude_unset=True) == data


def test_the_schema_is_a_schema_and_refuses_what_is_wrong():
    schema = plan_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    validator = jsonschema.Draft202012Validator(schema)
    good = json.loads(LOOK)
    for wrong in (
        {**good, "colour": "red"},
        {**good, "actions": []},
        {**good, "protocol_version": "1.0"},
        {**good, "actions": [{**good["actions"][0], "timeout": 0}]},
        {**good, "actions": [{"id": "a"}]},
    ):
        assert not validator.is_valid(wrong)
    action = schema["$defs"]["Action"]["properties"]
    assert {"perception", "rolling", "claims", "effect", "depends_on"} <= set(action)
    assert action["depends_on"]["description"]


def plan(text):
    return validate(parse(text), [FILESYSTEM]).plan


def test_the_digest_is_of_the_meaning():
    yaml = """
actions:
  - action: get_file_info   # another order, another format, a default written out
    module: filesystem
    id: info
    timeout: 60
    params: {path: notes.txt}
description: Look at one file
protocol_version: "2.0"
"""
    digest = plan_digest(plan(LOOK))
    assert len(digest) == 64
    assert plan_digest(plan(yaml)) == digest
    assert plan_digest(plan(LOOK.replace("notes", "other"))) != digest


def test_a_plan_survives_the_way_through_its_own_dump():
    first = plan(LOOK)
    again = validate(document_of(first.model_dump(mode="json")), [FILESYSTEM]).plan
    assert again == first
    assert plan_digest(again) == plan_digest(first)


def test_a_plan_is_read_only():
    with pytest.raises(ValueError, match="frozen"):
        plan(LOOK).actions[0].timeout = 5
