"""Reads a document into the models of `plan`, and says in plain words which fields are wrong.

The one rule: one wrong action does not hide what is wrong with the others; those that are right
are checked on. Deliberately absent: what fields mean together.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from imlmesh_protocol import limits
from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.document import Document
from imlmesh_protocol.iml.findings import Findings
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
)

_Location = tuple[int | str, ...]
_UNKNOWN = "extra_forbidden"
#: pydantic's name of an error → what we say; the braces are filled from the error's own values
_WORDS = {
    "bool_type": "must be true or false",
    "dict_type": "must be an object of fields",
    "enum": "must be one of {expected}",
    "float_type": "must be a number",
    "greater_than_equal": "must be at least {ge}",
    "int_type": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "model_type": "must be an object of fields",
    "string_pattern_mismatch": "does not fit {pattern}",
    "string_too_long": "may have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} character",
    "string_type": "must be text",
    "too_long": "may hold at most {max_length} entries",
    "too_short": "must hold at least {min_length} entry",
    "tuple_type": "must be a list",
}
#: the model of each field that holds one
_INNER: dict[str, type[BaseModel]] = {
    "compiler_trace": CompilerTrace,
    "metadata": Metadata,
    "retry": Retry,
    "rollback": Rollback,
    "perception": Perception,
    "memory": Memory,
    "approval": Approval,
    "rolling": Rolling,
}


def read_fields(document: Document, findings: Findings) -> tuple[Plan | None, dict[int, Action]]:
    """The plan when every field is right, and the actions that are right by themselves, by index."""
    data = document.data
    plan, faults = _read(data)
    unknown = [fault for fault in faults if fault["type"] == _UNKNOWN]
    if unknown and document.format != "yaml" and not _uses_extensions(data):
        for fault in unknown[: limits.PLAN_ERRORS]:
            message = _unknown_field(fault["loc"], data, findings)
            findings.warning("plan.unknown_field", pointer_of(*fault["loc"]), message, key=True)
        data = _without(data, [fault["loc"] for fault in unknown])
        plan, faults = _read(data)
    _report(faults, data, findings)
    for name in ("protocol_version", "description"):
        if name not in data:
            taken = ' and taken as "2.0"' if name == "protocol_version" else ""
            findings.warning("plan.missing", "", f'"{name}" is missing{taken}')
    if plan is not None:
        return plan, dict(enumerate(plan.actions))
    return None, _right_actions(data, faults)


def _read(data: Any) -> tuple[Plan | None, list[ErrorDetails]]:
    try:
        return Plan.model_validate(data), []
    except ValidationError as exc:
        return None, exc.errors(include_url=False)


def _right_actions(data: Mapping[str, Any], faults: list[ErrorDetails]) -> dict[int, Action]:
    actions = data.get("actions")
    if not isinstance(actions, list):
        return {}
    # without its unknown keys an action can still be checked on
    wrong = {
        fault["loc"][1]
        for fault in faults
        if fault["loc"][0] == "actions"
        and len(fault["loc"]) > 1
        and not (fault["type"] == _UNKNOWN and len(fault["loc"]) == 3)
    }
    known = set(Action.model_fields)
    return {
        index: Action.model_validate({k: v for k, v in action.items() if k in known})
        for index, action in enumerate(actions)
        if index not in wrong
    }


def _uses_extensions(data: Mapping[str, Any]) -> bool:
    if not PLAN_EXTENSIONS.isdisjoint(data):
        return True
    actions = data.get("actions")
    return isinstance(actions, list) and any(
        isinstance(action, dict) and not ACTION_EXTENSIONS.isdisjoint(action) for action in actions
    )


def _without(data: Any, locations: Iterable[_Location]) -> Any:
    pruned = copy.deepcopy(data)
    for *owner, key in locations:
        holder = pruned
        for token in owner:
            holder = holder[token]
        del holder[key]
    return pruned


def _report(faults: list[ErrorDetails], data: Any, findings: Findings) -> None:
    """One error per place: a field that may be of two types is wrong once, in both words."""
    wrong: dict[str, tuple[_Location, list[str]]] = {}
    for fault in faults[: limits.PLAN_ERRORS]:
        location = _existing(fault["loc"], data)
        pointer = pointer_of(*location)
        if fault["type"] == _UNKNOWN:
            message = _unknown_field(location, data, findings)
            findings.error("plan.unknown_field", pointer, message, key=True)
        elif fault["type"] == "missing":
            message = f"{_subject(fault['loc'], data)} is missing"
            findings.error("plan.missing", pointer, message)
        else:
            words = _WORDS.get(fault["type"], fault["msg"]).format(**fault.get("ctx", {}))
            wrong.setdefault(pointer, (location, []))[1].append(words)
    for pointer, (location, words_there) in wrong.items():
        code = "plan.version" if location == ("protocol_version",) else "plan.field"
        findings.error(code, pointer, f"{_subject(location, data)} {' or '.join(words_there)}")


def _existing(location: _Location, data: Any) -> _Location:
    """The part of pydantic's location that exists in the data; it adds names of union branches."""
    at = data
    for depth, token in enumerate(location):
        try:
            at = at[token]
        except (KeyError, IndexError, TypeError):
            return location[:depth]
    return location


def _subject(location: _Location, data: Any) -> str:
    """The field in the plan's words: action "read": "params.path"."""
    if location[:1] != ("actions",) or len(location) == 1:
        return f'"{".".join(map(str, location))}"'
    action = name_of(data["actions"], int(location[1]))
    field = ".".join(map(str, location[2:]))
    return f'{action}: "{field}"' if field else action


def _unknown_field(location: _Location, data: Any, findings: Findings) -> str:
    inside = location[2:] if location[0] == "actions" else location
    owner: type[BaseModel] = Action if location[0] == "actions" else Plan
    if len(inside) > 1:
        owner = _INNER[str(inside[0])]
    near = findings.did_you_mean(str(inside[-1]), owner.model_fields)
    return f"{_subject(location, data)} is no field of IML v2{near}"


def name_of(actions: Sequence[Any], index: int) -> str:
    """How an action is called in messages: by its id, or by its number when it has none."""
    action = actions[index]
    name = action.get("id") if isinstance(action, dict) else None
    return f'action "{name}"' if isinstance(name, str) else f"action number {index + 1}"
