"""A text that asks the author of a plan, most often a language model, to correct it.

The one rule: each error comes with its place, the line that is meant, and the rule that it breaks,
taken from the schema or the manifest; the same plan gives the same text, of bounded length.
Deliberately absent: guessing what the author meant.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.iml.document import Document
from imlmesh_protocol.iml.schema import plan_schema
from imlmesh_protocol.manifest import Manifest

_JSON_RULE = (
    "JSON (RFC 8259): keys and texts in double quotes, a comma between values and none after the "
    "last, no comments, every key once, every bracket closed"
)
_TEMPLATE_RULE = (
    "templates are {{result.ID.field}}, {{memory.KEY}}, {{env.IML_NAME}} and {{node.id}}; ID is an "
    "action that this one waits for by depends_on"
)
#: by code or family of codes; what stands in neither is ruled by the schema at its place
_RULES = {
    "plan.no_plan": 'a plan is one JSON object with the field "actions"',
    "plan.duplicate_id": "every action has an id of its own",
    "plan.cycle": "depends_on never leads back to the action itself",
    "plan.unknown_dependency": "depends_on names ids of actions of this plan",
    "template": _TEMPLATE_RULE,
    "selector": 'a selector is, for example: os == "linux" and cpu >= 2',
}
_LINE_END = re.compile(r"\r\n?|\n")


def correction(
    text: str,
    errors: Sequence[MeshError],
    losses: Sequence[MeshError] = (),
    document: Document | None = None,
    manifests: Sequence[Manifest] = (),
) -> str:
    """What to tell the author of `text`: `losses` are errors of kind plan.truncated.

    Without a document (the text cannot be read) the rules of single fields are left out.
    """
    is_yaml = document is not None and document.format == "yaml"
    form = "YAML" if is_yaml else "one JSON object, without comments and code fences"
    lines = [
        "This plan (IML v2) cannot be used as it is. Correct it and answer with the whole plan as",
        f"{form}, and with nothing else. Leave what is right as it is.",
    ]
    for loss in losses:
        lines += ["", f"It is cut off: {loss.message}. Write it out to its end."]
    if errors:
        wrong = "1 thing is wrong" if len(errors) == 1 else f"{len(errors)} things are wrong"
        lines += ["", f"{wrong}:"]
    shown = errors[: limits.CORRECTION_ERRORS]
    source = _LINE_END.split(text)
    told: dict[str, int] = {}
    for number, error in enumerate(shown, 1):
        lines += ["", f"{number}. [{error.code}] {error.message}"]
        lines += [f"   {line}" for line in _details(error, source)]
        rule = _rule(error, document, manifests)
        if rule and told.setdefault(rule, number) == number:
            clipped = rule[: limits.CORRECTION_RULE_CHARS]
            lines.append(f"   rule: {clipped}" + ("…" if len(rule) > len(clipped) else ""))
        elif rule:
            lines.append(f"   rule: as for {told[rule]}")
    if len(errors) > len(shown):
        lines += ["", f"{len(errors) - len(shown)} more are told when these are corrected."]
    return "\n".join(lines) + "\n"


def _details(error: MeshError, source: Sequence[str]) -> Iterator[str]:
    place = error.place
    pointer = place.pointer if place else ""
    if place is not None and place.line is not None and place.column is not None:
        where = f"line {place.line}, column {place.column}"
        yield f"at: {pointer}, {where}" if pointer else f"at: {where}"
        if shown := _around(source[place.line - 1], place.column):
            yield f"there: {shown}"
    elif pointer:
        yield f"at: {pointer}"
    if error.hint:
        yield f"try: {error.hint}"


def _around(line: str, column: int) -> str:
    """A line as it is, or of a long one what stands around a column."""
    line = line.rstrip()
    if len(line) <= limits.CORRECTION_LINE_CHARS:
        return line.strip()
    begin = max(0, column - limits.CORRECTION_LINE_CHARS // 4)
    return ("…" if begin else "") + line[begin : begin + limits.CORRECTION_LINE_CHARS].strip()


def _rule(error: MeshError, document: Document | None, manifests: Sequence[Manifest]) -> str | None:
    code = error.code
    pointer = error.place.pointer if error.place else ""
    if code in ("plan.syntax", "plan.duplicate_key"):
        return None if document and document.format == "yaml" else _JSON_RULE
    if told := _RULES.get(code) or _RULES.get(code.partition(".")[0]):
        return told
    if document is None:
        return None
    tokens = [token.replace("~1", "/").replace("~0", "~") for token in pointer.split("/")[1:]]
    if code.startswith("action."):
        return _driver_rule(code, tokens, document, manifests)
    return _field_rule(tokens, whole=code in ("plan.unknown_field", "plan.missing"))


def _driver_rule(
    code: str, tokens: Sequence[str], document: Document, manifests: Sequence[Manifest]
) -> str | None:
    actions = document.data["actions"]
    action = actions[int(tokens[1])]
    if tokens[2:3] == ["rollback"]:
        action = next(one for one in actions if one["id"] == action["rollback"]["action"])
    module, name = action["module"], action["action"]
    offers = [m.modules[module] for m in manifests if module in m.modules]
    if code == "action.unknown":
        known = sorted({one for offer in offers for one in offer.actions})
        return f"the actions of {module} are: {', '.join(known)}"
    specs = [offer.actions[name] for offer in offers if name in offer.actions]
    if not specs:
        return None
    return f"params of {module}.{name}: {_as_json(specs[0].params)}"


def _field_rule(tokens: Sequence[str], *, whole: bool) -> str:
    """The rule of a field; of the object that it should stand in when `whole`."""
    schema = plan_schema()
    definitions = schema["$defs"]
    at, owner, name = schema, schema, "plan"
    for token in tokens:
        inner = _inner(_resolved(at, definitions), token)
        if inner is None:
            break
        owner, at = at, inner
        name = name if token.isdecimal() else token
    resolved = _resolved(at, definitions)
    if whole and "properties" not in resolved:
        resolved = _resolved(owner, definitions)
    if "properties" in resolved:
        required = ", ".join(resolved.get("required", ())) or "none"
        return f"required: {required}; known: {', '.join(resolved['properties'])}"
    described = at.get("description") or resolved.get("description")
    return f"{name}: {_as_json(resolved)}" + (f" ({described})" if described else "")


def _resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema without references; of an optional object the object."""
    for branch in (schema, *schema.get("anyOf", ())):
        if "$ref" in branch:
            found: Mapping[str, Any] = definitions[branch["$ref"].rpartition("/")[2]]
            return found
    return schema


def _inner(schema: Mapping[str, Any], token: str) -> Any:
    if token.isdecimal() and "items" in schema:
        return schema["items"]
    return schema.get("properties", {}).get(token)


def _as_json(schema: Mapping[str, Any]) -> str:
    told = {key: value for key, value in schema.items() if key not in ("title", "description")}
    return json.dumps(told, ensure_ascii=False, sort_keys=True)
