"""Which of the kept log lines of a run somebody wants.

The one rule: lines are told apart by action and node, as they were written.
"""

import sqlite3
from collections.abc import Collection, Iterable
from typing import Any

from imlmesh_orchestrator.views.standing import standings, units_of
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.states import DispatchState

_FAILED = frozenset({DispatchState.FAILED, DispatchState.TIMED_OUT, DispatchState.UNKNOWN})


def failed_units(database: sqlite3.Connection, run: str) -> set[tuple[str, str]]:
    """(action, node) of every attempt that did not go well."""
    found = set()
    for _, standing in units_of(standings(database, run)):
        for row in standing.dispatches:
            if row["state"] in _FAILED:
                _, action, node, _ = split_dispatch(row["dispatch"])
                found.add((str(action), str(node)))
    return found


def wanted(
    lines: Iterable[dict[str, Any]],
    action: str | None,
    units: Collection[tuple[str, str]] | None,
    since_ms: int | None,
) -> list[dict[str, Any]]:
    """Those of one action, of the units, and not older; None leaves a question open."""
    return [
        line
        for line in lines
        if action in (None, line["action"])
        and (units is None or (line["action"], line["node"]) in units)
        and line["at_ms"] >= (since_ms or 0)
    ]
