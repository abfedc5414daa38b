"""Who is there: births, heartbeats, silence, and what the loss of a node means for its work.

The one rule: a broken connection is a suspicion, silence beyond the window a loss. Deliberately
absent: how long the window is, and when silence says nothing; `silence` knows.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import flapping, permits, runs, silence
from imlmesh_orchestrator.core.commands import (
    AskInventory,
    AskRebirth,
    ReportRefusal,
    SendAck,
    SendCancel,
)
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.dispatching import accepted, each_live, give_up, is_own, send
from imlmesh_orchestrator.core.events import (
    EscalationArrived,
    HeartbeatArrived,
    InventoryArrived,
    NodeBirth,
    NodeGone,
    NodeLeft,
)
from imlmesh_orchestrator.core.presence import Presence
from imlmesh_orchestrator.core.silence import watch
from imlmesh_orchestrator.core.state import DispatchRecord, NodeRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import reroute_ms
from imlmesh_protocol.states import DISPATCH_LIVE, PRESENT, DispatchState, Liveness, RunState


def born(turn: Turn, event: NodeBirth) -> bool:
    """A node is (again) here; what it still holds of our work it must now tell.

    True when it is held down for coming and going.
    """
    state = turn.state
    known = state.nodes.get(event.node)
    lost = known is not None and event.journal_since > known.boot
    if known is not None and not lost and _says_nothing_new(known, event):
        turn.change(c.NodeReturned(turn.at_ms, turn.cause, event.node, event.boot, event.session))
    else:
        turn.change(_described(turn, event))
    node = state.nodes[event.node]
    before = state.presence.get(node.node)
    silence.returned(turn, node, before)
    presence = state.presence[node.node] = _begun(turn, before)
    held = _back(turn, node, presence, "birth")
    silence.speaks(turn, node.node)
    if lost:
        _forgotten(turn, node)
    watch(turn, node)
    ask_inventory(turn, node)
    turn.pools.room()
    return held


def _begun(turn: Turn, before: Presence | None) -> Presence:
    """A session begins: what was learned of the node in earlier ones stays."""
    if before is None:
        return Presence(turn.at_ms)
    return Presence(
        turn.at_ms,
        evidence=before.evidence,
        jitter_ms=before.jitter_ms,
        away=before.away,
        away_ms=before.away_ms,
        look_ms=before.look_ms,
        returns_ms=before.returns_ms,
        held_until_ms=before.held_until_ms,
    )


def _back(turn: Turn, node: NodeRecord, presence: Presence, why: str) -> bool:
    """It speaks and hears: online, or suspect while it is held down. True when that begins."""
    begins = flapping.returned(turn, node, presence)
    held_ms = presence.held_until_ms - turn.at_ms
    now = Liveness.SUSPECT if held_ms > 0 else Liveness.ONLINE
    if node.liveness is not now:
        reason = f"comes and goes: held down for {held_ms} ms" if held_ms > 0 else why
        set_liveness(turn, node, now, reason)
    return begins


def _forgotten(turn: Turn, node: NodeRecord) -> None:
    """Its journal is gone: what it was sent may have been done, even where no accept was heard."""
    fault = Fault("journal.lost", f"the journal of {node.alias} is lost")
    each_live(turn, node, lambda dispatch: give_up(turn, dispatch, fault))


def escalated(turn: Turn, event: EscalationArrived) -> None:
    """Kept for people; said again it is nothing new."""
    node = turn.state.nodes.get(event.node)
    if node is None:
        turn.command(AskRebirth(event.node))
        return
    since_ms = turn.at_ms - node.escalated_ms
    if node.escalation == event.fault and since_ms < limits.ESCALATED_MS:
        return
    if node.escalation is not None and since_ms < limits.ESCALATE_MS:
        text = f"{node.alias} asks for a person more than once in {limits.ESCALATE_MS} ms"
        turn.command(ReportRefusal(node.node, Fault("escalate.rate", text)))
        return
    turn.change(c.NodeEscalated(turn.at_ms, turn.cause, node.node, event.fault))


def _says_nothing_new(known: NodeRecord, event: NodeBirth) -> bool:
    return (
        known.manifest == event.manifest
        and known.facts == event.facts
        and (known.alias, known.profile) == (event.alias, event.profile)
        and (known.heartbeat_ms, known.lost_ms) == (event.heartbeat_ms, event.lost_ms)
    )


def _described(turn: Turn, event: NodeBirth) -> c.NodeDescribed:
    return c.NodeDescribed(
        turn.at_ms,
        turn.cause,
        event.node,
        event.alias,
        event.boot,
        event.session,
        event.manifest,
        event.facts,
        event.profile,
        event.heartbeat_ms,
        event.lost_ms,
    )


def ask_inventory(turn: Turn, node: NodeRecord) -> None:
    """What does the node hold? Its answer comes as `InventoryArrived`; it is present."""
    presence = turn.state.presence[node.node]
    nonce = f"{turn.cause}/{turn.at_ms}"
    if presence.asked == nonce:
        return  # many dispatches may be overdue in one turn: one question is for all of them
    presence.asked = nonce
    presence.expects = tuple(node.live)
    turn.command(AskInventory(node.node, presence.asked))
    turn.deadlines.add(turn.at_ms + limits.ACCEPT_MS, Deadline.INVENTORY, node.node)


def inventory_due(turn: Turn, name: str) -> None:
    """Question or answer was lost on the way: ask again, as long as the node is there."""
    node = turn.state.nodes[name]
    presence = turn.state.presence.get(name)
    if presence is not None and presence.asked and node.liveness in PRESENT:
        # with the same nonce: a slow answer to the first question is as good, and asks for no more
        turn.command(AskInventory(name, presence.asked))
        turn.deadlines.add(turn.at_ms + limits.ACCEPT_MS, Deadline.INVENTORY, name)


def take_inventory(turn: Turn, event: InventoryArrived) -> bool:
    """Adopt what the node holds; send again what never arrived; give up what it forgot.

    False when nobody asked for it.
    """
    presence = turn.state.presence.get(event.node)
    if presence is None or presence.asked != event.nonce:
        return False
    presence.asked = ""
    held, unsettled = set(event.held), set(event.unsettled)
    for name in presence.expects:
        dispatch = turn.state.dispatches.get(name)
        if dispatch is None or dispatch.state not in DISPATCH_LIVE or name in unsettled:
            continue
        never_accepted = dispatch.state is DispatchState.PLANNED
        if name in held:
            if never_accepted:
                accepted(turn, dispatch)
        elif never_accepted:
            _never_arrived(turn, dispatch)
        else:
            give_up(turn, dispatch, Fault("node.lost", "the node's journal does not hold it"))
    strangers = tuple(name for name in event.held if not _wanted(turn, event.node, name))
    if strangers:
        turn.command(SendCancel(event.node, strangers))
    turn.pools.room()
    return True


def _never_arrived(turn: Turn, dispatch: DispatchRecord) -> None:
    """What was sent before the question can arrive no more: nodes refuse what was overtaken."""
    run = turn.state.runs[dispatch.run]
    if run.state is RunState.CANCELLING:
        runs.confirm_cancel(turn, run, run.units[dispatch.action])
    else:
        _send_again(turn, dispatch)


def _send_again(turn: Turn, dispatch: DispatchRecord) -> None:
    """Unless history may be missing: then it may be long done, and forgotten by its node."""
    if turn.state.doubts:
        turn.sent.append(dispatch.dispatch)
    else:
        send(turn, dispatch)


def _wanted(turn: Turn, node: str, name: str) -> bool:
    """Whether work that a node holds may go on: ours, not cancelled, and given to nobody else."""
    dispatch = turn.state.dispatches.get(name)
    if dispatch is None:
        return permits.is_of_permit(turn, node, name)
    if dispatch.node != node:
        return False
    run = turn.state.runs[dispatch.run]
    if run.state is RunState.CANCELLING or run.units[dispatch.action].ended:
        return False
    return dispatch.state in DISPATCH_LIVE or dispatch.state is DispatchState.UNKNOWN


def beat(turn: Turn, event: HeartbeatArrived) -> bool:
    """Proof of life: the lease of all that it holds is renewed by our answer.

    True when the node is held down from now on for coming and going.
    """
    state = turn.state
    node = state.nodes.get(event.node)
    presence = state.presence.get(event.node)
    if (
        node is None
        or presence is None
        or (node.boot, node.session) != (event.boot, event.session)
        or node.liveness is Liveness.OFFLINE
    ):
        turn.command(AskRebirth(event.node))
        return False
    presence.health = event.health
    turn.command(SendAck(event.node, event.beat, ()))
    held = silence.heard(turn, node, presence, event.beat) and _hears(turn, node, presence)
    permits.beat(turn, node.node, presence, event.held)
    moved: list[str] = []
    for name in event.held:
        dispatch = state.dispatches.get(name)
        if dispatch is None or not is_own(turn, event.node, dispatch, dispatch.hash):
            continue
        if dispatch.state is DispatchState.PLANNED:
            accepted(turn, dispatch)
        elif dispatch.state is DispatchState.SUPERSEDED:
            moved.append(name)
    if moved:
        turn.command(SendCancel(event.node, tuple(moved)))
    return held


def _hears(turn: Turn, node: NodeRecord, presence: Presence) -> bool:
    """A new beat. Whoever was silent is back with the second one: that proves that it hears us."""
    if node.full:
        node.full = False
        turn.pools.room()
    presence.beats += 1
    if node.liveness is Liveness.ONLINE or presence.beats < 2:
        return False
    before = node.liveness
    held = _back(turn, node, presence, "heartbeat")
    if node.liveness is not before:
        watch(turn, node)
        ask_inventory(turn, node)
        permits.bring(turn, node.node)
        turn.pools.room()
    return held


def gone(turn: Turn, event: NodeGone) -> None:
    """The broker says that the connection broke: a suspicion, if it speaks of this session."""
    node = turn.state.nodes.get(event.node)
    if node is None or (node.boot, node.session) != (event.boot, event.session):
        return
    presence = turn.state.presence.get(event.node)
    if presence is not None:
        presence.explained = True
        presence.goes(turn.at_ms)
        silence.speaks(turn, node.node)
    if node.liveness is Liveness.ONLINE:
        set_liveness(turn, node, Liveness.SUSPECT, "connection lost")


def left(turn: Turn, event: NodeLeft) -> None:
    """A goodbye: the leases are ended, nobody needs an alarm."""
    node = turn.state.nodes.get(event.node)
    if node is None or (node.boot, node.session) != (event.boot, event.session):
        return
    if node.liveness is Liveness.OFFLINE:
        return
    set_liveness(turn, node, Liveness.OFFLINE, "said goodbye")
    fault = Fault("node.lost", f"{node.alias} was shut down")
    each_live(turn, node, lambda dispatch: _leave(turn, dispatch, fault))


def _leave(turn: Turn, dispatch: DispatchRecord, fault: Fault) -> None:
    if dispatch.on_loss != "wait":
        give_up(turn, dispatch, fault)


def look(turn: Turn, name: str) -> None:
    """The node's deadline: how long has it been silent?"""
    node = turn.state.nodes[name]
    presence = turn.state.presence.get(name)
    if presence is None or presence.look_ms > turn.at_ms:
        return  # an earlier look took its place, and the next one is due later
    presence.look_ms = 0
    if node.liveness not in PRESENT:
        return
    if silence.may_judge(turn.state):
        silent_ms = turn.at_ms - silence.since_ms(turn.state, presence)
        suspect_ms, lost_ms = silence.windows(node, presence)
        if silent_ms >= lost_ms and not silence.withheld(turn, node, presence):
            _lose(turn, node, presence, silent_ms)
            return
        if silent_ms >= suspect_ms and turn.state.freeze is None:
            presence.goes(turn.at_ms)
        if silent_ms >= suspect_ms and node.liveness is Liveness.ONLINE:
            set_liveness(turn, node, Liveness.SUSPECT, f"{presence.quiet} for {silent_ms} ms")
    watch(turn, node)


