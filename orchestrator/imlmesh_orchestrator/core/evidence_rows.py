"""Rows for people about what a node signed and should not have.

The one rule: a node makes so many rows in a while and no more, but a verdict always has one.
Deliberately absent: what counts against a node; `evidence` knows.
"""

from imlmesh_orchestrator.core.admission_changes import EvidenceKept
from imlmesh_orchestrator.core.presence import Sightings
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits

#: what a node says of work that is not its own: no reason to quarantine it, since a store or a
#: journal that was restored makes it say that
FOREIGN = "foreign"
#: verdicts that the node could make many of
_MANY = frozenset({"counted", "alarm", "kept"})


def keep(turn: Turn, node: str, kind: str, text: str, verdict: str) -> None:
    """A row, unless the node has had its share of them."""
    kept = turn.state.sightings.setdefault(node, Sightings()).kept_ms
    while kept and kept[0] <= turn.at_ms - limits.QUARANTINES_MS:
        kept.popleft()
    if len(kept) >= limits.EVIDENCE_KEPT and verdict in _MANY:
        return
    kept.append(turn.at_ms)
    short = text[: limits.REASON_CHARS]
    turn.change(EvidenceKept(turn.at_ms, turn.cause, node, kind, short, verdict))
