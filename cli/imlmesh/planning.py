"""Plans written in Python: `from imlmesh import Plan`.

The one rule: a plan is the same plan in Python, YAML and JSON, and is checked by the same rules:
its errors are the coded errors of `imlmesh plan check`. Deliberately absent: control flow; what a
plan does is decided when it runs.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from imlmesh.plan_files import name_of, read_plan, read_plan_text
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.iml import plan as iml
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_protocol.iml.document import Document, document_of, parse
from imlmesh_protocol.iml.fields import read_fields
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.validate import Report, validate
from imlmesh_protocol.iml.writing import plan_text

__all__ = ["Plan", "PlanSource", "submission_of"]

#: what `action` takes by names of its own
_NAMED = ("id", "module", "action", "params", "depends_on")


class Plan:
    """An IML v2 plan that is built action by action.

    Plan("evening", description="Water the beds").action("read", "iot.read_sensor", {"pin": 4})

    `fields` are the fields of a plan: description, execution_mode, ttl_seconds, nonce and so on.
    Every call raises InputError `plan.unknown_field` for a field that does not exist and
    `plan.syntax` for a value that JSON cannot hold; all else that is wrong is told by `check`.
    """

    def __init__(self, plan_id: str = "", **fields: Any) -> None:
        known = [name for name in iml.Plan.model_fields if name not in ("plan_id", "actions")]
        _refuse_unknown(fields, known, "a plan")
        named = {"plan_id": plan_id} if plan_id else {}
        self._data: dict[str, Any] = document_of(
            {"protocol_version": "2.0", **named, **fields, "actions": []}
        ).data

    def action(
        self,
        id: str,
        call: str,
        params: Mapping[str, Any] | None = None,
        *,
        after: Iterable[str] = (),
        **fields: Any,
    ) -> Self:
        """Add an action that calls `call`, written "module.action"; returns the plan.

        `after` names the actions that it waits for (depends_on). `fields` are the other fields of
        an action: timeout, on_error, target_node and so on.
        """
        known = [name for name in iml.Action.model_fields if name not in _NAMED]
        _refuse_unknown(fields, [*known, "after"], f'action "{id}"')
        module, dot, name = call.partition(".")
        if not dot:
            message = f'action "{id}": {call!r} is not of the form "module.action"'
            raise InputError("plan.field", message, hint='for example "filesystem.read_file"')
        if isinstance(after, str):
            message = f'action "{id}": "after" is a list of ids, not one text'
            raise InputError("plan.field", message, hint=f"after=[{after!r}]")
        written: dict[str, Any] = {"id": id, "module": module, "action": name}
        if params:
            written["params"] = dict(params)
        if waits_for := list(after):
            written["depends_on"] = waits_for
        self._data["actions"].append(document_of({**written, **fields}).data)
        return self

    def check(self) -> Report:
        """What `imlmesh plan check` says: the plan's model when it is right, errors, warnings."""
        from imlmesh_drivers.registry import shipped_manifest

        return validate(document_of(self._data), [shipped_manifest()])

    def to_yaml(self) -> str:
        """The plan as YAML, fields in the order that `imlmesh plan fmt` gives them."""
        return plan_text(self._data, "yaml")

    def to_json(self) -> str:
        """The plan as indented JSON."""
        return plan_text(self._data, "json")

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Read a plan from YAML; InputErrors for what no plan's fields can be."""
        return cls._read(parse(text, "<text>.yaml"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a plan from JSON; InputErrors for what no plan's fields can be."""
        return cls._read(parse(text, "<text>.json"))

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read a plan from a file; also InputError plan.not_found."""
        path = Path(file)
        return cls._read(parse(read_plan(path), name_of(path)))

    @classmethod
    def _read(cls, document: Document) -> Self:
        if not isinstance(document.data, dict):
            place = document.place("")
            raise InputError("plan.field", "a plan is an object of fields", place=place)
        findings = Findings(document)
        read_fields(document, findings)
        if findings.errors:
            raise InputErrors(findings.errors)
        plan = cls()
        plan._data = document_of(document.data).data
        return plan

    def __eq__(self, other: object) -> bool:
        """Whether both mean the same: defaults and the order of fields make no difference."""
        if not isinstance(other, Plan):
            return NotImplemented
        return self._meaning() == other._meaning()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        name = self._data.get("plan_id", "")
        return f"<Plan {name!r}, {len(self._data['actions'])} actions>"

    def _meaning(self) -> str:
        try:
            return plan_digest(iml.Plan.model_validate(self._data))
        except ValidationError:
            return json.dumps(self._data, sort_keys=True)


#: what can be run: a plan of this module, a checked model, a file's path
PlanSource = Plan | iml.Plan | str | Path


def submission_of(source: PlanSource) -> dict[str, Any]:
    """The text of a plan and its file, if it has one, as the orchestrator's API takes them."""
    if isinstance(source, Plan):
        return {"text": source.to_json()}
    if isinstance(source, BaseModel):
        data = source.model_dump(mode="json", exclude_defaults=True)
        return {"text": plan_text({"protocol_version": "2.0", **data}, "json")}
    return {"text": read_plan_text(Path(source)), "file": str(source)}


def _refuse_unknown(fields: Mapping[str, Any], known: list[str], owner: str) -> None:
    errors = []
    for name in fields:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else None
        if name == "depends_on":
            hint = "write after=[…]"
        message = f'{owner}: "{name}" is no field that it takes'
        errors.append(InputError("plan.unknown_field", message, hint=hint))
    if errors:
        raise InputErrors(errors)