def _lose(turn: Turn, node: NodeRecord, presence: Presence, silent_ms: int) -> None:
    presence.goes(turn.at_ms)
    if not presence.explained:
        presence.lost_at_ms = turn.at_ms
    set_liveness(turn, node, Liveness.LOST, f"{presence.quiet} too long")
    fault = Fault("node.lost", f"{node.alias} has been {presence.quiet} for {silent_ms} ms")

    def lose(dispatch: DispatchRecord) -> None:
        if dispatch.on_loss == "reroute":
            lease_over_ms = presence.last_heard_ms + reroute_ms(dispatch.lease_ms)
            at_ms = max(lease_over_ms, turn.at_ms)
            turn.deadlines.add(at_ms, Deadline.REROUTE, dispatch.dispatch)
        elif dispatch.on_loss != "wait":
            give_up(turn, dispatch, fault)

    each_live(turn, node, lose)


def reroute(turn: Turn, dispatch: DispatchRecord) -> None:
    """The lease is over on both sides: unless its node is back, the work may go elsewhere."""
    node = turn.state.nodes[dispatch.node]
    if node.liveness not in (Liveness.LOST, Liveness.OFFLINE):
        return
    if turn.state.freeze is not None and node.liveness is Liveness.LOST:
        turn.deadlines.add(turn.at_ms + node.heartbeat_ms, Deadline.REROUTE, dispatch.dispatch)
        return
    presence = turn.state.presence.get(dispatch.node)
    over_ms = presence.last_heard_ms + reroute_ms(dispatch.lease_ms) if presence else turn.at_ms
    if over_ms > turn.at_ms:
        # a beat came meanwhile and was answered: the node may count its lease from that
        turn.deadlines.add(over_ms, Deadline.REROUTE, dispatch.dispatch)
    else:
        give_up(turn, dispatch, Fault("node.lost", f"{node.alias} was lost"))


