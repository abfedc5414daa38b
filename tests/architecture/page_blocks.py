"""The fenced blocks of a page of docs/, each with the last file under examples/ that was named before it."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imlmesh.main import build

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


def commands(page: Path) -> list[list[str]]:
    """The words behind `$ imlmesh` of every command of the page."""
    lines = [
        line
        for block in blocks(page)
        if block.language == "console"
        for line in block.text.splitlines()
    ]
    return [shlex.split(line, comments=True)[2:] for line in lines if line.startswith("$ imlmesh")]


def check_words(words: list[str]) -> None:
    """Raise what the command line would say to `imlmesh WORDS`; nothing is done."""
    root = build()
    context = root.make_context("imlmesh", list(words), resilient_parsing=True)
    command, rest = root.get_command(context, words[0]), words[1:]
    if hasattr(command, "commands"):
        command, rest = command.commands[words[1]], words[2:]
    assert command.make_context(" ".join(words), rest).command is command
