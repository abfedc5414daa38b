"""What a plan may say and this version does not act on: refused, never silently ignored.

The one rule: one row per field, `plan.unsupported` when it is set to anything but its default.
Whoever makes a field act deletes its row. Deliberately absent: whether the value is valid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.fields import name_of
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.plan import Action, Memory, Plan

#: first words of templates that have nothing to read yet
TEMPLATE_ROOTS = ("trigger",)


@dataclass(frozen=True, slots=True)
class Row:
    """A field, and which of its values are refused; without values, all but the default."""

    model: type[BaseModel]
    field: str
    values: tuple[str, ...] = ()


TABLE = (
    Row(Plan, "execution_mode", ("reactive",)),
    Row(Plan, "plan_mode", ("compiler",)),
    Row(Plan, "compiler_trace"),
    Row(Action, "perception"),
    Row(Memory, "vector_search"),
    Row(Memory, "top_k"),
)


def refuse_unsupported(data: Mapping[str, Any], actions: Sequence[Any], findings: Findings) -> None:
    """Check plan and actions, as they were written, against the table."""
    for row in TABLE:
        if row.model is Plan:
            _refuse(row, data, (), "", findings)
            continue
        for index, action in enumerate(actions):
            if not isinstance(action, dict):
                continue
            subject = name_of(actions, index) + ": "
            if row.model is Action:
                _refuse(row, action, ("actions", index), subject, findings)
            elif isinstance(action.get("memory"), dict):
                path = ("actions", index, "memory")
                _refuse(row, action["memory"], path, subject, findings)


def _refuse(
    row: Row,
    holder: Mapping[str, Any],
    path: tuple[str | int, ...],
    subject: str,
    findings: Findings,
) -> None:
    if row.field not in holder:
        return
    value = holder[row.field]
    default = row.model.model_fields[row.field].get_default(call_default_factory=True)
    is_default = value == (list(default) if isinstance(default, tuple) else default)
    if is_default or (row.values and value not in row.values):
        return
    shown = f'"{row.field}: {value}"' if row.values else f'"{row.field}"'
    message = f"{subject}{shown} is not acted on by this version"
    findings.error("plan.unsupported", pointer_of(*path, row.field), message)
