"""What happened, in order: the story of a run, and stored changes for those who watch.

The one rule: everything that was committed is told once, in the order of seq. Deliberately
absent: the sentences; `telling` makes them.
"""

import sqlite3
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import decode
from imlmesh_orchestrator.views.runs import find_run
from imlmesh_orchestrator.views.telling import story_entry
from imlmesh_orchestrator.views.units import Alias
from imlmesh_protocol import limits

_COLUMNS = "seq, run, at_ms, cause, kind, version, body"
_OF_RUN = f"SELECT {_COLUMNS} FROM changes WHERE run = ?"  # noqa: S608
# memory belongs to a session, so what a run wrote is found by its place among the run's changes;
# it is written before the run ends
_MEMORY = f"""SELECT {_COLUMNS} FROM changes WHERE run IS NULL AND kind = 'memory-written'
    AND seq > (SELECT min(seq) FROM changes WHERE run = :run)
    AND seq < (SELECT coalesce(max(seq), :last) FROM changes
        WHERE run = :run AND kind = 'run-ended')"""  # noqa: S608


def story(database: sqlite3.Connection, name: str, alias: Alias) -> list[dict[str, Any]]:
    """Every change of the run in words, in order, with what it wrote to memory."""
    run = find_run(database, name)
    rows = database.execute(_OF_RUN, (run,)).fetchall()
    changes = [(seq, decode(*row)) for seq, *row in rows]
    if any(type(change) is c.RunCreated and _writes(change) for _, change in changes):
        written = database.execute(_MEMORY, {"run": run, "last": limits.COUNT_MAX})
        changes += [
            (seq, change)
            for seq, change in ((seq, decode(*row)) for seq, *row in written)
            if isinstance(change, c.MemoryWritten) and change.by.startswith(f"{run}/")
        ]
    changes.sort(key=lambda numbered: numbered[0])
    return [story_entry(seq, change, alias) for seq, change in changes]


def changes_after(
    database: sqlite3.Connection, run: str | None, after: int, limit: int
) -> list[tuple[int, c.Change]]:
    """The next stored changes, of one run or of everything, beyond the seq `after`."""
    which = "run = ?" if run is not None else "? IS NULL"
    sql = f"SELECT {_COLUMNS} FROM changes WHERE {which} AND seq > ? ORDER BY seq LIMIT ?"  # noqa: S608
    rows = database.execute(sql, (run, after, limit))
    return [(seq, decode(*row)) for seq, *row in rows]


def first_seq(database: sqlite3.Connection, run: str) -> int:
    """Of the change that created the run."""
    return int(database.execute("SELECT min(seq) FROM changes WHERE run = ?", (run,)).fetchone()[0])


def _writes(change: c.RunCreated) -> bool:
    return any(action.memory and action.memory.write_key for action in change.plan.actions)
