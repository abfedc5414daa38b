"""How data is printed: tables that fit the window, states as shape + word + colour, JSON.

The one rule: data goes to stdout, everything else to stderr, and a state is never told by colour
alone. In a narrow window a table leaves out its least important columns. Deliberately absent: what
the data means.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from imlmesh.foreign import as_json, as_yaml, one_line, printable
from imlmesh.settings import settings

#: state -> (shape, style)
MARKS = {
    "online": ("✔", "green"),
    "suspect": ("▲", "yellow"),
    "lost": ("✖", "red"),
    "offline": ("✖", "dim"),
    "open": ("✔", "green"),
    "cordoned": ("⏸", "yellow"),
    "draining": ("⏸", "yellow"),
    "quarantined": ("■", "red"),
    "revoked": ("✖", "dim"),
    "pending": ("◌", "dim"),
    "waiting": ("◔", "yellow"),
    "awaiting_approval": ("◔", "yellow"),
    "running": ("●", "cyan"),
    "paused": ("◔", "yellow"),
    "cancelling": ("▲", "yellow"),
    "unknown": ("?", "yellow"),
    "completed": ("✔", "green"),
    "approved": ("✔", "green"),
    "failed": ("✖", "red"),
    "denied": ("✖", "red"),
    "expired": ("✖", "red"),
    "timed_out": ("✖", "red"),
    "rejected": ("✖", "red"),
    "cancelled": ("■", "magenta"),
    "skipped": ("-", "dim"),
    "superseded": ("-", "dim"),
    "rolled_back": ("↶", "magenta"),
}
_BARS = "▁▂▃▄▅▆▇"
_UNLIMITED = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table; `keep` 0 stays always, the highest one leaves a narrow window first."""

    title: str
    keep: int = 0
    right: bool = False


Cell = str | Text


def is_live() -> bool:
    """Whether stdout is a terminal that can be redrawn."""
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "")


def coloured() -> bool:
    """NO_COLOR and --no-color win over FORCE_COLOR, that over what the terminal is."""
    if settings.no_color or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


class _SafeConsole(Console):
    def on_broken_pipe(self) -> None:
        # rich would end with 1, which means here that a run failed
        if not self.stderr:
            raise BrokenPipeError
        # what is said beside the data is not worth the work
        self.quiet = True

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        # Everything that is printed or redrawn comes by here; control segments are rich's own.
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


@cache
def console(*, err: bool = False) -> Console:
    """The console of stdout or stderr; as wide as its terminal, a pipe has no width."""
    stream = sys.stderr if err else sys.stdout
    return _SafeConsole(
        stderr=err,
        width=None if stream.isatty() else _UNLIMITED,
        force_terminal=True if coloured() else None,
        color_system="auto" if coloured() else None,
        highlight=False,
        markup=False,
        emoji=False,
    )


def say(text: Cell = "") -> None:
    """A line for people, on stderr; nothing with --quiet."""
    if not settings.quiet:
        console(err=True).print(text, soft_wrap=True)


def write(text: Cell = "") -> None:
    """A line of data, on stdout."""
    console().print(text, soft_wrap=True)


def emit_record(record: Mapping[str, Any], *, line: bool = False) -> None:
    """One object on stdout, as JSON or YAML; `line`: one of many, on a line or a document each."""
    if settings.output == "yaml":
        text = ("---\n" if line else "") + as_yaml(record)
    else:
        indent = None if line or settings.output == "jsonl" else 2
        text = as_json(record, indent) + "\n"
    # A plain write: rich would fold long lines.
    sys.stdout.write(text)
    sys.stdout.flush()


def emit(record: Mapping[str, Any], items: str | None = None) -> bool:
    """Print `record` as data when that is wanted; False when a table is. jsonl prints each of `items`."""
    if settings.output == "table":
        return False
    if settings.output == "jsonl" and items is not None:
        schema = str(record["schema"]).replace("-list/", "/")
        for item in record[items]:
            emit_record({"schema": schema, **item})
    else:
        emit_record(record)
    return True


def write_table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> None:
    """A table on stdout that fits the window."""
    texts = [[_as_text(cell) for cell in row] for row in rows]
    shown = _fitting(columns, texts, console().width)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index in shown:
        column = columns[index]
        # The first column names the row: it folds rather than loses letters.
        overflow = "fold" if index == 0 else "ellipsis"
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=index != 0,
            overflow=overflow,  # type: ignore[arg-type]
        )
    for row in texts:
        table.add_row(*(row[index] for index in shown))
    with console().capture() as drawn:
        console().print(table)
    # Cells are filled with spaces up to their column's end; nobody wants them in a pipe.
    for line in drawn.get().splitlines():
        console().file.write(line.rstrip() + "\n")


def _as_text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(printable(one_line(cell)))


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[Text]], width: int) -> list[int]:
    wide = [
        max([cell_len(column.title), *(cell_len(row[index].plain) for row in rows)]) + 2
        for index, column in enumerate(columns)
    ]
    shown = list(range(len(columns)))
    for index in sorted(shown, key=lambda i: -columns[i].keep):
        if sum(wide[i] for i in shown) <= width + 2 or columns[index].keep == 0:
            break
        shown.remove(index)
    return shown


def mark(state: str) -> Text:
    """A state as shape, word and colour."""
    shape, style = MARKS.get(state, ("·", ""))
    return Text(f"{shape} {state.replace('_', ' ')}", style=style)


def bars(parts: Sequence[float | None]) -> str:
    """Shares (0 to 1) as a row of bars; what is not known is a gap."""
    top = len(_BARS) - 1
    return "".join(" " if part is None else _BARS[round(part * top)] for part in parts)


def duration(milliseconds: float | None) -> str:
    """`3.1s`, `42s`, `14m`, `5h`, `3d`; `-` for None."""
    if milliseconds is None:
        return "-"
    seconds = max(0.0, milliseconds / 1000)
    if seconds < 10:
        return f"{seconds:.1f}s"
    for limit, size, unit in ((120, 1, "s"), (7_200, 60, "m"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def counted(number: int, noun: str) -> str:
    """`1 action`, `2 actions`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def clock(at_ms: int) -> str:
    """Local time of day of a wall clock's milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(at_ms / 1000))


def percent(value: float | None) -> str:
    """`12%`, or `-` for None."""
    return "-" if value is None else f"{value:.0f}%"


def try_line(words: str) -> str:
    """`imlmesh WORDS` as it must be typed to reach the same mesh as this call."""
    if settings.home:
        from shlex import quote

        return f"imlmesh {words} --home {quote(settings.home)}"
    return f"imlmesh {words}"
