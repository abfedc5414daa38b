"""The fenced blocks of a page of docs/, each with the last file under examples/ that was named before it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FILE = re.compile(r"`(examples/[\w./-]+)`")


@dataclass(frozen=True)
class Block:
    """`language` of the fence, `text` inside it, `line` of the fence, `file` named before it."""

    language: str
    text: str
    line: int
    file: str


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page, in order."""
    language, first, inside, file = "", 0, [], ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```") and first:
            yield Block(language, "".join(f"{each}\n" for each in inside), first, file)
            first, inside = 0, []
        elif line.startswith("```"):
            language, first = line.removeprefix("```"), number
        elif first:
            inside.append(line)
        else:
            file = (_FILE.findall(line) or [file])[-1]
