"""The comments of a YAML plan, each with the field or entry that it belongs to.

The one rule: no comment is lost: one that stands alone belongs to what follows it, one behind
something to that, one at the end to the document. Deliberately absent: what the text means
(`yaml_text`); it must have been read before.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from imlmesh_protocol.iml.builder import Part, Span
from imlmesh_protocol.iml.document import Document

Path = tuple[str | int, ...]
_COMMENT = re.compile(r"(?:^|(?<=[ \t\ufeff]))#[^\r\n]*", re.MULTILINE)
#: the first line of a block of text, which may end with a comment
_BLOCK_HEAD = re.compile(r"[|>][-+0-9]*[ \t]+(#[^\r\n]*)")
_BLANK = re.compile(r"^[ \t]*(?=\r?\n)", re.MULTILINE)
#: what may stand before a comment on its line without being something that it speaks of
_OPENERS = " \t-?[{,"


@dataclass(slots=True)
class Comments:
    """Comment lines with their "#"; "" is an empty line. Paths are keys and indexes."""

    head: list[str] = field(default_factory=list)
    before: dict[Path, list[str]] = field(default_factory=dict)
    behind: dict[Path, str] = field(default_factory=dict)
    foot: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many comments there are."""
        lines = [*self.head, *self.foot, *(line for one in self.before.values() for line in one)]
        return sum(1 for line in lines if line) + len(self.behind)

    def inside(self, path: Path) -> bool:
        """Whether something within the value at `path` has a comment."""
        depth = len(path)
        commented = (path for path, lines in self.before.items() if any(lines))
        return any(len(one) > depth and one[:depth] == path for one in (*commented, *self.behind))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A field or an item of a list; the key of an item is empty."""

    start: int
    end: int
    path: Path
    key_end: int
    value: Part


def comments_of(document: Document) -> Comments:
    """The comments and empty lines of a document that was read from YAML."""
    content = document.text.content
    parts = list(_parts(document.root, (), content))
    # of two that begin together the outer one is first
    entries = sorted(parts, key=lambda one: (one.start, len(one.path)))
    starts = [one.start for one in entries]
    comments = Comments()
    for start, line in sorted(_lines(content, _scalars(parts, content))):
        line_start = max(content.rfind("\n", 0, start), content.rfind("\r", 0, start)) + 1
        alone = not content[line_start:start].strip(_OPENERS)
        owner = None if alone or not line else _owner(entries, line_start, start)
        following = bisect_right(starts, start)
        if owner is not None and owner not in comments.behind:
            comments.behind[owner] = line
        elif following == 0:
            comments.head.append(line)
        elif following < len(entries):
            comments.before.setdefault(entries[following].path, []).append(line)
        else:
            comments.foot.append(line)
    return comments


def _owner(entries: list[_Entry], line_start: int, at: int) -> Path | None:
    """What a comment behind something speaks of: the widest that begins on its line and has ended."""
    on_line = [one for one in entries if line_start <= one.start < at]
    ended = [one for one in on_line if one.end <= at]
    if ended:
        return ended[0].path
    before = on_line or [one for one in entries if one.start < at]
    return before[-1].path if before else None


def _parts(part: Part, path: Path, content: str) -> Iterator[_Entry]:
    if content.startswith("*", part.start):
        return  # an alias: its parts stand, and have their comments, elsewhere
    for key, (span, inner) in (part.entries or {}).items():
        yield _Entry(span[0], max(span[1], inner.end), (*path, key), span[1], inner)
        yield from _parts(inner, (*path, key), content)
    for index, inner in enumerate(part.items or ()):
        yield _Entry(inner.start, inner.end, (*path, index), inner.start, inner)
        yield from _parts(inner, (*path, index), content)


def _scalars(parts: list[_Entry], content: str) -> list[Span]:
    """The spans of keys and values in which "#" is no comment and an empty line is text."""
    spans = []
    for one in parts:
        spans.append((one.start, one.key_end))
        value = one.value
        if value.entries is None and value.items is None:
            # the parser counts the empty lines behind a block of text to it
            written = content[value.start : value.end].rstrip()
            spans.append((value.start, value.start + len(written)))
    return sorted(spans)


def _lines(content: str, scalars: list[Span]) -> Iterator[tuple[int, str]]:
    """Every comment and empty line outside of keys and values, with its offset."""
    at = 0
    for start, end in [*scalars, (len(content), len(content))]:
        for found in _COMMENT.finditer(content, at, max(at, start)):
            yield found.start(), found[0].rstrip()
        if head := _BLOCK_HEAD.match(content, start, end):
            yield head.start(1), head[1].rstrip()
        at = max(at, end)
    for found in _BLANK.finditer(content):
        before = bisect_right(scalars, (found.start(), len(content))) - 1
        if before < 0 or scalars[before][1] <= found.start():
            yield found.start(), ""
