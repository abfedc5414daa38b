"""What must hold after every event; the simulator and the property tests ask each time.

The one rule: `broken` only looks. A sentence per breach, none when all is well.
"""

from collections.abc import Iterator

from imlmesh_orchestrator.core.state import ActionRecord, RunRecord, State
from imlmesh_protocol.states import (
    ACTION_ENDED,
    DISPATCH_LIVE,
    NOT_BELIEVED,
    ActionState,
    RunState,
)

_ASKED = frozenset({ActionState.UNKNOWN, ActionState.AWAITING_APPROVAL})


def broken(state: State) -> list[str]:
    """Every breach of an invariant in this state, as a sentence."""
    return [*_nodes(state), *_admissions(state), *_dispatches(state), *_runs(state)]


def _nodes(state: State) -> Iterator[str]:
    for node in state.nodes.values():
        for name in node.live:
            dispatch = state.dispatches.get(name)
            if dispatch is None or dispatch.node != node.node:
                yield f"{node.node} counts {name}, which is not its dispatch"
            elif dispatch.state not in DISPATCH_LIVE:
                yield f"{node.node} counts {name}, which is {dispatch.state}"


def _admissions(state: State) -> Iterator[str]:
    for node, record in state.admissions.items():
        known = state.nodes.get(node)
        if known is not None and known.live and record.admission in NOT_BELIEVED:
            yield f"{node} is {record.admission} and holds {', '.join(known.live)}"


def _dispatches(state: State) -> Iterator[str]:
    for dispatch in state.dispatches.values():
        if dispatch.state not in DISPATCH_LIVE:
            continue
        record = state.runs[dispatch.run].units[dispatch.action]
        if record.dispatch != dispatch.dispatch:
            yield f"{dispatch.dispatch} lives beside {record.dispatch}"
        if record.state is not ActionState.RUNNING:
            yield f"{dispatch.dispatch} lives while its action is {record.state}"
        if dispatch.dispatch not in state.nodes[dispatch.node].live:
            yield f"{dispatch.dispatch} lives but {dispatch.node} does not count it"


def _runs(state: State) -> Iterator[str]:
    active = 0
    for run in state.runs.values():
        active += not run.ended
        still_open = sum(
            record.state not in ACTION_ENDED
            for record in run.actions.values()
            if record.key not in run.compensation_only
        )
        if still_open != run.open:
            yield f"{run.run} counts {run.open} open actions, there are {still_open}"
        left = [key for key, unit in run.units.items() if unit.state not in ACTION_ENDED]
        if run.ended and left:
            yield f"{run.run} is {run.state} while {', '.join(left)} has not ended"
        if not run.ended and not set(left) - run.compensation_only:
            yield f"{run.run} has nothing left to do and is {run.state}"
        if run.state is RunState.COMPLETED:
            yield from _completed(run)
        yield from _units(state, run)
    if active != state.active:
        yield f"{state.active} runs are counted as active, there are {active}"


def _completed(run: RunRecord) -> Iterator[str]:
    for record in run.actions.values():
        if not record.satisfied and record.state is not ActionState.SKIPPED:
            yield f"{run.run} is completed with {record.key} {record.state}"


def _units(state: State, run: RunRecord) -> Iterator[str]:
    asked = {a.action for a in state.approvals.values() if a.run == run.run}
    for key, record in run.units.items():
        place = f"{run.run}/{key}"
        if record.state is ActionState.RUNNING and record.members is None:
            dispatch = state.dispatches.get(record.dispatch)
            if dispatch is None or dispatch.state not in DISPATCH_LIVE:
                yield f"{place} runs without a living dispatch"
        if (record.state in _ASKED) != (key in asked):
            yield f"{place} is {record.state} and has {'a' if key in asked else 'no'} question"
        started = record.attempt > 0
        if started and not record.undoes and key not in run.compensation_only:
            for dependency in record.action.depends_on:
                if not _let_pass(run.actions[dependency]):
                    yield f"{place} started before {dependency} was done"
        if record.members is not None and record.ended:
            for member in record.members.values():
                if not member.ended:
                    yield f"{place} ended before {member.key}"


def _let_pass(record: ActionRecord) -> bool:
    return record.satisfied or record.state is ActionState.ROLLED_BACK
