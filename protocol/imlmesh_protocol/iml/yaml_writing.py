"""Writes plain data and comments as YAML 1.2.

The one rule: what `yaml_text` reads from it is the same data, and YAML 1.1 readers do not take a
text for something else either: what looks like a number, a date or a yes is quoted. Deliberately
absent: anchors, tags, and any choice of style.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from imlmesh_protocol.iml.yaml_comments import Comments, Path

#: beyond it a line is broken into a block
_WIDTH = 120
#: a longer key needs a form of its own
_KEY_CHARS = 1_000
_INDENT = "  "
#: characters that JSON does not escape, and that YAML or a terminal would not show as they are
UNSEEN = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF)}
_PLAIN = re.compile(r"[A-Za-z_/\u00c0-\U0010ffff][\w ./@%+=~^*&$<>|;()'!?,\u00a1-\U0010ffff-]*")
_AMBIGUOUS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})


def write_yaml(data: Any, comments: Comments) -> str:
    """The text of an object, with its comments, ending with a line feed."""
    writer = _Writer(comments)
    writer.lead(comments.head, "")
    if data:
        writer.mapping(data, (), "")
    else:
        writer.lines.append("{}")
    writer.lead(comments.foot, "")
    return "\n".join(writer.lines).rstrip("\n") + "\n"


class _Writer:
    def __init__(self, comments: Comments) -> None:
        self.lines: list[str] = []
        self._comments = comments

    def lead(self, lines: Sequence[str], indent: str) -> None:
        """Comments that stand alone, and at most one empty line at a time."""
        for line in lines:
            if line:
                self.lines.append(indent + line)
            elif self.lines and self.lines[-1]:
                self.lines.append("")

    def mapping(self, data: dict[str, Any], path: Path, indent: str, begin: str = "") -> None:
        """The fields, each from a line of its own; the first one behind `begin`."""
        for key, value in data.items():
            at = (*path, key)
            if not begin:
                self.lead(self._comments.before.get(at, ()), indent)
            head = begin or indent
            begin = ""
            written = _scalar(key)
            if len(written) > _KEY_CHARS:
                self.lines.append(f"{head}? {written}")
                head, written = indent, ""
            self._field(f"{head}{written}:", value, at, indent)

    def _field(self, head: str, value: Any, path: Path, indent: str) -> None:
        behind = self._behind(path)
        inner = indent + _INDENT
        if (inline := self._inline(value, path, len(head) + 1)) is not None:
            self.lines.append(f"{head} {inline}{behind}")
        elif isinstance(value, str):
            self._block_text(head, value, behind, inner)
        else:
            self.lines.append(head + behind)
            if isinstance(value, dict):
                self.mapping(value, path, inner)
            else:
                self._list(value, path, inner)

    def _list(self, items: list[Any], path: Path, indent: str, *, led: bool = False) -> None:
        """The items; what leads to the first one was written already when `led`."""
        head, inner = f"{indent}-", indent + _INDENT
        for index, value in enumerate(items):
            at = (*path, index)
            if index > 0 or not led:
                self.lead(self._leading(value, at, indent), indent)
            if (inline := self._inline(value, at, len(head) + 1)) is not None:
                self.lines.append(f"{head} {inline}{self._behind(at)}")
            elif isinstance(value, str):
                self._block_text(head, value, self._behind(at), inner)
            elif isinstance(value, dict):
                self.mapping(value, at, inner, f"{head} ")
            else:
                self.lines.append(head)
                self._list(value, at, inner, led=True)

    def _leading(self, value: Any, path: Path, indent: str) -> list[str]:
        """What stands before an item; a reader takes what its first part has for the item's."""
        lines = list(self._comments.before.get(path, ()))
        if isinstance(value, str) or self._inline(value, path, len(indent) + 2) is not None:
            return lines
        if path in self._comments.behind:
            lines.append(self._comments.behind[path])
        if isinstance(value, dict):
            return lines + self._comments.before.get((*path, next(iter(value))), [])
        return lines + self._leading(value[0], (*path, 0), indent + _INDENT)

    def _behind(self, path: Path) -> str:
        comment = self._comments.behind.get(path)
        return f"  {comment}" if comment else ""

    def _inline(self, value: Any, path: Path, column: int) -> str | None:
        """The value on one line; None when it needs lines of its own."""
        if isinstance(value, str):
            return None if _is_block(value) else _scalar(value)
        if not isinstance(value, dict | list):
            return _scalar(value)
        if not value:
            return "{}" if isinstance(value, dict) else "[]"
        if path == ("actions",) or path[:-1] == ("actions",) or self._comments.inside(path):
            return None
        written = _flow(value)
        return None if written is None or column + len(written) > _WIDTH else written

    def _block_text(self, head: str, text: str, behind: str, indent: str) -> None:
        keeps_end = "" if text.endswith("\n") else "-"
        self.lines.append(f"{head} |{keeps_end}{behind}")
        for line in text.removesuffix("\n").split("\n"):
            self.lines.append(indent + line if line else "")


def _flow(value: Any) -> str | None:
    """A value within braces and brackets; None when a text in it has several lines."""
    if isinstance(value, dict):
        fields = [(_scalar(key, in_flow=True), _flow(inner)) for key, inner in value.items()]
        if any(inner is None for _, inner in fields):
            return None
        return "{" + ", ".join(f"{key}: {inner}" for key, inner in fields) + "}"
    if isinstance(value, list):
        items = [_flow(inner) for inner in value]
        return None if None in items else "[" + ", ".join(map(str, items)) + "]"
    return None if isinstance(value, str) and _is_block(value) else _scalar(value, in_flow=True)


def _is_block(text: str) -> bool:
    """Whether a text of several lines can be written as it is, without anything unseen."""
    lines = text.removesuffix("\n").split("\n")
    return (
        len(lines) > 1
        and lines[0] != ""
        and lines[-1] != ""
        and not lines[0].startswith(" ")
        and all(line.isprintable() and line == line.rstrip() for line in lines)
    )


def _scalar(value: Any, *, in_flow: bool = False) -> str:
    if isinstance(value, str) and (
        _PLAIN.fullmatch(value)
        and value.isprintable()
        and not value.endswith(" ")
        and not (in_flow and "," in value)
        and value.lower() not in _AMBIGUOUS
    ):
        return value
    return json.dumps(value, ensure_ascii=False).translate(UNSEEN)
