"""Reads one quoted text of almost-JSON: other quotes, raw line breaks, an end that is missing.

The one rule: what the text means stays as it was written; an escape that JSON does not know is
refused, since half of its writers mean the backslash and half do not. Deliberately absent:
everything outside of quotes (`near_json`).
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from imlmesh_protocol.errors import InputError

#: opening quote -> the quotes that close it
CLOSERS = {'"': '"', "'": "'", "“": "”“", "”": "”", "‘": "’‘", "’": "’"}
_BODY = {
    opening: re.compile(rf"(?:[^\\{closers}]++|\\.)*+", re.DOTALL)
    for opening, closers in CLOSERS.items()
}
#: what may not stand in a JSON text as it is: escapes (to be looked at), quotes, control characters
_PIECE = re.compile(r'\\u[0-9a-fA-F]{4}|\\u[0-9a-fA-F]{0,3}\Z|\\.?|["\x00-\x1f]', re.DOTALL)
_ESCAPES = frozenset('"\\/bfnrtu')
_HALF_PAIR = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_CONTROL = re.compile(r"[\x00-\x1f]")
_FENCE = "\n```"

TextKind = Literal["quotes", "escape", "cut_text"]
MakeError = Callable[[str, str, int, int], InputError]


class TextEnd(Exception):
    """The text ends where more of the plan is needed; what there is so far is used."""


@dataclass(frozen=True, slots=True)
class NearText:
    """One text: its value, where it ends, how JSON writes it, and what that changes."""

    value: str
    end: int
    put: str
    change: tuple[TextKind, str] | None
    cut: bool


def read_text(content: str, start: int, error: MakeError) -> NearText:
    """Read the quoted text that begins at an offset; plan.syntax for an escape of unsure meaning."""
    opening = content[start]
    end = _BODY[opening].match(content, start + 1).end()  # type: ignore[union-attr]
    cut = end == len(content) or content[end] == "\\"
    if cut:
        # the fence that ends a block of code is no part of a text that was cut off in it
        fence = content.rfind(_FENCE, start)
        end = len(content) if fence < 0 else fence
    inside = _as_json(content[start + 1 : end], start + 1, error, cut=cut)
    if cut:
        inside = _HALF_PAIR.sub("", inside)
    put = f'"{inside}"'
    end += 0 if cut else 1
    return NearText(json.loads(put), end, put, _change(content[start:end], put, cut), cut)


def _as_json(written: str, start: int, error: MakeError, *, cut: bool) -> str:
    def piece(found: re.Match[str]) -> str:
        text = found[0]
        if len(text) == 1 and text != "\\":
            return json.dumps(text)[1:-1]
        if text == "\\'":
            return "'"
        if text[1:2] in _ESCAPES and (text[1] != "u" or len(text) == 6):
            return text
        if cut and found.end() == len(written):
            return ""
        at = start + found.start()
        message = f'"{text}" is no escape of JSON; write "\\\\" for a backslash'
        raise error("plan.syntax", message, at, at + 2)

    return _PIECE.sub(piece, written)


def _change(written: str, put: str, cut: bool) -> tuple[TextKind, str] | None:
    if cut:
        shown = json.dumps(written[-60:].lstrip("\"'"), ensure_ascii=False)
        return "cut_text", f"closed a text that is cut off after {shown}"
    if written == put:
        return None
    if written[0] != '"':
        return "quotes", f"{written[0]} around a text became double quotes"
    if _CONTROL.search(written):
        return "escape", "wrote line breaks and control characters in a text as escapes"
    return "escape", "removed backslashes that JSON does not need"
