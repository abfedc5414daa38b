"""Nodes that come and go: held down, for longer each time.

The one rule: who returns is given work at once the first times; who does it again within a few
minutes stays suspect for a while that doubles. It keeps what it has and its leases are renewed, so
nothing moves because of that. Deliberately absent: that it is quarantined in the end; `evidence`.
"""

from imlmesh_orchestrator.core.presence import Presence
from imlmesh_orchestrator.core.state import NodeRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits


def returned(turn: Turn, node: NodeRecord, presence: Presence) -> bool:
    """The node speaks and hears: whether it was away, and too often, so that it is held down."""
    if not presence.away:
        return False
    presence.away = False
    returns = presence.returns_ms
    while returns and returns[0] <= turn.at_ms - limits.EVIDENCE_MS:
        returns.popleft()
    returns.append(turn.at_ms)
    hold_ms = limits.hold_ms(len(returns), node.lost_ms)
    presence.held_until_ms = max(presence.held_until_ms, turn.at_ms + hold_ms)
    return hold_ms > 0


def forgive(presence: Presence) -> None:
    """A person, or what it did on probation, says that it may be trusted again."""
    presence.returns_ms.clear()
    presence.held_until_ms = 0
