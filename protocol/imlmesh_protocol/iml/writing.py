"""Writes a plan as text, as JSON or YAML: one form for everybody, so that plans diff well.

The one rule: fields stand in the order of the models, and reading the text gives the same data
and, written again, the same text. Nothing is added and nothing left out: defaults stay as they
are written, and so do unknown fields, behind the known ones. Deliberately absent: files.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel

from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.iml.yaml_comments import Comments
from imlmesh_protocol.iml.yaml_writing import UNSEEN, write_yaml

Form = Literal["json", "yaml"]


def plan_text(data: Any, form: Form, comments: Comments | None = None) -> str:
    """A plan's data as text that ends with a line feed; comments are for YAML alone."""
    ordered = in_order(data)
    if form == "json":
        return json.dumps(ordered, ensure_ascii=False, indent=2).translate(UNSEEN) + "\n"
    return write_yaml(ordered, comments or Comments())


def in_order(data: Any, model: type[BaseModel] = Plan) -> Any:
    """A copy whose fields stand in the order of the models; what is no object stays as it is."""
    if not isinstance(data, Mapping):
        return data
    known = [name for name in model.model_fields if name in data]
    ordered = {name: data[name] for name in (*known, *(k for k in data if k not in known))}
    for name, inner in _inner_models(model).items():
        if name in ordered:
            ordered[name] = in_order(ordered[name], inner)
    if model is Plan and isinstance(data.get("actions"), list):
        ordered["actions"] = [in_order(action, Action) for action in data["actions"]]
    return ordered


def _inner_models(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    found = {}
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found[name] = kind
    return found
