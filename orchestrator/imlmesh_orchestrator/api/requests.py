"""What requests say, checked by hand: a few fields, each with a coded error.

The one rule: a body is read up to a limit, and holds nothing but what the route names.
"""

import json
import math
import re
from base64 import b64decode
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from starlette.requests import Request

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError

_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_LABEL_CHARS = 256
_SURROGATE = re.compile("[\ud800-\udfff]")


async def body_of(request: Request, *fields: str) -> dict[str, Any]:
    """The JSON object of a request, which has no other fields; `plan.too_large`, `usage`."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limits.API_BODY_BYTES:
            raise InputError("plan.too_large", f"more than {limits.API_BODY_BYTES:,} bytes")
    try:
        body = json.loads(data, object_pairs_hook=_object)
    except (ValueError, RecursionError) as exc:
        raise InputError("usage", f"the request is not JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InputError("usage", "the request is not a JSON object")
    # a misspelt one may be what somebody relies on: `expect`, for example
    if unknown := sorted(body.keys() - {*fields}):
        text = f"there is no field {unknown[0][:80]!r}; there are {', '.join(fields)}"
        raise InputError("usage", text)
    return body


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def text_of(body: Mapping[str, Any], name: str) -> str:
    """A field that is text."""
    value = body.get(name)
    if not isinstance(value, str) or not is_text(value):
        raise InputError("usage", f"{name} must be text")
    return value


def optional_text(body: Mapping[str, Any], name: str) -> str | None:
    """A field that is text, null or missing."""
    return None if body.get(name) is None else text_of(body, name)


def file_of(body: Mapping[str, Any]) -> str | None:
    """The file that a plan came from, if it came from one."""
    file = optional_text(body, "file")
    if file is not None and len(file) > limits.PATH_CHARS:
        raise InputError("usage", f"file has at most {limits.PATH_CHARS} characters")
    return file


def bytes_of(body: Mapping[str, Any], name: str) -> bytes:
    """A field that is base64."""
    try:
        return b64decode(text_of(body, name), validate=True)
    except ValueError as exc:
        raise InputError("usage", f"{name} must be base64") from exc


def texts_of(body: Mapping[str, Any], name: str) -> list[str]:
    """A field that is a list of text."""
    value = body.get(name)
    if not isinstance(value, list) or not all(map(is_text, value)):
        raise InputError("usage", f"{name} must be a list of text")
    return value


def labels_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """{name: text, number, true, false, or null to remove}."""
    labels = body.get("labels")
    if not isinstance(labels, dict):
        raise InputError("usage", "labels must be an object")
    for name, value in labels.items():
        if not _LABEL.fullmatch(name):
            raise InputError("name.invalid", f"label {name[:80]!r} is not a name")
        if not _is_label(value):
            raise InputError("usage", f"label {name} must be text, a number, true, false or null")
    return labels


def number_of(values: Mapping[str, str], name: str) -> int | None:
    """A whole number of the query or the headers, None when it is not given."""
    value = values.get(name)
    if value is None:
        return None
    if not value.isdecimal() or len(value) > 18:
        raise InputError("usage", f"{name} must be a whole number")
    return int(value)


def count_of(body: Mapping[str, Any], name: str, default: int, most: int, *, least: int = 1) -> int:
    """A field that is a whole number from `least` to `most`."""
    value = body.get(name, default)
    if type(value) is not int or not least <= value <= most:
        raise InputError("usage", f"{name} must be a whole number from {least} to {most}")
    return value


def flag_of(values: Mapping[str, Any], name: str) -> bool:
    """A field, or a word of the query, that is true or false; false when it is not given."""
    value = values.get(name, False)
    if type(value) is not bool and value not in ("true", "false"):
        raise InputError("usage", f"{name} must be true or false")
    return value in (True, "true")


def priority_of(body: Mapping[str, Any]) -> int:
    """0 when it is not given."""
    value = body.get("priority", 0)
    most = limits.PRIORITY
    if type(value) is not int or not -most <= value <= most:
        raise InputError("usage", f"priority must be a whole number from -{most} to {most}")
    return value


def span_ms_of(body: Mapping[str, Any], name: str, most_ms: int) -> int:
    """A length of time in ms, 0 when it is not given."""
    value = body.get(name, 0)
    if type(value) is not int or not 0 <= value <= most_ms:
        raise InputError("usage", f"{name} must be a whole number from 0 to {most_ms}")
    return value


def one_of(values: Mapping[str, str], name: str, words: type[StrEnum]) -> str:
    """A word of the query, "" when it is not given."""
    value = values.get(name, "")
    if value and value not in set(words):
        raise InputError("usage", f"{name} must be one of {', '.join(words)}")
    return value


def is_text(value: Any) -> bool:
    """JSON escapes can make text that no file and no message can hold."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def _is_label(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= limits.COUNT_MAX
    return value is None or (is_text(value) and len(value) <= _LABEL_CHARS)
