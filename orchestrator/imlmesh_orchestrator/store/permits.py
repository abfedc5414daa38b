"""The rows of changes about permits; see `projections`.

The one rule: as of `joining`: the table holds the changes that a replay needs, and lets go of what the
core forgets at the same change.
"""

from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_orchestrator.store.joining import JOINED, Row
from imlmesh_protocol import limits

_OLD = "DELETE FROM permits WHERE to_ms < ?"
_GRANTED = "INSERT INTO permits (seq, permit, to_ms) VALUES (?,?,?)"
_LATER = """INSERT INTO permits (seq, permit, to_ms)
    SELECT ?, permit, to_ms FROM permits WHERE permit = ? LIMIT 1"""


def _granted(seq: int, change: p.PermitGranted) -> list[Row]:
    over = (_OLD, (change.at_ms - limits.PERMIT_KEPT_MS,))
    return [over, (_GRANTED, (seq, change.permit, change.to_ms))]


def _later(seq: int, change: p.PermitEnded | p.PermitRunReported) -> list[Row]:
    return [(_LATER, (seq, change.permit))]


#: those of joining too: one table for all that is rare
RARE: dict[type[c.Change], Callable[[int, Any], list[Row]]] = {
    **JOINED,
    p.PermitGranted: _granted,
    p.PermitEnded: _later,
    p.PermitRunReported: _later,
}
