"""Nodes that come and go: held down, for longer each time.

The one rule: who returns is given work at once the first times; who does it again within a few
minutes stays suspect for a while that doubles. It keeps what it has and its leases are renewed, so
nothing moves because of that. When most nodes went away together, what they share came and went, and
that says nothing of any of them. Deliberately absent: that it is quarantined in the end; `evidence`.
"""

from imlmesh_orchestrator.core import silence
from imlmesh_orchestrator.core.presence import Presence
from imlmesh_orchestrator.core.state import NodeRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.states import PRESENT


def returned(turn: Turn, node: NodeRecord, presence: Presence) -> bool:
    """The node speaks and hears: whether it was away, and too often, so that it is held down."""
    if not presence.away:
        return False
    presence.away = False
    if _together(turn, node, presence):
        return False
    returns = presence.returns_ms
    while returns and returns[0] <= turn.at_ms - limits.EVIDENCE_MS:
        returns.popleft()
    returns.append(turn.at_ms)
    hold_ms = limits.hold_ms(len(returns), node.lost_ms)
    presence.held_until_ms = max(presence.held_until_ms, turn.at_ms + hold_ms)
    return hold_ms > 0


def _together(turn: Turn, node: NodeRecord, presence: Presence) -> bool:
    """Whether most nodes went away within one window of this one. Who was back before that could be seen
    is forgiven that return."""
    state = turn.state
    from_ms, to_ms = state.together_ms
    if from_ms <= presence.away_ms <= to_ms:
        return True
    from_ms, to_ms = presence.away_ms - node.lost_ms, presence.away_ms + node.lost_ms
    gone, of = [], 0
    for name, other in state.presence.items():
        if other.away_ms and from_ms <= other.away_ms <= to_ms:
            gone.append(other)
        elif state.nodes[name].liveness not in PRESENT:
            continue
        of += 1
    if not silence.too_many(len(gone), of):
        return False
    state.together_ms = from_ms, to_ms
    for other in gone:
        if not other.away and other.returns_ms and other.returns_ms[-1] >= other.away_ms:
            other.returns_ms.pop()
    return True


def forgive(presence: Presence) -> None:
    """A person, or what it did on probation, says that it may be trusted again."""
    presence.returns_ms.clear()
    presence.held_until_ms = 0