def overdue(turn: Turn, dispatch: DispatchRecord) -> None:
    """It should have ended long ago: the node's journal knows."""
    node = turn.state.nodes[dispatch.node]
    if node.liveness is Liveness.ONLINE and node.node in turn.state.presence:
        ask_inventory(turn, node)
    turn.deadlines.add(turn.at_ms + node.lost_ms, Deadline.FINISH, dispatch.dispatch)


def unanswered(turn: Turn, dispatch: DispatchRecord) -> None:
    """No accept in time: the same bytes again, as long as the node may be listening.

    What was cancelled meanwhile must not be sent again; the inventory tells whether it arrived.
    """
    node = turn.state.nodes[dispatch.node]
    if turn.state.runs[dispatch.run].state is RunState.CANCELLING:
        if node.liveness is Liveness.ONLINE and node.node in turn.state.presence:
            ask_inventory(turn, node)
    elif node.liveness in PRESENT:
        _send_again(turn, dispatch)


def bus_opened(turn: Turn) -> None:
    """We hear again: the silence of before was ours, so every node gets a fresh window.

    When it was the broker that was away, nodes wait before they try again, and all of them come at once.
    """
    turn.state.bus_open = turn.state.hears = True
    silence.fresh_windows(turn, limits.RETURN_MS)
    turn.command(AskRebirth(""))
    turn.pools.room()


def set_liveness(turn: Turn, node: NodeRecord, liveness: Liveness, reason: str) -> None:
    """The node is now that; whoever waits for it looks again."""
    turn.change(c.LivenessChanged(turn.at_ms, turn.cause, node.node, liveness, reason))
    if liveness is Liveness.OFFLINE:
        silence.speaks(turn, node.node)
    if (presence := turn.state.presence.get(node.node)) is not None:
        presence.beats = 0
    # who can go nowhere else must now hear that
    turn.pools.room()
