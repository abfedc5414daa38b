"""Words of a command line as the values that a JSON Schema asks for.

The one rule: text stays text where text may stand; else the word is read as JSON, and a list may
also be written a,b,c. Deliberately absent: checking, which the orchestrator does for every plan.
"""

import json
from collections.abc import Mapping
from typing import Any


def typed(text: str, schema: Mapping[str, Any]) -> Any:
    """`text` as a value for `schema`; with an empty schema JSON, else text."""
    kinds = kinds_of(schema)
    if "string" in kinds:
        return text
    value = json_or_text(text)
    if "array" in kinds and isinstance(value, str):
        items = _items(schema)
        return [typed(part, items) for part in text.split(",")]
    return value


def kinds_of(schema: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema allows; none said: all."""
    kind = schema.get("type")
    found = {kind} if isinstance(kind, str) else set(kind or ())
    for way in ("anyOf", "oneOf"):
        for part in schema.get(way, ()):
            found |= kinds_of(part)
    if not found and all(isinstance(value, str) for value in schema.get("enum", (None,))):
        found = {"string"}
    return found


def json_or_text(text: str) -> Any:
    """The JSON value that `text` is, else `text` itself; NaN and Infinity are no JSON."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return text


def _items(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    for part in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if "items" in part:
            items: Mapping[str, Any] = part["items"]
            return items
    return {}
