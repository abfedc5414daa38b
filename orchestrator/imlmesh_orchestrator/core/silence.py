"""How silence is judged: how long a node may be silent, and when nobody is judged at all.

The one rule: doubt makes us wait longer, never shorter. A node whose beats come late gets a longer
window; while we cannot hear ourselves, and after we stood still, the silence is our own and every
node gets a fresh one; when most nodes fall silent together, what they share has failed: no verdict,
and one alarm. Deliberately absent: what a verdict means for the work; `liveness` knows.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.asking import SYSTEM
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.events import LoopbackMeasured, SilenceExplained
from imlmesh_orchestrator.core.presence import Freeze, Presence
from imlmesh_orchestrator.core.state import NodeRecord, State
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import Timing
from imlmesh_protocol.states import PRESENT


def timing_of(node: NodeRecord) -> Timing:
    return Timing(node.heartbeat_ms, node.lost_ms)


def windows(node: NodeRecord, presence: Presence) -> tuple[int, int]:
    """After how long a silence it is suspect, and lost: never sooner than it was promised."""
    timing = timing_of(node)
    wider_ms = min(limits.JITTER_FACTOR * presence.jitter_ms, timing.lost_ms) + presence.grace_ms
    return timing.suspect_ms + wider_ms, timing.lost_ms + wider_ms


def since_ms(state: State, presence: Presence) -> int:
    """Since when it is silent. As long as others come back behind our own connection, one that has not
    yet is only slow: a whole fleet wants in at the same door."""
    if not presence.grace_ms:
        return presence.last_heard_ms
    return max(presence.last_heard_ms, state.returned_ms)


def returned(turn: Turn, node: NodeRecord, presence: Presence | None) -> None:
    """A node speaks; if it was awaited, others may still be on their way, and its own window is the
    usual one again."""
    if presence is not None and presence.grace_ms:
        turn.state.returned_ms = turn.at_ms
        presence.grace_ms = 0
        watch(turn, node)


def heard(turn: Turn, node: NodeRecord, presence: Presence, beat: int) -> bool:
    """A beat: how late it came widens the window, and each one in time narrows it again.

    False when it only comes again. A node gives its next beat a new number once it has heard our
    answer to the last one, so this one lives and hears nothing: as good as silence, for work too,
    since its leases run out.
    """
    returned(turn, node, presence)  # it is here, whatever it hears
    presence.deaf = beat == presence.beat
    if presence.deaf:
        return False
    presence.beat = beat
    if node.liveness in PRESENT:
        apart_ms = turn.at_ms - presence.last_heard_ms
        usual_ms = node.heartbeat_ms + node.heartbeat_ms // limits.JITTER_USUAL
        fading_ms = presence.jitter_ms * (limits.JITTER_BEATS - 1) // limits.JITTER_BEATS
        presence.jitter_ms = max(apart_ms - usual_ms, fading_ms, 0)
    presence.last_heard_ms = turn.at_ms
    presence.explained = False
    presence.lost_at_ms = 0
    speaks(turn, node.node)
    return True


def may_judge(state: State) -> bool:
    """Whether silence says anything: our own way to the broker and back works."""
    return state.bus_open and state.hears


def watch(turn: Turn, node: NodeRecord) -> None:
    """See that a look at this node is due, and not too late: heartbeats move nothing. Of several looks
    the earliest counts."""
    if not may_judge(turn.state):
        return
    presence = turn.state.presence[node.node]
    began_ms = since_ms(turn.state, presence)
    suspect_ms, lost_ms = (began_ms + after for after in windows(node, presence))
    at_ms = suspect_ms if suspect_ms > turn.at_ms else lost_ms
    # a verdict that is withheld is thought about again when the node should have spoken
    if at_ms <= turn.at_ms:
        at_ms = turn.at_ms + node.heartbeat_ms
    if not 0 < presence.look_ms <= at_ms:
        presence.look_ms = at_ms
        turn.deadlines.add(at_ms, Deadline.NODE, node.node)


def fresh_windows(turn: Turn, grace_ms: int = 0) -> None:
    """The silence of before was ours: every node that should speak gets a whole window, and so much
    more until it speaks."""
    state = turn.state
    for node in state.nodes.values():
        if node.liveness in PRESENT:
            presence = state.presence.setdefault(node.node, Presence(turn.at_ms))
            presence.last_heard_ms = turn.at_ms
            presence.grace_ms = max(presence.grace_ms, grace_ms)
            watch(turn, node)


def loopback(turn: Turn, event: LoopbackMeasured) -> None:
    """Our own words come back, or do not; when they do again, everybody has a fresh window."""
    before, turn.state.hears = turn.state.hears, event.hears
    if event.hears and not before:
        fresh_windows(turn)


def withheld(turn: Turn, node: NodeRecord, presence: Presence) -> bool:
    """Whether this node, silent for too long, must not be called lost, for too many are silent."""
    if presence.explained:
        return False
    state = turn.state
    if state.freeze is None:
        _consider(turn)
    return state.freeze is not None


def _consider(turn: Turn) -> None:
    """Freeze when most of those that should speak are silent, and nobody knows why."""
    state, of = turn.state, 0
    silent: list[str] = []
    for name, presence in state.presence.items():
        node = state.nodes[name]
        lost_now = presence.lost_at_ms > 0 and turn.at_ms - presence.lost_at_ms <= node.lost_ms
        if presence.explained or not (lost_now or node.liveness in PRESENT):
            continue
        of += 1
        quiet_ms = turn.at_ms - presence.last_heard_ms
        if lost_now or quiet_ms >= timing_of(node).suspect_ms:
            silent.append(name)
    if too_many(len(silent), of):
        state.freeze = Freeze(set(silent), of)
        for name in silent:
            state.presence[name].away = False  # it is not about single nodes
        turn.change(c.VerdictsFrozen(turn.at_ms, turn.cause, tuple(silent), of))


def too_many(silent: int, of: int) -> bool:
    """Whether so many of them mean that what they share has failed."""
    return silent >= limits.MASS_SILENCE and silent * 100 >= limits.MASS_SILENCE_PERCENT * of


def speaks(turn: Turn, node: str) -> None:
    """Its silence is over or explained; when that leaves few of them, verdicts are made again."""
    freeze = turn.state.freeze
    if freeze is not None and node in freeze.silent:
        freeze.silent.remove(node)
        if not too_many(len(freeze.silent), freeze.of):
            _resume(turn, SYSTEM, "most of them spoke, or the broker said that they are gone")


def explain(turn: Turn, event: SilenceExplained) -> None:
    """A person says that they are gone: each is judged as if the broker had said so."""
    freeze = turn.state.freeze
    if freeze is None:
        fault = Fault("verdicts.not_frozen", "no nodes fell silent together")
        turn.command(Refuse(event.cause, fault))
        return
    gone = sorted(freeze.silent)
    for name in gone:
        turn.state.presence[name].explained = True
    _resume(turn, event.by, event.reason)
    turn.command(Reply(event.cause, len(gone)))


def _resume(turn: Turn, by: str, reason: str) -> None:
    state = turn.state
    state.freeze = None
    turn.change(c.VerdictsResumed(turn.at_ms, turn.cause, by, reason))
    for node in state.nodes.values():
        presence = state.presence.get(node.node)
        if presence is not None and not presence.explained and node.liveness in PRESENT:
            presence.last_heard_ms = turn.at_ms
