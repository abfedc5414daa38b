"""Builds plain data and its places from the pieces that a grammar reads, one after the other.

The one rule: every limit on what a document may hold (depth, values, text, duplicate keys,
numbers) is enforced here, once, for JSON, YAML and Python data, and before memory is spent:
an alias is counted as if it were written out. Deliberately absent: grammar.
"""

import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, Place

_LINE_END = re.compile(r"\r\n?|\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
#: beyond it a JSON number is not the same everywhere (RFC 8785 refuses it too)
EXACT_INTEGER = 2**53 - 1
_INTEGER_CHARS = 20

Span = tuple[int, int]


class Text:
    """A document's text; turns offsets into lines and columns. `content` is "" for Python data."""

    def __init__(self, content: str, file: str | None) -> None:
        self.content = content
        self.file = file
        self._lines = [0, *(end.end() for end in _LINE_END.finditer(content))]

    def place(self, start: int, end: int, pointer: str) -> Place:
        """1-based line and column of a span; the end is the column after its last character."""
        if not self.content:
            return Place(pointer, self.file)
        line, column = self._line_column(start)
        end_line, end_column = self._line_column(end)
        return Place(pointer, self.file, line, column, end_line, end_column)

    def _line_column(self, offset: int) -> tuple[int, int]:
        line = bisect_right(self._lines, offset)
        return line, offset - self._lines[line - 1] + 1


@dataclass(slots=True)
class Part:
    """Where one value stands, and the parts that it is made of."""

    start: int
    end: int
    entries: dict[str, tuple[Span, "Part"]] | None = None
    items: list["Part"] | None = None

    def inner(self, token: str) -> tuple[Span | None, "Part"] | None:
        """The span of the key and the part behind one pointer token; None when there is none."""
        if self.entries is not None:
            return self.entries.get(token)
        if self.items is not None and token.isdecimal() and int(token) < len(self.items):
            return None, self.items[int(token)]
        return None


@dataclass(slots=True)
class _Anchor:
    """A finished value that aliases may repeat, and what each repetition costs."""

    value: Any
    part: Part
    values: int
    chars: int
    height: int


@dataclass(slots=True)
class _Open:
    """A mapping or list that is still being read."""

    value: Any
    part: Part
    anchor: str | None
    values_before: int
    chars_before: int
    last_end: int
    height: int = 1
    key: str | None = None
    key_span: Span = (0, 0)


class Builder:
    """Takes pieces in document order: open_mapping, open_list, close, scalar, alias."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchor] = {}
        self._repeated: list[InputError] = []
        self._values = 0
        self._chars = 0
        self._root: tuple[Any, Part] | None = None

    def open_mapping(self, start: int, anchor: str | None = None) -> None:
        self._open_container({}, Part(start, start, entries={}), anchor)

    def open_list(self, start: int, anchor: str | None = None) -> None:
        self._open_container([], Part(start, start, items=[]), anchor)

    def close(self, end: int | None) -> None:
        """End the innermost container, at its last value's end when `end` is None."""
        done = self._open.pop()
        done.part.end = done.last_end if end is None else end
        if done.anchor is not None:
            values, chars = self._values - done.values_before, self._chars - done.chars_before
            self._anchors[done.anchor] = _Anchor(done.value, done.part, values, chars, done.height)
        self._attach(done.value, done.part, done.height)

    def scalar(self, value: Any, start: int, end: int, anchor: str | None = None) -> None:
        """A text, number, boolean or None; the key when a mapping waits for one."""
        chars = len(value) if isinstance(value, str) else 0
        self._check(value, start, end)
        if anchor is not None:
            self._anchors[anchor] = _Anchor(value, Part(start, end), 1, chars, 0)
        if self.awaits_key:
            self._take_key(value, start, end)
            self._count(0, chars, start, end)
        else:
            self._count(1, chars, start, end)
            self._attach(value, Part(start, end), 0)

    def alias(self, name: str, start: int, end: int) -> None:
        """The value of an anchor once more."""
        anchor = self._anchors.get(name)
        if anchor is None:
            inside = any(frame.anchor == name for frame in self._open)
            why = "stands inside the value that it repeats" if inside else "has no anchor before it"
            raise self.error("plan.syntax", f"the alias *{name} {why}", start, end)
        self._count(anchor.values, anchor.chars, start, end)
        if len(self._open) + anchor.height > limits.PLAN_DEPTH:
            raise self._too_deep(start)
        if self.awaits_key:
            self._take_key(anchor.value, start, end)
        else:
            inner = anchor.part
            self._attach(anchor.value, Part(start, end, inner.entries, inner.items), anchor.height)

    def finish(self) -> tuple[Any, Part]:
        """The data and the part that covers all of it; plan.duplicate_key, plan.syntax when empty."""
        if self._repeated:
            raise InputErrors(self._repeated)
        if self._root is None:
            raise self.error("plan.syntax", "the document is empty", 0, 0)
        return self._root

    def error(self, code: str, message: str, start: int, end: int) -> InputError:
        """An error at a span, with the pointer of what is being read."""
        return InputError(code, message, place=self._text.place(start, end, self._pointer()))

    def _open_container(self, value: Any, part: Part, anchor: str | None) -> None:
        if self.awaits_key:
            raise self.error("plan.syntax", "a key must be text", part.start, part.start + 1)
        if len(self._open) >= limits.PLAN_DEPTH:
            raise self._too_deep(part.start)
        self._anchors.pop(anchor or "", None)
        self._open.append(_Open(value, part, anchor, self._values, self._chars, part.start))
        self._count(1, 0, part.start, part.start + 1)

    def _attach(self, value: Any, part: Part, height: int) -> None:
        if not self._open:
            self._root = (value, part)
            return
        owner = self._open[-1]
        owner.height = max(owner.height, height + 1)
        owner.last_end = part.end
        if owner.part.items is not None:
            owner.value.append(value)
            owner.part.items.append(part)
            return
        entries, key = owner.part.entries, owner.key
        if entries is not None and key is not None and key not in entries:
            owner.value[key] = value
            entries[key] = (owner.key_span, part)
        owner.key = None

    @property
    def ended(self) -> bool:
        """Whether a whole value was read."""
        return self._root is not None

    @property
    def awaits_key(self) -> bool:
        """Whether the next scalar is a key."""
        return bool(self._open) and self._open[-1].part.items is None and self._open[-1].key is None

    def _take_key(self, key: Any, start: int, end: int) -> None:
        owner = self._open[-1]
        if not isinstance(key, str):
            raise self.error("plan.syntax", "a key must be text; put it in quotes", start, end)
        earlier = (owner.part.entries or {}).get(key)
        if earlier is not None and len(self._repeated) < limits.PLAN_ERRORS:
            first = self._text.place(*earlier[0], "")
            message = (
                f'the key "{key[:80]}" stands here and at line {first.line}, column {first.column}'
            )
            self._repeated.append(self.error("plan.duplicate_key", message, start, end))
        owner.key, owner.key_span = key, (start, end)

    def _check(self, value: Any, start: int, end: int) -> None:
        if isinstance(value, str):
            if not value.isascii() and _SURROGATE.search(value):
                raise self.error("plan.syntax", "half of a character pair", start, end)
        elif isinstance(value, float):
            if not math.isfinite(value):
                raise self.error("plan.syntax", "NaN and Infinity are not allowed", start, end)
        elif isinstance(value, int) and abs(value) > EXACT_INTEGER:
            message = "a whole number beyond 2^53 - 1 is not exact everywhere; write it as text"
            raise self.error("plan.syntax", message, start, end)

    def _count(self, values: int, chars: int, start: int, end: int) -> None:
        self._values += values
        self._chars += chars
        if self._values > limits.PLAN_VALUES:
            message = f"the plan holds more than {limits.PLAN_VALUES:,} values, aliases written out"
            raise self.error("plan.too_large", message, start, end)
        if self._chars > limits.PLAN_BYTES:
            message = (
                f"the plan holds more than {limits.PLAN_BYTES:,} characters, aliases written out"
            )
            raise self.error("plan.too_large", message, start, end)

    def _too_deep(self, start: int) -> InputError:
        message = f"the plan is nested deeper than {limits.PLAN_DEPTH}"
        return self.error("plan.too_large", message, start, start + 1)

    def _pointer(self) -> str:
        tokens = []
        for frame in self._open:
            if frame.part.items is not None:
                tokens.append(str(len(frame.part.items)))
            elif frame.key is not None:
                tokens.append(frame.key)
        return pointer_of(*tokens)


def pointer_of(*tokens: str | int) -> str:
    """The JSON pointer (RFC 6901) that goes down these keys and indexes."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


def decimal_of(written: str) -> int | float:
    """The number that decimal digits spell: an int without point and exponent, else a float.

    Longer whole numbers give one that the builder refuses, whatever their digits: converting
    them would take quadratic time.
    """
    if written.lstrip("+-").isdecimal():
        return int(written) if len(written) <= _INTEGER_CHARS else EXACT_INTEGER + 1
    return float(written)
