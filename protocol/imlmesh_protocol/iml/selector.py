"""Selectors: which nodes an action may run on, by their labels and facts.

    name (== != < <= > >= in) value,  and,  or,  not,  parentheses

The one rule: a name that a node does not have makes its comparison false, whatever the operator.
Deliberately absent: arithmetic, functions, and the warning about unknown names, which is the
caller's (`Selector.names`).
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<sign>==|!=|<=|>=|<|>|\(|\)|\[|\]|,)
      | "(?P<double>[^"]*)"
      | '(?P<single>[^']*)'
      | (?P<word>[\w./:+-]+)
    )""",
    re.VERBOSE,
)
_NAME = re.compile(r"[A-Za-z_][\w./-]*")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
_KEYWORDS = frozenset({"and", "or", "not", "in"})
_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

Value = str | float
Names = Mapping[str, Any]
_Test = Callable[[Names], bool]


@dataclass(frozen=True, slots=True)
class Selector:
    """A parsed selector; `names` are the labels and facts that it asks for."""

    text: str
    names: frozenset[str]
    _test: _Test

    def matches(self, names: Names) -> bool:
        """Whether a node with these labels and facts is meant.

        Numbers compare as numbers, also when the label is their text. For a fact that is a list
        (modules), == and `in` ask whether it holds a value.
        """
        return self._test(names)


def parse_selector(text: str) -> Selector:
    """Read a selector; `selector.syntax` says at which column it goes wrong."""
    if len(text) > limits.SELECTOR_CHARS:
        raise InputError("selector.syntax", f"longer than {limits.SELECTOR_CHARS} characters")
    parser = _Parser(text)
    test = parser.any_of(0)
    parser.expect_end()
    return Selector(text, frozenset(parser.names), test)


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is sign, word or text; the end of the selector is the sign ""."""

    kind: str
    text: str
    column: int


class _Parser:
    def __init__(self, text: str) -> None:
        self.names: set[str] = set()
        self._tokens = _tokens(text)
        self._at = 0

    def any_of(self, depth: int) -> _Test:
        tests = [self._all_of(depth)]
        while self._take("word", "or"):
            tests.append(self._all_of(depth))
        return tests[0] if len(tests) == 1 else lambda names: any(test(names) for test in tests)

    def expect_end(self) -> None:
        if not self._take("sign", ""):
            raise self._error('"and", "or" or the end')

    def _all_of(self, depth: int) -> _Test:
        tests = [self._one(depth)]
        while self._take("word", "and"):
            tests.append(self._one(depth))
        return tests[0] if len(tests) == 1 else lambda names: all(test(names) for test in tests)

    def _one(self, depth: int) -> _Test:
        if depth >= limits.SELECTOR_DEPTH:
            raise self._error(f'at most {limits.SELECTOR_DEPTH} brackets and "not" in each other')
        if self._take("word", "not"):
            inner = self._one(depth + 1)
            return lambda names: not inner(names)
        if self._take("sign", "("):
            inner = self.any_of(depth + 1)
            if not self._take("sign", ")"):
                raise self._error('")"')
            return inner
        return self._comparison()

    def _comparison(self) -> _Test:
        token = self._tokens[self._at]
        if token.kind != "word" or token.text in _KEYWORDS or not _NAME.fullmatch(token.text):
            raise self._error("the name of a label or fact")
        self._at += 1
        name = token.text
        self.names.add(name)
        if self._take("word", "in"):
            values = self._list()
            return lambda names: name in names and any(_equal(names[name], v) for v in values)
        if self._take("sign", "=="):
            value = self._value()
            return lambda names: name in names and _equal(names[name], value)
        if self._take("sign", "!="):
            value = self._value()
            return lambda names: name in names and not _equal(names[name], value)
        for sign, order in _ORDERS.items():
            if self._take("sign", sign):
                value = self._value()
                return _ordered(name, order, value)
        raise self._error("== != < <= > >= or in")

    def _list(self) -> list[Value]:
        if not self._take("sign", "["):
            raise self._error('a list such as [a, b] after "in"')
        values = [self._value()]
        while self._take("sign", ","):
            values.append(self._value())
        if not self._take("sign", "]"):
            raise self._error('"," or "]"')
        return values

    def _value(self) -> Value:
        token = self._tokens[self._at]
        if token.kind == "sign" or (token.kind == "word" and token.text in _KEYWORDS):
            raise self._error("a value")
        self._at += 1
        if token.kind == "word" and _NUMBER.fullmatch(token.text):
            return float(token.text)
        return token.text

    def _take(self, kind: str, text: str) -> bool:
        token = self._tokens[self._at]
        if token.kind != kind or token.text != text:
            return False
        self._at += 1
        return True

    def _error(self, wanted: str) -> InputError:
        token = self._tokens[self._at]
        found = f'"{token.text}"' if token.text else "the end"
        return _syntax_error(token.column, f"expected {wanted}, found {found}")


def _tokens(text: str) -> list[_Token]:
    tokens = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise _syntax_error(at + 1, f"unexpected character {text[at]!r}")
        group = found.lastgroup or ""
        kind = "text" if group in ("double", "single") else group
        tokens.append(_Token(kind, found[group], found.start(group) + 1))
        at = found.end()
    return [*tokens, _Token("sign", "", len(text) + 1)]


def _syntax_error(column: int, message: str) -> InputError:
    return InputError(
        "selector.syntax", f"the selector goes wrong at character {column}: {message}"
    )


def _equal(fact: Any, value: Value) -> bool:
    if isinstance(fact, list | tuple):
        return any(_equal(one, value) for one in fact)
    if isinstance(value, float):
        return _number(fact) == value
    if isinstance(fact, bool):
        return str(fact).lower() == value.lower()
    return str(fact) == value


def _ordered(name: str, order: Callable[[Any, Any], bool], value: Value) -> _Test:
    def test(names: Names) -> bool:
        fact = names.get(name)
        if isinstance(value, float):
            number = _number(fact)
            return number is not None and order(number, value)
        return isinstance(fact, str) and order(fact, value)

    return test


def _number(fact: Any) -> float | None:
    if isinstance(fact, int | float) and not isinstance(fact, bool):
        return float(fact)
    if isinstance(fact, str) and _NUMBER.fullmatch(fact):
        return float(fact)
    return None
