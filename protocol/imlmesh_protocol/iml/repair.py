"""Repairs text that should be a plan as JSON: what language models and people add, drop or mistype.

The one rule: it says all that it changed, and refuses where two meanings are possible; the places
of the document are those of the original text. Deliberately absent: filling in what a plan lacks
(`correction` asks its author), YAML, which nobody can repair without guessing.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError
from imlmesh_protocol.iml.builder import Builder, Text
from imlmesh_protocol.iml.document import Document, parse
from imlmesh_protocol.iml.near_json import NearJson, Repair, apply_repairs, repair_at

# a template in prose begins with two braces; a plan never does
_START = re.compile(r"(?<!\{)\{(?!\{)")
_BEFORE = re.compile(r"\s*(?:```[\w-]*\s*|//[^\n]*\n\s*|#[^\n]*\n\s*|/\*(?s:.*?)\*/\s*)*")
_YAML_PLAN = re.compile(r"^actions:", re.MULTILINE)
_SECOND_PLAN = re.compile(r"[\"'“]actions[\"'”]\s*:")
#: what may stand behind a plan, and what tells that a part of it was torn off
_STRAY = "}]);, \t\r\n"
_OF_PLANS = re.compile("[{\\['\":]|[\\w-]+[\"'”’]\\s*:")
_CLOSER = re.compile(r"[}\]]")
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Repaired:
    """The repaired text, the document it holds, every change in order, and what is lost."""

    text: str
    document: Document
    repairs: tuple[Repair, ...] = ()
    #: plan.truncated, when the text ends before the plan does
    losses: tuple[MeshError, ...] = ()


def repair(text: str, file: str | None = None) -> Repaired:
    """Repair a plan; a text that `parse` reads is left alone.

    Raises `InputError` (or `InputErrors`): plan.no_plan, plan.syntax where the meaning is not
    sure, and what `parse` raises for other reasons than syntax.
    """
    try:
        document = parse(text, file)
        if document.format == "json" or _is_plan(document.data):
            return Repaired(text, document)
        refusal: InputError | None = None
    except InputError as exc:
        if exc.code != "plan.syntax" or _is_yaml(text, file):
            raise
        refusal = exc
    content = Text(text.removeprefix("\ufeff"), file)
    found = _find(content)
    if found is not None:
        return found
    if refusal is None and isinstance(document.data, dict):
        return Repaired(text, document)
    message = 'there is no JSON object with the field "actions" in this text'
    end = len(content.content)
    raise InputError("plan.no_plan", message, place=content.place(0, end, "")) from refusal


def _is_plan(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("actions"), list)


def _is_yaml(text: str, file: str | None) -> bool:
    suffix = PurePath(file).suffix.lower() if file else ""
    field = _YAML_PLAN.search(text)
    return suffix in (".yaml", ".yml") or (field is not None and "{" not in text[: field.start()])


def _find(text: Text) -> Repaired | None:
    """The one object that is a plan, or the object that the text begins with."""
    begin = _BEFORE.match(text.content)
    first = begin.end() if begin else 0
    fallback: tuple[Builder, NearJson] | None = None
    at = 0
    for _ in range(limits.PLAN_STARTS):
        start = _START.search(text.content, at)
        if start is None:
            break
        builder = Builder(text)
        reader = NearJson(text, builder)
        try:
            reader.read(start.start())
        except InputError:
            if reader.has_fields or reader.has_actions or start.start() == first:
                raise
            at = start.end()
            continue
        if reader.has_actions:
            return _repaired(text, start.start(), builder, reader)
        if start.start() == first:
            fallback = (builder, reader)
        at = reader.end
    return _repaired(text, first, *fallback) if fallback else None


def _repaired(text: Text, start: int, builder: Builder, reader: NearJson) -> Repaired:
    data, root = builder.finish()
    document = Document(data, "json", text, root)
    repairs = [
        *_removed_before(text, start),
        *reader.repairs,
        *_removed_after(text, reader),
    ]
    losses = () if reader.cut is None else (_loss(text, reader.end, data, reader.cut),)
    return Repaired(apply_repairs(text.content, repairs), document, tuple(repairs), losses)


def _removed_before(text: Text, start: int) -> list[Repair]:
    before = text.content[:start]
    if not before.strip():
        return []
    message = f"removed what stands before the plan: {_shown(before)}"
    return [repair_at(text, "text_before", message, (0, start), "")]


def _removed_after(text: Text, reader: NearJson) -> list[Repair]:
    end = reader.end
    after = text.content[end:].lstrip()
    if not after:
        return []
    if second := _SECOND_PLAN.search(text.content, end):
        place = text.place(*second.span(), "")
        raise InputError("plan.syntax", "here is a second plan; keep one of them", place=place)
    begin = len(text.content) - len(after)
    torn = after.lstrip(_STRAY)
    # where a bracket had to be added and one is left over, nobody knows which values belong where
    added = any(one.kind == "missing_bracket" for one in reader.repairs)
    left_over = _CLOSER.search(text.content, end) if added else None
    goes_on = _OF_PLANS.match(torn)
    if goes_on or left_over:
        at = left_over.start() if left_over and not goes_on else len(text.content) - len(torn)
        place = text.place(at, at + 1, "")
        message = "the plan has ended before this, as its brackets say, and yet it seems to go on"
        raise InputError("plan.syntax", message, place=place)
    message = f"removed what stands after the plan: {_shown(after)}"
    return [repair_at(text, "text_after", message, (begin, len(text.content)), "")]


def _shown(text: str) -> str:
    text = text.strip()
    shown = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return json.dumps(shown, ensure_ascii=False)


def _loss(text: Text, end: int, data: Any, path: Sequence[str | int]) -> InputError:
    """What a person must know about a text that ends too early, in their words."""
    actions = data.get("actions")
    named = actions if isinstance(actions, list) else []
    if len(path) > 1 and path[0] == "actions" and isinstance(path[1], int):
        where = _action(named, path[1])
        field = ".".join(map(str, path[2:]))
        inside = f', in its "{field}"' if field else ""
        message = f"the text ends in the middle of {where}{inside}; what followed is lost"
    elif path == ("actions",) and named:
        where = _action(named, len(named) - 1)
        message = f"the text ends after {where}; actions that followed, if any, are lost"
    else:
        message = "the text ends before the plan does; fields that followed, if any, are lost"
    return InputError("plan.truncated", message, place=text.place(end, end, ""))


def _action(actions: list[Any], index: int) -> str:
    action = actions[index] if index < len(actions) else None
    name = action.get("id") if isinstance(action, dict) else None
    return f'action "{name}"' if isinstance(name, str) else f"action number {index + 1}"
