"""One statement for many rows, instead of one for each.

The one rule: it stores what `executemany` with the same rows would store. Between two rows of that another
thread may take the interpreter, and a writer beside a busy loop then waits for it a thousand times in a
commit (docs/adr/0006). Deliberately absent: two rows of one statement that change the same thing.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

# few, so that each text is parsed once: a connection keeps 128 of them
_SIZES = (512, 128, 32, 8, 1)


@dataclass(frozen=True, slots=True)
class Many:
    """SQL for any number of rows: `head`, a `(?,…)` for each, `tail`. `one` is what is asked with a single
    row, where something shorter does."""

    head: str
    tail: str = ""
    one: str = ""


def write_rows(
    database: sqlite3.Connection, statement: Many, rows: Iterable[Sequence[Any]]
) -> None:
    """Execute it with all rows, which are equally long; nothing without rows."""
    rows = rows if isinstance(rows, list) else list(rows)
    if len(rows) == 1:  # nearly every commit of a quiet mesh
        database.execute(_text(statement, len(rows[0]), 1), rows[0])
        return
    at = 0
    for size in _SIZES:
        while len(rows) - at >= size:
            part = rows[at : at + size]
            at += size
            database.execute(_text(statement, len(part[0]), size), [*chain.from_iterable(part)])


@lru_cache(maxsize=256)
def _text(statement: Many, columns: int, count: int) -> str:
    if count == 1 and statement.one:
        return statement.one
    marks = f"({','.join('?' * columns)})"
    return f"{statement.head} {','.join((marks,) * count)}{statement.tail}"
