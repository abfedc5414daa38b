"""What speaks against a node, and when it is enough for the mesh itself to quarantine it.

The one rule: only what the node itself signed, and nobody else can have caused. Repeats and late
messages are the broker's to make, wrong signatures everybody's: those are counted and never count
against the node. (That it comes and goes may be its network's doing, but work is lost there all the
same.) No more than a few nodes are quarantined in this way: what seems to be wrong with
half of a fleet is wrong with us.
"""

from collections.abc import Iterable

from imlmesh_orchestrator.core import poison
from imlmesh_orchestrator.core.admission import change_to, is_own, prolong
from imlmesh_orchestrator.core.asking import SYSTEM
from imlmesh_orchestrator.core.events import EvidenceSeen, ResultsArrived
from imlmesh_orchestrator.core.evidence_rows import keep
from imlmesh_orchestrator.core.presence import Sightings
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CRASHED
from imlmesh_protocol.states import NOT_BELIEVED, Admission

MALFORMED, AHEAD, TAKEOVER, CRASHES = "malformed", "ahead", "takeover", "crashes"
FLAPPING = "flapping"
#: how many different sightings of a kind are enough, and what the reason says of them
KINDS = {
    MALFORMED: (limits.EVIDENCE_MALFORMED, "malformed messages that it signed"),
    AHEAD: (limits.EVIDENCE_AHEAD, "messages dated later than now"),
    TAKEOVER: (limits.EVIDENCE_TAKEOVERS, "sessions of a second machine with its keys"),
    CRASHES: (limits.EVIDENCE_CRASHES, "different plans whose driver crashed, and none completed"),
    FLAPPING: (limits.EVIDENCE_FLAPS, "returns one soon after the other"),
}


def seen(turn: Turn, event: EvidenceSeen) -> None:
    """The shell saw something that the node signed."""
    _weigh(turn, event.node, event.kind, event.text, event.mark)


def of_results(turn: Turn, event: ResultsArrived) -> None:
    """Crashes count by plan, so an action that crashes wherever it runs says nothing of a node."""
    state = turn.state
    for result in event.results:
        if result.error is not None:
            dispatch = state.dispatches.get(result.dispatch)
            if dispatch is None or (dispatch.node, dispatch.hash) != (event.node, result.hash):
                continue
            if result.error.code == CRASHED:
                run = state.runs[dispatch.run]
                record = run.units[dispatch.action]
                if poison.is_poison(record):
                    _forgive(turn, record.crashed_on, run.digest)
                else:
                    text = f"{result.dispatch}: {CRASHED}"
                    _weigh(turn, event.node, CRASHES, text, run.digest)
        elif event.node in state.sightings:
            _clear(state.sightings[event.node], CRASHES)


def of_return(turn: Turn, node: str) -> None:
    """It came back too often and is held down."""
    held_ms = turn.state.presence[node].held_until_ms - turn.at_ms
    text = f"it came back and is held down for {held_ms} ms"
    _weigh(turn, node, FLAPPING, text, f"{turn.at_ms}")


def _forgive(turn: Turn, nodes: Iterable[str], mark: str) -> None:
    """It was the action's own fault: what it did to these nodes says nothing of them."""
    for node in nodes:
        if node in turn.state.sightings:
            turn.state.sightings[node].marks.pop((CRASHES, mark), None)


def _clear(sightings: Sightings, kind: str) -> None:
    for mark in [mark for mark in sightings.marks if mark[0] == kind]:
        del sightings.marks[mark]


def _drop_old(sightings: Sightings, until_ms: int) -> None:
    """Crashes stay: they count in a row, however slowly they come."""
    for mark, at_ms in list(sightings.marks.items()):
        if at_ms <= until_ms and mark[0] != CRASHES:
            del sightings.marks[mark]


def _weigh(turn: Turn, node: str, kind: str, text: str, mark: str) -> None:
    state = turn.state
    if state.admission_of(node) is Admission.REVOKED:
        return
    sightings = state.sightings.setdefault(node, Sightings())
    marks = sightings.marks
    _drop_old(sightings, turn.at_ms - limits.EVIDENCE_MS)
    if (kind, mark) in marks:
        return
    marks[kind, mark] = turn.at_ms
    enough, words = KINDS[kind]
    count = sum(one[0] == kind for one in marks)
    record = state.admissions.get(node)
    if record is not None and record.admission in NOT_BELIEVED:
        _clear(sightings, kind)
        if is_own(record) and record.probation:
            keep(turn, node, kind, text, "prolonged")
            prolong(turn, record, f"again: {words}")
        else:
            keep(turn, node, kind, text, "counted")
    elif count < enough:
        keep(turn, node, kind, text, "counted")
    else:
        _clear(sightings, kind)
        _judge(turn, node, f"{count} {words}", (kind, text))


def _judge(turn: Turn, node: str, reason: str, last: tuple[str, str]) -> None:
    kind, text = last
    why_not = _too_many(turn)
    if why_not is not None:
        keep(turn, node, kind, f"not quarantined for {reason}: {why_not}", "alarm")
        return
    keep(turn, node, kind, text, "quarantined")
    turn.state.quarantined_ms.append(turn.at_ms)
    until_ms = turn.at_ms + limits.QUARANTINE_MS
    told = f"{reason}, the last: {text}"[: limits.REASON_CHARS]
    change_to(turn, node, Admission.QUARANTINED, told, SYSTEM, until_ms)


def _too_many(turn: Turn) -> str | None:
    """Why the mesh quarantines nobody else by itself; of a tiny fleet one node may be."""
    state = turn.state
    fleet = sum(state.admission_of(node) is not Admission.REVOKED for node in state.nodes)
    own = sum(map(is_own, state.admissions.values()))
    if own >= max(1, fleet * limits.QUARANTINE_FLEET_PERCENT // 100):
        return f"{own} of {fleet} nodes are in quarantine already"
    recent = state.quarantined_ms
    while recent and recent[0] <= turn.at_ms - limits.QUARANTINES_MS:
        recent.popleft()
    if len(recent) >= limits.QUARANTINES:
        return f"{len(recent)} nodes were quarantined within half an hour"
    return None
