"""YAML 1.2 as pieces for a `Builder`, each with its offsets.

The one rule: scalars mean what the YAML 1.2 core schema says (`on`, `yes` and dates are text),
and nothing is built that the builder has not counted. Deliberately absent: tags other than
!!str, merge keys, several documents in one file.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from imlmesh_protocol.errors import InputError
from imlmesh_protocol.iml.builder import EXACT_INTEGER, Builder, decimal_of

_DECIMAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_OTHER_BASE = re.compile(r"0o([0-7]+)|0x([0-9a-fA-F]+)")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
#: what the parser raises: beside its own errors those of chr() and of odd %YAML lines
_FOREIGN = (YAMLError, ValueError, OverflowError, AssertionError)
#: digits of other bases that are converted; more than an exact integer has in either
_OTHER_BASE_CHARS = 20
_TEXT_TAGS = ("tag:yaml.org,2002:str", "!")


def feed_yaml(text: str, builder: Builder) -> None:
    """Read one YAML document; raises `InputError` plan.syntax and what the builder raises."""
    for event in _events(text, builder):
        feed = _FEEDS.get(type(event))
        if feed is not None:
            feed(event, builder)


def _events(text: str, builder: Builder) -> Iterator[Event]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except _FOREIGN as exc:
        raise _syntax_error(exc, builder) from exc


def _document(event: Any, builder: Builder) -> None:
    if builder.ended:
        raise _error(event, builder, "a plan is one document; a second one begins here")


def _scalar(event: Any, builder: Builder) -> None:
    tag = event.tag
    if tag is not None and tag not in _TEXT_TAGS:
        raise _error(event, builder, f"the tag {tag} is not allowed")
    plain = tag is None and event.implicit[0]
    value = _core_value(event.value) if plain else event.value
    start, end = event.start_mark.index, event.end_mark.index
    if value == "<<" and plain and builder.awaits_key:
        raise _error(event, builder, "merge keys (<<) are not YAML 1.2; write the fields out")
    builder.scalar(value, start, end, event.anchor)


def _mapping(event: Any, builder: Builder) -> None:
    _refuse_tag(event, builder)
    builder.open_mapping(event.start_mark.index, event.anchor)


def _list(event: Any, builder: Builder) -> None:
    _refuse_tag(event, builder)
    builder.open_list(event.start_mark.index, event.anchor)


def _close(event: Any, builder: Builder) -> None:
    # the end of a block is the next token, maybe many lines on; then its last value says more
    in_braces = event.end_mark.index > event.start_mark.index
    builder.close(event.end_mark.index if in_braces else None)


def _alias(event: Any, builder: Builder) -> None:
    builder.alias(event.anchor, event.start_mark.index, event.end_mark.index)


_FEEDS: dict[type[Event], Callable[[Any, Builder], None]] = {
    DocumentStartEvent: _document,
    ScalarEvent: _scalar,
    MappingStartEvent: _mapping,
    MappingEndEvent: _close,
    SequenceStartEvent: _list,
    SequenceEndEvent: _close,
    AliasEvent: _alias,
}


def _core_value(written: str) -> Any:
    """What a plain scalar means in the core schema."""
    if written in _WORDS:
        return _WORDS[written]
    if _DECIMAL.fullmatch(written):
        return decimal_of(written)
    if other := _OTHER_BASE.fullmatch(written):
        digits = other[1] or other[2]
        if len(digits) > _OTHER_BASE_CHARS:
            return EXACT_INTEGER + 1
        return int(digits, 8 if other[1] else 16)
    if _NOT_FINITE.fullmatch(written):
        return math.nan
    return written


def _refuse_tag(event: Any, builder: Builder) -> None:
    if event.tag is not None:
        raise _error(event, builder, f"the tag {event.tag} is not allowed")


def _error(event: Any, builder: Builder, message: str) -> InputError:
    start, end = event.start_mark.index, event.end_mark.index
    return builder.error("plan.syntax", message, start, max(end, start + 1))


def _syntax_error(exc: Exception, builder: Builder) -> InputError:
    if isinstance(exc, ReaderError):
        message, at = f"the character U+{exc.character:04X} is not allowed in YAML", exc.position
    elif isinstance(exc, MarkedYAMLError):
        mark = exc.problem_mark or exc.context_mark
        message = " ".join(str(part) for part in (exc.problem, exc.context) if part)
        at = mark.index if mark else 0
    else:
        message, at = f"this is not YAML 1.2: {exc}", 0
    return builder.error("plan.syntax", message, at, at + 1)
