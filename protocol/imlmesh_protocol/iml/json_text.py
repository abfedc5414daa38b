"""JSON (RFC 8259) as pieces for a `Builder`, each with its offsets.

The one rule: it walks, it never recurses, so depth is the builder's limit and not the
interpreter's. Deliberately absent: repair of almost-valid JSON, comments, NaN.
"""

import json
import re

from imlmesh_protocol.errors import InputError
from imlmesh_protocol.iml.builder import Builder, decimal_of

_SPACES = frozenset(" \t\n\r")
_STRING = re.compile(r'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"')
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?")
_WORD = re.compile(r"-?[A-Za-z_][A-Za-z0-9_]*+")
_WORDS = {"true": True, "false": False, "null": None}


def feed_json(text: str, builder: Builder) -> None:
    """Read one JSON value; raises `InputError` plan.syntax and what the builder raises."""
    _Reader(text, builder).read()


class _Reader:
    def __init__(self, text: str, builder: Builder) -> None:
        self._text = text
        self._builder = builder
        self._at = 0
        self._closers: list[str] = []

    def read(self) -> None:
        just_opened = self._value()
        while self._closers:
            closer = self._closers[-1]
            char = self._next_char()
            if char == closer:
                self._at += 1
                self._closers.pop()
                self._builder.close(self._at)
                just_opened = False
                continue
            if not just_opened:
                if char != ",":
                    raise self._unexpected(f'"," or "{closer}"')
                self._at += 1
            if closer == "}":
                self._key()
            just_opened = self._value()
        if self._next_char():
            raise self._unexpected("the end")

    def _value(self) -> bool:
        """Read a scalar or open a container; whether it opened one."""
        char = self._next_char()
        if char == "{":
            self._builder.open_mapping(self._at)
            self._closers.append("}")
        elif char == "[":
            self._builder.open_list(self._at)
            self._closers.append("]")
        elif char == '"':
            self._string()
            return False
        else:
            self._number_or_word()
            return False
        self._at += 1
        return True

    def _key(self) -> None:
        if self._next_char() != '"':
            raise self._unexpected("a key in double quotes")
        self._string()
        if self._next_char() != ":":
            raise self._unexpected('":"')
        self._at += 1

    def _string(self) -> None:
        start = self._at
        found = _STRING.match(self._text, start)
        if found is None:
            line = self._text[start : start + 80].split("\n")[0]
            message = (
                "the text that begins here does not end on its line, or holds a control character"
            )
            raise self._builder.error("plan.syntax", message, start, start + len(line))
        value = found[1]
        if "\\" in value:
            try:
                value = json.loads(found[0])
            except json.JSONDecodeError as exc:
                raise self._error(exc.msg, start + exc.pos, start + exc.pos + 1) from exc
        self._at = found.end()
        self._builder.scalar(value, start, self._at)

    def _number_or_word(self) -> None:
        start = self._at
        if word := _WORD.match(self._text, start):
            if word[0] not in _WORDS:
                raise self._unexpected("a value", word.end())
            self._at = word.end()
            self._builder.scalar(_WORDS[word[0]], start, self._at)
            return
        number = _NUMBER.match(self._text, start)
        if number is None:
            raise self._unexpected("a value")
        self._at = end = number.end()
        self._builder.scalar(decimal_of(number[0]), start, end)

    def _next_char(self) -> str:
        text = self._text
        while (char := text[self._at : self._at + 1]) in _SPACES:
            self._at += 1
        return char

    def _unexpected(self, wanted: str, end: int | None = None) -> InputError:
        end = end or self._at + 1
        found = self._text[self._at : end][:80]
        return self._error(
            f"expected {wanted}, found {json.dumps(found) if found else 'the end'}", self._at, end
        )

    def _error(self, message: str, start: int, end: int) -> InputError:
        return self._builder.error("plan.syntax", message, start, end)
