"""Params against the JSON Schema of a manifest, which is a node's word and may be anything.

The one rule: it fetches nothing, tries no regular expression and follows a bounded number of
references, so that no node holds up whoever checks plans; the node's own driver checks the rest.
Deliberately absent: what is wrong with a schema that is none; it decides nothing.
"""

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from functools import cache
from typing import Any

from imlmesh_protocol.limits import SCHEMA_REFERENCES

#: how many references the present check may still follow
_left: ContextVar[Iterator[int]] = ContextVar("left")


def validator_of(schema: Mapping[str, Any]) -> Any:
    """The compiled schema; what its `iter_errors` finds is for `bounded`."""
    from referencing import Registry

    return _kind()(schema, registry=Registry())


def bounded(errors: Iterator[Any]) -> list[Any] | None:
    """All of `errors`, which a validator finds on the way; None when its schema cannot be used."""
    earlier = _left.set(iter(range(SCHEMA_REFERENCES)))
    try:
        return list(errors)
    except Exception:  # whatever the library does with a schema that is none
        return None
    finally:
        _left.reset(earlier)


@cache
def _kind() -> Any:
    # importing jsonschema takes 0.1 s or more; a plan without a known module needs none
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    usual = Draft202012Validator.VALIDATORS

    def reference(validator: Any, to: Any, instance: Any, schema: Any) -> Iterator[Any]:
        next(_left.get())
        yield from usual["$ref"](validator, to, instance, schema)

    def additional(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if "patternProperties" not in schema:
            yield from usual["additionalProperties"](validator, allowed, instance, schema)

    ours = {"$ref": reference, "additionalProperties": additional}
    unused = ("pattern", "patternProperties", "unevaluatedProperties", "unevaluatedItems")
    return extend(Draft202012Validator, ours | dict.fromkeys((*unused, "$dynamicRef")))
