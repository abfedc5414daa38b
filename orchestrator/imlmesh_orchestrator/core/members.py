"""Actions that several nodes do, each its own member: who, how many at a time, and the verdict.

The one rule: pure questions about a parent and its members; `flow` acts on the answers.
"""

from imlmesh_orchestrator.core.placement import matching
from imlmesh_orchestrator.core.state import ActionRecord, RunRecord, State
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import ActionState

_BUSY = frozenset(
    {
        ActionState.PENDING,
        ActionState.WAITING,
        ActionState.AWAITING_APPROVAL,
        ActionState.RUNNING,
    }
)
_STARTABLE = frozenset({ActionState.PENDING, ActionState.WAITING})


def nodes_of(state: State, run: RunRecord, record: ActionRecord) -> tuple[str, ...]:
    """Ids of the nodes that the action means now, sorted."""
    return tuple(sorted(node.node for node in matching(state, run, record)))


def needed(record: ActionRecord) -> int:
    """How many members must complete."""
    count = len(record.members or ())
    if record.action.quorum != "all":
        return record.action.quorum
    rolling = record.action.rolling
    if record.action.target_mode == "rolling" and rolling is not None:
        return max(1, count - rolling.max_failures)
    return count


def overdrawn(record: ActionRecord) -> bool:
    """Rolling: whether more members failed than may."""
    if record.action.target_mode != "rolling":
        return False
    may_fail = record.action.rolling.max_failures if record.action.rolling else 0
    return _count(record, ActionState.FAILED) > may_fail


def startable(record: ActionRecord) -> list[ActionRecord]:
    """Members whose turn it is and that have no dispatch: all, or those of the current batch."""
    members = list((record.members or {}).values())
    if record.action.target_mode == "rolling":
        size = record.action.rolling.batch_size if record.action.rolling else 1
        batches = [members[first : first + size] for first in range(0, len(members), size)]
        members = next((b for b in batches if not all(m.ended for m in b)), [])
    return [member for member in members if member.state in _STARTABLE]


def suffice(record: ActionRecord) -> bool:
    """Whether enough members have completed, as what a retry keeps may before anything begins."""
    done = record.members is not None and _count(record, ActionState.COMPLETED)
    return bool(done) and done >= needed(record)


def verdict(record: ActionRecord) -> Fault | bool | None:
    """True: completed; a fault: failed; None: not yet decided."""
    members = (record.members or {}).values()
    if any(member.state in _BUSY for member in members):
        return None
    done, enough = _count(record, ActionState.COMPLETED), needed(record)
    if done >= enough:
        return True
    if _count(record, ActionState.UNKNOWN):
        return None
    details = {m.node: m.fault.code for m in members if m.fault is not None}
    message = f"{done} of {len(members)} nodes completed; {enough} needed"
    return Fault("action.partial", message, details)


def _count(record: ActionRecord, state: ActionState) -> int:
    return sum(member.state is state for member in (record.members or {}).values())
