"""Reads text that is almost JSON, and keeps each place where it had to be changed to be JSON.

The one rule: a change is an edit of the text (from, to, what stands there now), so the list of
changes and the repaired text cannot disagree; where two meanings are possible it refuses.
Deliberately absent: finding the plan within other text, and what a plan means (`repair`).
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, Place
from imlmesh_protocol.iml.builder import Builder, Span, Text, decimal_of
from imlmesh_protocol.iml.near_text import CLOSERS, TextEnd, read_text

Kind = Literal[
    "text_before",
    "text_after",
    "comment",
    "space",
    "trailing_comma",
    "missing_comma",
    "missing_bracket",
    "quotes",
    "escape",
    "unquoted_key",
    "unquoted_template",
    "python_word",
    "cut_text",
    "cut_value",
]

_SPACES = re.compile(r"[ \t\n\r]*+")
_ODD_SPACES = re.compile(r"(?:[^\S \t\n\r]|[\ufeff\u200b\u2060])+")
_COMMENT = re.compile(r"//[^\r\n]*|\#[^\r\n]*|/\*(?s:.*?)(?:\*/|\Z)")
_FENCE = "```"
_LAST = re.compile(r"\s*(?:```|\Z)")
_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*+")
_WORD = re.compile(r"-?[A-Za-z_][A-Za-z0-9_]*+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?![\w.+-])")
_NUMBER_BEGUN = re.compile(r"-?[0-9.eE+-]*+")
_TEMPLATE = re.compile(r"\{\{[^{}\"'\r\n]*\}\}")
_WORDS = {"true": True, "false": False, "null": None}
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
#: of changed text in a message
_SHOWN_CHARS = 60
_NO_NUMBERS = ("NaN", "-NaN", "Infinity", "-Infinity", "inf", "-inf", "nan")


@dataclass(frozen=True, slots=True)
class Repair:
    """One change: `put` now stands where the text had what is between two offsets."""

    kind: Kind
    message: str
    start: int
    end: int
    put: str
    place: Place

    def as_record(self) -> dict[str, Any]:
        """kind, message, put, and line and column (1-based) of the text that it replaces."""
        place = self.place
        record: dict[str, Any] = {"kind": self.kind, "message": self.message, "put": self.put}
        record |= {"line": place.line, "column": place.column}
        return record | {"end_line": place.end_line, "end_column": place.end_column}


def repair_at(text: Text, kind: Kind, message: str, span: Span, put: str) -> Repair:
    """A repair of a span of `text`."""
    return Repair(kind, message, *span, put, text.place(*span, ""))


def apply_repairs(text: str, repairs: Sequence[Repair]) -> str:
    """The text with the repairs, which are in its order and do not overlap."""
    pieces, at = [], 0
    for one in repairs:
        pieces += [text[at : one.start], one.put]
        at = one.end
    return "".join(pieces) + text[at:]


@dataclass(slots=True)
class _Frame:
    """An object or list that is still open, and how far it is read."""

    closer: str
    start: int
    #: the key or index that is being read, or was read last
    token: str | int | None = None
    key: tuple[str, int, int] | None = None
    member_start: int | None = None
    value_end: int | None = None
    #: what ended the last value: a bracket tells that no text ended by accident
    after_bracket: bool = False
    comma: int | None = None


class NearJson:
    """Reads one object into a builder whose text is the original: its places stay true."""

    def __init__(self, text: Text, builder: Builder) -> None:
        self.repairs: list[Repair] = []
        #: where the object ends, or the text when that came first
        self.end = 0
        #: the keys and indexes that were being read when the text ended too early
        self.cut: tuple[str | int, ...] | None = None
        #: whether a field of the object was read: braces in prose have none
        self.has_fields = False
        #: whether the field that makes it a plan was begun
        self.has_actions = False
        self._text = text
        self._content = text.content
        self._builder = builder
        self._at = 0
        self._open: list[_Frame] = []

    def read(self, start: int) -> None:
        """Read the object that begins at an offset.

        Raises `InputError` plan.syntax where the text may mean more than one thing, and what the
        builder raises.
        """
        self._at = start
        self._open_container("}")
        try:
            while self._open:
                self._read_on(self._open[-1])
            self.end = self._at
        except TextEnd:
            self._close_cut()
        # a missing comma is found after the comments that follow its place
        self.repairs.sort(key=lambda one: (one.start, one.end))

    def _read_on(self, frame: _Frame) -> None:
        char = self._next_char()
        if char == ",":
            if frame.value_end is None or frame.comma is not None:
                raise self._unexpected("a value")
            frame.comma = self._at
            self._at += 1
        elif char in ("}", "]"):
            self._close(frame, char)
        else:
            if frame.value_end is not None and frame.comma is None:
                self._add_comma(frame)
            frame.member_start = self._at
            if frame.closer == "}":
                frame.token = None
                self._key(frame)
            else:
                frame.token = 0 if frame.token is None else int(frame.token) + 1
            self._value(frame)

    def _open_container(self, closer: str) -> None:
        if self._open:
            self._feed_key(self._open[-1])
        if closer == "}":
            self._builder.open_mapping(self._at)
        else:
            self._builder.open_list(self._at)
        self._open.append(_Frame(closer, self._at))
        self._at += 1

    def _close(self, frame: _Frame, char: str) -> None:
        if char != frame.closer:
            if all(outer.closer != char for outer in self._open):
                raise self._unexpected(f'a value or "{frame.closer}"')
            place = self._text.place(frame.start, frame.start, "")
            what = "object" if frame.closer == "}" else "list"
            message = (
                f'added "{frame.closer}": the {what} of line {place.line}, column {place.column} '
                "was not closed; see that its last values belong to it"
            )
            self._repair("missing_bracket", message, (self._at, self._at), frame.closer)
        else:
            self._at += 1
        self._drop_comma(frame)
        self._open.pop()
        self._builder.close(self._at)
        if self._open:
            self._value_ended(self._open[-1], after_bracket=True)

    def _value_ended(self, frame: _Frame, *, after_bracket: bool = False) -> None:
        frame.value_end, frame.after_bracket = self._at, after_bracket
        frame.comma = frame.member_start = None
        self.has_fields = self.has_fields or len(self._open) == 1

    def _drop_comma(self, frame: _Frame) -> None:
        if frame.comma is not None:
            span = (frame.comma, frame.comma + 1)
            self._repair("trailing_comma", "removed the comma after the last value", span, "")

    def _add_comma(self, frame: _Frame) -> None:
        end = frame.value_end or 0
        between = self._content[end : self._at]
        # text that ends early at a quote of its own would look like a missing comma too
        quoted_key = frame.closer == "}" and between and self._content[self._at] in CLOSERS
        certain = frame.after_bracket or "\n" in between or quoted_key
        if not certain:
            raise self._unexpected(f'"," or "{frame.closer}"')
        self._repair("missing_comma", "added a missing comma", (end, end), ",")

    def _key(self, frame: _Frame) -> None:
        start = self._at
        if self._content[start] in CLOSERS:
            key = self._quoted()
            if self.cut is not None:
                raise TextEnd
        else:
            found = _KEY.match(self._content, start)
            if found is None:
                raise self._unexpected("a key in double quotes")
            key, self._at = found[0], found.end()
        frame.token, frame.key = key, (key, start, self._at)
        if self._next_char() != ":":
            raise self._unexpected('":"')
        if self._content[start] not in CLOSERS:
            self._repair(
                "unquoted_key",
                f'put quotes around the key "{key}"',
                (start, start + len(key)),
                f'"{key}"',
            )
        if len(self._open) == 1 and key == "actions":
            self.has_actions = True
        self._at += 1

    def _feed_key(self, frame: _Frame) -> None:
        if frame.key is not None:
            self._builder.scalar(*frame.key)
            frame.key = None

    def _value(self, frame: _Frame) -> None:
        char = self._next_char()
        start = self._at
        if template := _TEMPLATE.match(self._content, start):
            self._at = template.end()
            put = json.dumps(template[0], ensure_ascii=False)
            message = f"put quotes around the template {template[0][:80]}"
            self._repair("unquoted_template", message, template.span(), put)
            value: Any = template[0]
        elif char in ("{", "["):
            self._open_container("}" if char == "{" else "]")
            return
        elif char in CLOSERS:
            value = self._quoted()
        else:
            value = self._number_or_word()
        self._feed_key(frame)
        self._builder.scalar(value, start, self._at)
        self._value_ended(frame)

    def _quoted(self) -> str:
        found = read_text(self._content, self._at, self._builder.error)
        span = (self._at, found.end)
        if found.change is not None:
            self._repair(*found.change, span, found.put)
        self._at = found.end
        if found.cut:
            self.cut = self._path(inside=True)
        return found.value

    def _number_or_word(self) -> Any:
        start = self._at
        if word := _WORD.match(self._content, start):
            self._at = word.end()
            return self._meaning_of(word[0], start)
        begun = _NUMBER_BEGUN.match(self._content, start)
        if begun and _LAST.match(self._content, begun.end()):
            # its last digits may be missing: 1 could have become 17
            self._at = begun.end()
            raise TextEnd
        number = _NUMBER.match(self._content, start)
        if number is None:
            if self._content.startswith(("...", "…"), start):
                message = "something is left out here; a plan must be written out"
                raise self._builder.error("plan.syntax", message, start, start + 3)
            raise self._unexpected("a value")
        self._at = number.end()
        return decimal_of(number[0])

    def _meaning_of(self, word: str, start: int) -> Any:
        if word in _WORDS:
            return _WORDS[word]
        if word in _PYTHON_WORDS:
            put = _PYTHON_WORDS[word]
            self._repair("python_word", f"{word} became {put}", (start, self._at), put)
            return _WORDS[put]
        known = (*_WORDS, *_PYTHON_WORDS)
        if _LAST.match(self._content, self._at) and any(name.startswith(word) for name in known):
            raise TextEnd
        if word in _NO_NUMBERS:
            message = f"{word} is not allowed: nobody can say which number is meant"
        else:
            message = f"expected a value, found {json.dumps(word[:80])}; text needs double quotes"
        raise self._builder.error("plan.syntax", message, start, self._at)

    def _next_char(self) -> str:
        """The next character of the plan; `TextEnd` when there is none."""
        text = self._content
        while True:
            if spaces := _SPACES.match(text, self._at):
                self._at = spaces.end()
            if self._at == len(text) or text.startswith(_FENCE, self._at):
                raise TextEnd
            if found := _COMMENT.match(text, self._at):
                message = f"removed the comment {_quote(found[0])}"
                self._repair("comment", message, found.span(), "")
            elif found := _ODD_SPACES.match(text, self._at):
                self._repair("space", "made an unusual space a plain one", found.span(), " ")
            else:
                return text[self._at]
            self._at = found.end()

    def _close_cut(self) -> None:
        """Close what is open where the text ends, without a value that is only begun."""
        frame = self._open[-1]
        if self.cut is None:
            self.cut = self._path(inside=frame.member_start is not None)
        end = len(self._content[: self._at].rstrip())
        end = max(end, *(one.end for one in self.repairs[-2:]), 0)
        if frame.member_start is not None:
            self._cut_value(frame, frame.member_start, end)
        else:
            self._drop_comma(frame)
        closers = "".join(one.closer for one in reversed(self._open))
        message = f'added "{closers}": the text ends before the plan does'
        self._repair("missing_bracket", message, (end, end), closers)
        for _ in self._open:
            self._builder.close(end)
        self._open.clear()
        self.end = end

    def _cut_value(self, frame: _Frame, member_start: int, end: int) -> None:
        before = frame.value_end if frame.comma is None else frame.comma
        start = member_start if before is None else before
        self.repairs = [one for one in self.repairs if one.start < start]
        shown = _quote(self._content[member_start:end])
        message = f"removed {shown}: its value may not be whole"
        self._repair("cut_value", message, (start, end), "")

    def _path(self, *, inside: bool) -> tuple[str | int, ...]:
        tokens = [frame.token for frame in (self._open if inside else self._open[:-1])]
        return tuple(token for token in tokens if token is not None)

    def _repair(self, kind: Kind, message: str, span: Span, put: str) -> None:
        if len(self.repairs) >= limits.PLAN_REPAIRS:
            message = f"more than {limits.PLAN_REPAIRS:,} places would have to be changed"
            raise self._builder.error("plan.syntax", message, *span)
        self.repairs.append(repair_at(self._text, kind, message, span, put))

    def _unexpected(self, wanted: str) -> InputError:
        found = self._content[self._at : self._at + 1]
        frame = self._open[-1]
        place = self._text.place(frame.start, frame.start, "")
        what = "object" if frame.closer == "}" else "list"
        message = (
            f"expected {wanted}, found {json.dumps(found, ensure_ascii=False)}, "
            f"in the {what} that begins at line {place.line}, column {place.column}"
        )
        return self._builder.error("plan.syntax", message, self._at, self._at + 1)


def _quote(text: str) -> str:
    shown = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return json.dumps(shown, ensure_ascii=False)
