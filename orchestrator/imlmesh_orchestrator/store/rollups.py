"""Readings in output: how they are written, rolled up and forgotten; each function is one transaction's work.

The one rule: a roll-up is what its readings say, made once its time is over; a reading that comes
later is merged into it in the same transaction. So nothing is in memory that a crash could lose,
and the work can be cut anywhere. Deliberately absent: when it is done; `upkeep` knows.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from imlmesh_protocol import limits
from imlmesh_runtime.rows import Many, write_rows

MINUTE_MS = 60_000
HOUR_MS = 3_600_000

#: times, series id, values
Chunk = tuple[Sequence[int], int, Sequence[float]]

_INTO = {
    table: Many(f"INSERT OR IGNORE INTO {table} (at_ms, series, value) VALUES")
    for table in ("readings", "late")
}

_LATE = """CREATE TEMP TABLE IF NOT EXISTS late (at_ms INTEGER NOT NULL, series INTEGER NOT NULL,
    value REAL NOT NULL, PRIMARY KEY (at_ms, series)) WITHOUT ROWID"""
_NOT_NEW = """DELETE FROM late WHERE EXISTS
    (SELECT 1 FROM readings r WHERE r.at_ms = late.at_ms AND r.series = late.series)"""
_TAKE_LATE = "INSERT INTO readings (at_ms, series, value) SELECT at_ms, series, value FROM late"

# ?1 is the size of a part of time, ?2 and ?3 from when to before when; the join finds the last value
_OF_READINGS = """SELECT g.part, g.series, g.count, g.low, g.high, g.total, g.last_ms, r.value
    FROM (SELECT at_ms / ?1 * ?1 AS part, series, count(*) AS count, min(value) AS low,
            max(value) AS high, sum(value) AS total, max(at_ms) AS last_ms
        FROM {source} WHERE at_ms >= ?2 AND at_ms < ?3 GROUP BY 1, 2) g
    JOIN {source} r ON r.at_ms = g.last_ms AND r.series = g.series"""
_OF_MINUTES = """SELECT g.part, g.series, g.count, g.low, g.high, g.total, m.last_ms, m.last
    FROM (SELECT at_ms / ?1 * ?1 AS part, series, sum(count) AS count, min(low) AS low,
            max(high) AS high, sum(total) AS total, max(at_ms) AS last_minute
        FROM minutes WHERE at_ms >= ?2 AND at_ms < ?3 GROUP BY 1, 2) g
    JOIN minutes m ON m.at_ms = g.last_minute AND m.series = g.series"""
_MERGE = """INSERT INTO {tier} (at_ms, series, count, low, high, total, last_ms, last) {rows}
    WHERE true ON CONFLICT (at_ms, series) DO UPDATE SET count = count + excluded.count,
        low = min(low, excluded.low), high = max(high, excluded.high),
        total = total + excluded.total,
        last = CASE WHEN excluded.last_ms >= last_ms THEN excluded.last ELSE last END,
        last_ms = max(last_ms, excluded.last_ms)"""
_ROLL_MINUTE = _MERGE.format(tier="minutes", rows=_OF_READINGS.format(source="readings"))
_ROLL_HOUR = _MERGE.format(tier="hours", rows=_OF_MINUTES)
_LATE_INTO = {
    tier: _MERGE.format(tier=tier, rows=_OF_READINGS.format(source="late"))
    for tier in ("minutes", "hours")
}
_NEXT = "SELECT min(at_ms) FROM {table} WHERE at_ms >= ?"
_SIZES = {"minutes": MINUTE_MS, "hours": HOUR_MS}


@dataclass(frozen=True, slots=True)
class Kept:
    """How long each tier is kept, and how large the store may grow (bytes)."""

    raw_ms: int = limits.RAW_KEPT_HOURS * HOUR_MS
    minutes_ms: int = limits.MINUTES_KEPT_DAYS * 24 * HOUR_MS
    hours_ms: int = limits.HOURS_KEPT_DAYS * 24 * HOUR_MS
    store_bytes: int = limits.OUTPUT_STORE_MB << 20


def rolled_to(database: sqlite3.Connection, tier: str) -> int:
    """Up to when the roll-ups of `minutes` or `hours` are made."""
    row = database.execute("SELECT to_ms FROM rolled WHERE tier = ?", (tier,)).fetchone()
    return 0 if row is None else int(row[0])


def write_readings(database: sqlite3.Connection, chunks: Iterable[Chunk]) -> None:
    """Write them; those of a minute that is rolled up already are merged into its roll-ups."""
    over_ms = rolled_to(database, "minutes")
    new: list[Chunk] = []
    late: list[Chunk] = []
    for chunk in chunks:
        (late if min(chunk[0]) < over_ms else new).append(chunk)
    _insert(database, "readings", new)
    if late:
        _write_late(database, late)


def _write_late(database: sqlite3.Connection, chunks: Iterable[Chunk]) -> None:
    database.execute(_LATE)
    _insert(database, "late", chunks)
    database.execute(_NOT_NEW)
    for tier, merge in _LATE_INTO.items():
        database.execute(merge, (_SIZES[tier], 0, rolled_to(database, tier)))
    database.execute(_TAKE_LATE)
    database.execute("DELETE FROM late")


def _insert(database: sqlite3.Connection, table: str, chunks: Iterable[Chunk]) -> None:
    rows = chain.from_iterable(
        zip(times, repeat(series), values, strict=False) for times, series, values in chunks
    )
    write_rows(database, _INTO[table], rows)


def roll_up(database: sqlite3.Connection, now_ms: int) -> bool:
    """Make the roll-ups of the next minute or hour that is over; whether there may be more."""
    over_ms = (now_ms - limits.ROLL_UP_AFTER_MS) // MINUTE_MS * MINUTE_MS
    if _roll_next(database, "readings", "minutes", _ROLL_MINUTE, over_ms):
        return True
    # no minute that is over waits any more, so an hour that is over has all of its minutes
    return _roll_next(database, "minutes", "hours", _ROLL_HOUR, over_ms)


def _roll_next(
    database: sqlite3.Connection, source: str, tier: str, roll: str, over_ms: int
) -> bool:
    size_ms, from_ms = _SIZES[tier], rolled_to(database, tier)
    (at_ms,) = database.execute(_NEXT.format(table=source), (from_ms,)).fetchone()
    if at_ms is None:
        return False
    begin_ms = at_ms // size_ms * size_ms
    if begin_ms + size_ms > over_ms:
        return False
    database.execute(roll, (size_ms, begin_ms, begin_ms + size_ms))
    _set_rolled(database, tier, begin_ms + size_ms)
    if tier == "hours":
        # nothing may come into that hour any more as if its minute were still open
        _set_rolled(database, "minutes", begin_ms + size_ms)
    return True


def _set_rolled(database: sqlite3.Connection, tier: str, to_ms: int) -> None:
    database.execute(
        "INSERT INTO rolled VALUES (?, ?) ON CONFLICT DO UPDATE SET to_ms = max(to_ms, excluded.to_ms)",
        (tier, to_ms),
    )


def forget(database: sqlite3.Connection, now_ms: int, kept: Kept) -> bool:
    """Delete some rows that are older than they may be; whether there may be more.

    When the store is too large the oldest results go, which are copies of what lifecycle holds; then
    the oldest raw readings before their time, then minutes. What is not rolled up yet stays in any case.
    """
    minutes_over, hours_over = rolled_to(database, "minutes"), rolled_to(database, "hours")
    before = {
        "readings": min(now_ms - kept.raw_ms, minutes_over),
        "heartbeats": now_ms - kept.raw_ms,
        "minutes": min(now_ms - kept.minutes_ms, hours_over),
        "hours": now_ms - kept.hours_ms,
    }
    for table, before_ms in before.items():
        if _forget_some(database, table, before_ms):
            return True
    if used_bytes(database) <= kept.store_bytes:
        return False
    return (
        _forget_results(database)
        or _forget_some(database, "readings", minutes_over)
        or _forget_some(database, "minutes", hours_over)
    )


def _forget_results(database: sqlite3.Connection) -> bool:
    """Delete the results that came first; whether there were any."""
    found = database.execute(
        "DELETE FROM results WHERE rowid IN (SELECT rowid FROM results ORDER BY rowid LIMIT ?)",
        (limits.FORGET_RESULTS,),
    )
    return found.rowcount > 0


def _forget_some(database: sqlite3.Connection, table: str, before_ms: int) -> bool:
    """Delete the oldest rows of a table up to FORGET_ROWS; whether any were old enough."""
    row = database.execute(
        f"SELECT max(at_ms) FROM (SELECT at_ms FROM {table} WHERE at_ms < ? ORDER BY at_ms LIMIT ?)",  # noqa: S608 - names of ours
        (before_ms, limits.FORGET_ROWS),
    ).fetchone()
    if row[0] is None:
        return False
    database.execute(f"DELETE FROM {table} WHERE at_ms <= ?", row)  # noqa: S608 - names of ours
    return True


def used_bytes(database: sqlite3.Connection) -> int:
    """What the file holds; deleted pages are used again and do not count."""
    pages, free, size = (
        database.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
