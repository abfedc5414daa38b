"""What nodes measured: one summary for each series, and pages of readings or roll-ups for export.

The one rule: every question names its series and its time, and its answer has a limit. What is asked
of the `minute` and `hour` tiers is told of minutes and hours that are over.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from imlmesh_protocol import limits

PARTS = 24  # of a sparkline


class Tier(StrEnum):
    """Readings as they came, or their roll-ups."""

    RAW = "raw"
    MINUTE = "minute"
    HOUR = "hour"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which series and times: `node` and `metric` None mean all, `metric` may hold `*`."""

    tier: Tier
    since_ms: int
    until_ms: int
    node: str | None = None
    metric: str | None = None


@dataclass(slots=True)
class _Summary:
    count: int = 0
    low: float = float("inf")
    high: float = float("-inf")
    total: float = 0.0
    last_ms: int = 0
    parts: list[float | None] = field(default_factory=lambda: [None] * PARTS)


_SERIES = """SELECT id, node, metric, unit FROM series
    WHERE (?1 IS NULL OR node = ?1) AND (?2 IS NULL OR metric GLOB ?2) ORDER BY node, metric"""
_WANTED = "at_ms >= :since AND at_ms < :until AND series IN (SELECT value FROM json_each(:ids))"
_TABLES = {Tier.RAW: "readings", Tier.MINUTE: "minutes", Tier.HOUR: "hours"}
# the columns of a tier that make count, lowest, highest and total of a part
_FOLDED = {
    Tier.RAW: "count(*), min(value), max(value), sum(value)",
    Tier.MINUTE: "sum(count), min(low), max(high), sum(total)",
    Tier.HOUR: "sum(count), min(low), max(high), sum(total)",
}
_PARTS = """SELECT series, (at_ms - :since) * :parts / :span, {folded}, max(at_ms) FROM {table}
    WHERE {wanted} GROUP BY 1, 2"""
_LAST = {
    Tier.RAW: "SELECT at_ms, value FROM readings WHERE at_ms = ? AND series = ?",
    Tier.MINUTE: "SELECT last_ms, last FROM minutes WHERE at_ms = ? AND series = ?",
    Tier.HOUR: "SELECT last_ms, last FROM hours WHERE at_ms = ? AND series = ?",
}
_COLUMNS = {
    Tier.RAW: ("value",),
    Tier.MINUTE: ("count", "low", "high", "total / count", "last"),
    Tier.HOUR: ("count", "low", "high", "total / count", "last"),
}
#: names of the values in an exported row
FIELDS = {
    Tier.RAW: ("value",),
    Tier.MINUTE: ("count", "min", "max", "mean", "last"),
    Tier.HOUR: ("count", "min", "max", "mean", "last"),
}


def summaries(database: sqlite3.Connection, wanted: Wanted) -> dict[str, Any]:
    """{series: [{node, metric, unit, count, min, max, mean, last, last_ms, parts}], truncated}.

    `parts` are the means of the 24 parts of the time asked for, null without a reading. Series that
    measured nothing in that time are left out.
    """
    rows = _series(database, wanted)
    shown = rows[: limits.TELEMETRY_LISTED]
    found = _parts(database, wanted, [row[0] for row in shown])
    return {
        "series": [
            _told(database, wanted.tier, row, found[row[0]]) for row in shown if row[0] in found
        ],
        "truncated": len(rows) > len(shown),
    }


def _series(database: sqlite3.Connection, wanted: Wanted) -> list[tuple[int, str, str, str]]:
    return database.execute(_SERIES, (wanted.node, wanted.metric)).fetchall()


def _parts(database: sqlite3.Connection, wanted: Wanted, ids: list[int]) -> dict[int, _Summary]:
    tier = wanted.tier
    sql = _PARTS.format(folded=_FOLDED[tier], table=_TABLES[tier], wanted=_WANTED)
    params = _params(wanted, ids) | {"parts": PARTS, "span": wanted.until_ms - wanted.since_ms}
    found: dict[int, _Summary] = {}
    for series, part, count, low, high, total, last_ms in database.execute(sql, params):
        summary = found.setdefault(series, _Summary())
        summary.count += count
        summary.low, summary.high = min(summary.low, low), max(summary.high, high)
        summary.total += total
        summary.last_ms = max(summary.last_ms, last_ms)
        summary.parts[part] = total / count
    return found


def _params(wanted: Wanted, ids: list[int]) -> dict[str, Any]:
    return {"since": wanted.since_ms, "until": wanted.until_ms, "ids": json.dumps(ids)}


def _told(
    database: sqlite3.Connection,
    tier: Tier,
    row: tuple[int, str, str, str],
    summary: _Summary,
) -> dict[str, Any]:
    series, node, metric, unit = row
    last_ms, last = database.execute(_LAST[tier], (summary.last_ms, series)).fetchone()
    return {
        "node": node,
        "metric": metric,
        "unit": unit,
        "count": summary.count,
        "min": summary.low,
        "max": summary.high,
        "mean": summary.total / summary.count,
        "last": last,
        "last_ms": last_ms,
        "parts": summary.parts,
    }


@dataclass(slots=True)
class Cursor:
    """Where an export stands: behind this time and series."""

    at_ms: int
    series: int = -1
    #: series by id, read once
    names: Mapping[int, tuple[str, str, str]] | None = None


def page(database: sqlite3.Connection, wanted: Wanted, cursor: Cursor) -> list[dict[str, Any]]:
    """The next rows in the order of time, at most EXPORT_ROWS; moves the cursor. Empty at the end."""
    if cursor.names is None:
        cursor.names = {row[0]: row[1:] for row in _series(database, wanted)}
    columns = ", ".join(_COLUMNS[wanted.tier])
    sql = f"""SELECT at_ms, series, {columns} FROM {_TABLES[wanted.tier]}
        WHERE (at_ms, series) > (:at, :series) AND {_WANTED}
        ORDER BY at_ms, series LIMIT :most"""  # noqa: S608 - names of ours
    params = _params(wanted, list(cursor.names)) | {
        "at": cursor.at_ms,
        "series": cursor.series,
        "most": limits.EXPORT_ROWS,
    }
    found = database.execute(sql, params).fetchall()
    if found:
        cursor.at_ms, cursor.series = found[-1][:2]
    return list(_rows(wanted.tier, found, cursor.names))


def _rows(
    tier: Tier, found: list[tuple[Any, ...]], names: Mapping[int, tuple[str, str, str]]
) -> Iterator[dict[str, Any]]:
    for at_ms, series, *values in found:
        node, metric, unit = names[series]
        told = dict(zip(FIELDS[tier], values, strict=True))
        yield {"at_ms": at_ms, "node": node, "metric": metric, "unit": unit, **told}
