"""What must hold after every event; the simulator and the property tests ask each time.

The one rule: `broken` only looks. A sentence per breach, none when all is well.
"""

from collections.abc import Iterator

from imlmesh_orchestrator.core.state import RunRecord, State
from imlmesh_protocol.states import (
    ACTION_ENDED,
    DISPATCH_LIVE,
    ActionState,
    RunState,
)


def broken(state: State) -> list[str]:
    """Every breach of an invariant in this state, as a sentence."""
    return [*_nodes(state), *_dispatches(state), *_runs(state)]


def _nodes(state: State) -> Iterator[str]:
    for node in state.nodes.values():
        for name in node.live:
            dispatch = state.dispatches.get(name)
            if dispatch is None or dispatch.node != node.node:
                yield f"{node.node} counts {name}, which is not its dispatch"
            elif dispatch.state not in DISPATCH_LIVE:
                yield f"{node.node} counts {name}, which is {dispatch.state}"


def _dispatches(state: State) -> Iterator[str]:
    for dispatch in state.dispatches.values():
        if dispatch.state not in DISPATCH_LIVE:
            continue
        record = state.runs[dispatch.run].actions[dispatch.action]
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
        still_open = sum(record.state not in ACTION_ENDED for record in run.actions.values())
        if still_open != run.open:
            yield f"{run.run} counts {run.open} open actions, there are {still_open}"
        if run.ended and still_open:
            yield f"{run.run} is {run.state} with {still_open} open actions"
        if not run.ended and not still_open:
            yield f"{run.run} has nothing left to do and is {run.state}"
        if run.state is RunState.COMPLETED:
            yield from _completed(run)
        yield from _actions(state, run)
    if active != state.active:
        yield f"{state.active} runs are counted as active, there are {active}"


def _completed(run: RunRecord) -> Iterator[str]:
    for record in run.actions.values():
        if not record.satisfied and record.state is not ActionState.SKIPPED:
            yield f"{run.run} is completed with {record.action.id} {record.state}"


def _actions(state: State, run: RunRecord) -> Iterator[str]:
    asked = {a.action for a in state.approvals.values() if a.run == run.run}
    for name, record in run.actions.items():
        place = f"{run.run}/{name}"
        if record.state is ActionState.RUNNING:
            dispatch = state.dispatches.get(record.dispatch)
            if dispatch is None or dispatch.state not in DISPATCH_LIVE:
                yield f"{place} runs without a living dispatch"
        if (record.state is ActionState.UNKNOWN) != (name in asked):
            yield f"{place} is {record.state} and has {'a' if name in asked else 'no'} question"
        if record.state is ActionState.COMPLETED or record.attempt:
            for dependency in record.action.depends_on:
                if not run.actions[dependency].satisfied:
                    yield f"{place} started before {dependency} was done"
