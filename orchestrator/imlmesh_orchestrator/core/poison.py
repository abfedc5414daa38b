"""An action whose driver crashes: tried elsewhere, and in the end called poison.

The one rule: one crash may be the node's fault, so what may be repeated goes to nodes where it has
not crashed yet; on so many distinct ones it is the action's own, and nobody else gets it. What may
not be repeated is given to nobody because of a crash: its effect may have happened. Deliberately
absent: what crashes say of nodes; `evidence` knows.
"""

from imlmesh_orchestrator.core.placement import barred, candidates, pool_key, why_not
from imlmesh_orchestrator.core.state import ActionRecord, DispatchRecord, RunRecord, State
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import PRESENT


def verdict(
    state: State, record: ActionRecord, dispatch: DispatchRecord, fault: Fault
) -> Fault | None:
    """The fault of an action that crashed on one node too many, with this dispatch; else None."""
    nodes = _nodes(record, dispatch)
    if len(nodes) < limits.POISON_NODES:
        return None
    names = ", ".join(state.alias_of(node) for node in nodes)
    return Fault("action.poison", f"its driver crashed on {names}; the last: {fault.message}")


def may_move(state: State, run: RunRecord, record: ActionRecord, dispatch: DispatchRecord) -> bool:
    """Whether it goes to a node where it has not crashed yet; there must be one."""
    if not run.starting or not dispatch.effect.repeatable:
        return False
    tried = {*_nodes(record, dispatch), *record.refused_by}
    key = pool_key(run, record)
    return any(
        node.node not in tried
        and node.liveness in PRESENT
        and why_not(node, *key[:3]) is None
        and barred(state, node.node) is None
        for node in candidates(state, key)
    )


def is_poison(record: ActionRecord) -> bool:
    return record.fault is not None and record.fault.code == "action.poison"


def _nodes(record: ActionRecord, dispatch: DispatchRecord) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*record.crashed_on, dispatch.node)))
