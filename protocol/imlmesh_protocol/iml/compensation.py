"""Which actions of a plan only undo others, and whether it is clear what undoes what.

The one rule: an action that any `rollback.action` names is compensation-only, whatever else it
says of itself. Deliberately absent: the order of undoing; the scheduler makes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.fields import name_of
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.plan import Plan


def compensation_only(plan: Plan) -> frozenset[str]:
    """The ids of the actions that run only to undo another one: in no wave, waiting for nobody."""
    return frozenset([action.rollback.action for action in plan.actions if action.rollback])


def check_rollbacks(
    actions: Sequence[Any], index_of: Mapping[str, int], findings: Findings
) -> dict[int, int]:
    """Index of each action with a rollback → index of the one that undoes it.

    Works on the plan as written; plan.unknown_rollback, plan.rollback_cycle.
    """
    undone_by: dict[int, int] = {}
    for index, action in enumerate(actions):
        name = rollback_of(action).get("action")
        if not isinstance(name, str):
            continue
        if name in index_of:
            undone_by[index] = index_of[name]
            continue
        near = findings.did_you_mean(name, index_of)
        message = f'{name_of(actions, index)} is undone by "{name}", which is no action of this plan{near}'
        pointer = pointer_of("actions", index, "rollback", "action")
        findings.error("plan.unknown_rollback", pointer, message)
    _check_cycles(actions, undone_by, findings)
    return undone_by


def rollback_of(action: Any) -> Mapping[str, Any]:
    """The rollback of an action as written; empty when there is none or it is no object."""
    rollback = action.get("rollback") if isinstance(action, dict) else None
    return rollback if isinstance(rollback, dict) else {}


def _check_cycles(actions: Sequence[Any], undone_by: dict[int, int], findings: Findings) -> None:
    done: set[int] = set()
    for start in undone_by:
        walked: dict[int, None] = {}
        at: int | None = start
        while at is not None and at not in done and at not in walked:
            walked[at] = None
            at = undone_by.get(at)
        done.update(walked)
        if at is None or at not in walked:
            continue
        path = list(walked)
        cycle = path[path.index(at) :]
        turn = cycle.index(min(cycle))
        cycle = cycle[turn:] + cycle[:turn]
        names = " → ".join(str(actions[index].get("id")) for index in (*cycle, cycle[0]))
        pointer = pointer_of("actions", cycle[0], "rollback", "action")
        findings.error("plan.rollback_cycle", pointer, f"actions undo each other: {names}")
