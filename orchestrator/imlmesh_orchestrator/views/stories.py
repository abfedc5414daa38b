"""What happened, in order: the story of a run, and stored changes for those who watch.

The one rule: everything that was committed is told once, in the order of seq. Deliberately
absent: the sentences; `telling` makes them.
"""

import sqlite3
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store import compacted
from imlmesh_orchestrator.store.codec import decode
from imlmesh_orchestrator.store.compacted import COLUMNS
from imlmesh_orchestrator.views.runs import find_run
from imlmesh_orchestrator.views.telling import story_entry
from imlmesh_orchestrator.views.units import Alias
from imlmesh_protocol import limits

# memory belongs to a session, so what a run wrote is found by its place among the run's changes;
# it is written before the run ends
_MEMORY = f"""SELECT {COLUMNS} FROM changes WHERE run IS NULL AND kind LIKE 'memory-%'
    AND seq > ? AND seq < ?"""  # noqa: S608


def story(database: sqlite3.Connection, name: str, alias: Alias) -> list[dict[str, Any]]:
    """Every change of the run in words, in order, with what became of memory by it."""
    run = find_run(database, name)
    changes = changes_after(database, run, 0, limits.COUNT_MAX)
    if any(type(change) is c.RunCreated and _writes(change) for _, change in changes):
        ends = [seq for seq, change in changes if type(change) is c.RunEnded]
        place = (changes[0][0], max(ends, default=limits.COUNT_MAX))
        written = database.execute(_MEMORY, place)
        changes += [
            (seq, change)
            for seq, change in ((seq, decode(*row)) for seq, *row in written)
            if isinstance(change, c.MemoryWritten | c.MemoryDropped)
            and change.by.startswith(f"{run}/")
        ]
    changes.sort(key=lambda numbered: numbered[0])
    return [story_entry(seq, change, alias) for seq, change in changes]


def changes_after(
    database: sqlite3.Connection, run: str | None, after: int, limit: int
) -> list[tuple[int, c.Change]]:
    """The next stored changes, of one run or of everything, beyond the seq `after`."""
    rows = compacted.changes_after(database, run, after, limit)
    return [(row[0], decode(*row[1:])) for row in rows]


def first_seq(database: sqlite3.Connection, run: str) -> int:
    """Of the change that created the run."""
    return compacted.span(database, run)[0]


def _writes(change: c.RunCreated) -> bool:
    return any(action.memory and action.memory.write_key for action in change.plan.actions)
