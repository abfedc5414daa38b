"""What is undone when an action failed with on_error rollback, in which order, and by what.

The one rule: what worked last is undone first, on the node that did the work. Pure: `flow` acts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imlmesh_orchestrator.core.state import ActionRecord, RunRecord, State
from imlmesh_protocol.errors import Fault, InputError
from imlmesh_protocol.iml.template import render_undo
from imlmesh_protocol.states import ActionState
from imlmesh_protocol.wire.dispatches import decode_dispatch


@dataclass(slots=True)
class Undoing:
    """One compensation: as a row of `CompensationsPlanned`, and why it cannot run, if so."""

    key: str
    undone: str
    node: str
    action: str
    params: Mapping[str, Any] | None
    fault: Fault | None = None

    @property
    def row(self) -> tuple[str, str, str, str, Mapping[str, Any] | None]:
        return self.key, self.undone, self.node, self.action, self.params


def undoings(state: State, run: RunRecord) -> list[Undoing]:
    """Everything that the failures of this run want undone, in order."""
    found: dict[str, ActionRecord] = {}
    for name in run.rollbacks:
        origin = run.actions[name]
        for unit in _units(origin):
            if unit.worked_on:
                found[unit.key] = unit
        for ancestor in _ancestors(run, origin):
            for unit in _units(ancestor):
                if ancestor.state is unit.state is ActionState.COMPLETED:
                    found[unit.key] = unit
    latest_first = sorted(found.values(), key=lambda unit: -unit.order)
    undone = (_undoing(state, unit) for unit in latest_first)
    return [one for one in undone if one is not None]


def _units(record: ActionRecord) -> list[ActionRecord]:
    return [record] if record.members is None else list(record.members.values())


def _ancestors(run: RunRecord, record: ActionRecord) -> Iterator[ActionRecord]:
    seen: set[str] = set()
    todo = list(record.action.depends_on)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += run.actions[name].action.depends_on
            yield run.actions[name]


def _undoing(state: State, unit: ActionRecord) -> Undoing | None:
    """By the plan's word, else by the driver's; None when nothing need be undone."""
    action, node = unit.action, unit.worked_on
    key = f"{action.id}~{node}"
    if action.rollback is not None:
        return Undoing(key, unit.key, node, action.rollback.action, None)
    spec = state.nodes[node].manifest.find(action.module, action.action)
    if spec is None:
        text = f"the node no longer offers {action.module}.{action.action}"
        fault = Fault("action.unknown", text)
        return Undoing(key, unit.key, node, action.action, {}, fault)
    if spec.undo is None:
        return None
    dispatch = state.dispatches.get(unit.dispatch)
    result = unit.result if unit.state is ActionState.COMPLETED else None
    try:
        if dispatch is None and unit.templated:
            raise InputError("template.no_result", "what the run before sent is not known here")
        params = decode_dispatch(dispatch.bin).params if dispatch else action.params
        undo = render_undo(spec.undo.params, params, result)
    except InputError as exc:
        fault = Fault(exc.code, exc.message)
        return Undoing(key, unit.key, node, spec.undo.action, {}, fault)
    return Undoing(key, unit.key, node, spec.undo.action, undo)
