"""Whether a node may get work: what people decide, how quarantine ends, what it ends.

The one rule: the leases of a node that is not believed are over, in the same commit: none of its
dispatches is live, so nothing that it says can count. Repeatable work goes elsewhere or waits for
the node's release, whatever else may have happened becomes a person's question, as after a loss.
Deliberately absent: what speaks against a node; `evidence` knows. The broker; `access` tells it.
"""

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import flapping, permits
from imlmesh_orchestrator.core.asking import SYSTEM
from imlmesh_orchestrator.core.commands import Refuse, Reply, SendAdmission
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.dispatching import each_live, give_up
from imlmesh_orchestrator.core.events import AdmissionAsked
from imlmesh_orchestrator.core.liveness import ask_inventory, set_liveness
from imlmesh_orchestrator.core.state import AdmissionRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits, states
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import NOT_BELIEVED, Admission, Liveness

_ALIKE = frozenset({Admission.OPEN, Admission.REVOKED})


def ask(turn: Turn, event: AdmissionAsked) -> None:
    """A person decides. What already is so is not decided again, so a command may be repeated."""
    if event.node not in turn.state.nodes and event.node not in turn.state.enrolled:
        turn.command(Refuse(event.cause, Fault("node.not_found", f"no node {event.node}")))
        return
    before, wanted = turn.state.admission_of(event.node), event.admission
    if wanted is not before or before not in _ALIKE:
        if wanted not in states.ADMISSION[before]:
            text = f"{event.node} is {before} and cannot become {wanted}"
            turn.command(Refuse(event.cause, Fault("node.admission", text)))
            return
        until_ms = turn.at_ms + event.for_ms if event.for_ms else 0
        change_to(turn, event.node, wanted, event.reason, event.by, until_ms)
    if wanted is Admission.OPEN and event.node in turn.state.presence:
        flapping.forgive(turn.state.presence[event.node])  # also one that is open, and held down
    turn.command(Reply(event.cause, str(wanted)))


def change_to(
    turn: Turn, node: str, new: Admission, reason: str, by: str, until_ms: int = 0
) -> None:
    """The node is now that, with all that follows for its work and for itself."""
    before = turn.state.admission_of(node)
    turn.change(a.AdmissionChanged(turn.at_ms, turn.cause, node, new, reason, by, until_ms))
    if until_ms:
        turn.deadlines.add(until_ms, Deadline.ADMISSION, node)
    if new is Admission.QUARANTINED:
        turn.command(SendAdmission(node, "quarantine"))
    elif before is Admission.QUARANTINED and new is Admission.OPEN:
        turn.command(SendAdmission(node, "release"))
        if node in turn.state.presence:
            flapping.forgive(turn.state.presence[node])
    known = turn.state.nodes.get(node)
    if known is not None and new in NOT_BELIEVED:
        fault = Fault(f"node.{new}", f"{known.alias} is {new}: {reason}")
        each_live(turn, known, lambda dispatch: give_up(turn, dispatch, fault))
    # before it is shut out: being cut off is what starts runs by permit
    permits.admission_changed(turn, node, new)
    if new is Admission.REVOKED:
        _forget(turn, node)
    turn.pools.room()


def _forget(turn: Turn, node: str) -> None:
    """A removed node is nowhere any more, so that no group waits for it or fails because of it."""
    state = turn.state
    for group, nodes in list(state.groups.items()):
        if node in nodes:
            rest = tuple(each for each in nodes if each != node)
            turn.change(c.GroupChanged(turn.at_ms, turn.cause, group, rest))
    known = state.nodes.get(node)
    if known is not None and known.liveness is not Liveness.OFFLINE:
        set_liveness(turn, known, Liveness.OFFLINE, "removed from the mesh")
    state.sightings.pop(node, None)


def remind(turn: Turn, node: str) -> None:
    """A session began: whoever is in quarantine hears so, whatever its journal lost."""
    if turn.state.admission_of(node) is Admission.QUARANTINED:
        turn.command(SendAdmission(node, "quarantine"))


def restarted(turn: Turn) -> None:
    """What a replay does not fill: deadlines, and how many the mesh quarantined of late."""
    for record in turn.state.admissions.values():
        if record.until_ms:
            turn.deadlines.add(record.until_ms, Deadline.ADMISSION, record.node)
        if is_own(record) and record.changed_ms > turn.at_ms - limits.QUARANTINES_MS:
            turn.state.quarantined_ms.append(record.changed_ms)


def is_own(record: AdmissionRecord) -> bool:
    """Whether the mesh itself quarantined this node; it may then also release it."""
    return record.admission is Admission.QUARANTINED and record.by == SYSTEM


def due(turn: Turn, node: str) -> None:
    """Its time is over: what a person limited ends, what the mesh decided goes on probation."""
    record = turn.state.admissions.get(node)
    if record is None or not 0 < record.until_ms <= turn.at_ms or record.probation:
        return
    if is_own(record):
        record.probation = True
        _probe(turn, record)
    else:
        reason = f"the time that {record.by} gave it is over"
        change_to(turn, node, Admission.OPEN, reason, SYSTEM)


def _probe(turn: Turn, record: AdmissionRecord) -> None:
    """One question that only the holder of the node's keys can answer, in its live session."""
    node = turn.state.nodes.get(record.node)
    here = node is not None and node.node in turn.state.presence
    if node is None or not here or node.liveness is not Liveness.ONLINE:
        prolong(turn, record, "it was not here for its probes")
        return
    record.probing = True
    ask_inventory(turn, node)
    turn.deadlines.add(turn.at_ms + limits.PROBE_EVERY_MS, Deadline.PROBE, record.node)


def probe_due(turn: Turn, node: str) -> None:
    """The next probe, unless the last one is still unanswered."""
    record = turn.state.admissions.get(node)
    if record is None or not record.probation:
        return
    if record.probing:
        prolong(turn, record, "a probe was not answered")
    else:
        _probe(turn, record)


def answered(turn: Turn, node: str) -> None:
    """The node answered what it was asked; on probation that counts."""
    record = turn.state.admissions.get(node)
    if record is None or not record.probing:
        return
    record.probing = False
    record.probes += 1
    if record.probes >= limits.PROBES:
        reason = f"answered {limits.PROBES} probes after: {record.reason}"
        change_to(turn, node, Admission.OPEN, reason[: limits.REASON_CHARS], SYSTEM)


def prolong(turn: Turn, record: AdmissionRecord, why: str) -> None:
    """It did not hold out on probation: twice as long as the last time."""
    span_ms = min(2 * (record.until_ms - record.changed_ms), limits.QUARANTINE_LONGEST_MS)
    reason = record.reason.partition(" (prolonged: ")[0]
    told = f"{reason[: limits.REASON_CHARS - 100]} (prolonged: {why})"
    change_to(turn, record.node, record.admission, told, SYSTEM, turn.at_ms + span_ms)
