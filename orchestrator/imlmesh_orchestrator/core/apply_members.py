"""Changes of members, and of what a run keeps of the one that it retries, become state.

The one rule is that of `apply`, which alone calls this: nothing is decided here. Kept are actions,
and members of actions that are done again on their other nodes.
"""

from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.apply_runs import end_unit
from imlmesh_orchestrator.core.state import ActionRecord, RunRecord, State
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import ActionState


def _run_retried(state: State, change: c.RunRetried) -> None:
    run = state.runs[change.run]
    run.again, run.kept = change.again, change.kept
    for key, (nodes, result) in change.kept.items():
        record = run.actions.get(key)
        if record is None:
            continue  # a member, which there is once its action's nodes are fixed
        if record.member_wise:
            _fix_members(run, record, nodes)
            for member in (record.members or {}).values():
                _keep(run, member, member.node, result.get(member.node))
                end_unit(run, member, ActionState.COMPLETED, None)
        _keep(run, record, nodes[0] if nodes else "", result)
        end_unit(run, record, ActionState.COMPLETED, None)
    fault = Fault("action.not_needed", f"left alone by the retry of {change.of}")
    for name in change.left:
        end_unit(run, run.actions[name], ActionState.SKIPPED, fault)


def _members_fixed(state: State, change: c.MembersFixed) -> None:
    run = state.runs[change.run]
    record = run.actions[change.action]
    _fix_members(run, record, change.nodes)
    for key, member in (record.members or {}).items():
        if key in run.kept:
            _keep(run, member, member.node, run.kept[key][1])


def _keep(run: RunRecord, unit: ActionRecord, node: str, result: Any) -> None:
    """What it did in the run before; whether that is its end is another change."""
    unit.worked_on = node
    unit.result = result if unit.action.id in run.needed else None


def _fix_members(run: RunRecord, record: ActionRecord, nodes: tuple[str, ...]) -> None:
    record.members = {}
    for node in nodes:
        key = f"{record.key}@{node}"
        member = ActionRecord(
            key,
            record.action,
            record.call,
            record.gate,
            record.params,
            record.templated,
            (),
            node=node,
            parent=record,
        )
        record.members[key] = member
        run.add_unit(key, member)


APPLY: dict[type[c.Change], Callable[[State, Any], None]] = {
    c.RunRetried: _run_retried,
    c.MembersFixed: _members_fixed,
}
