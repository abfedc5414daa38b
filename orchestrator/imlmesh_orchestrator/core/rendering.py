"""What the templates of one unit of work become, from the state of now.

The one rule: nothing is copied to look something up; results and memory are read where they are.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from imlmesh_orchestrator.core.state import ActionRecord, RunRecord, State
from imlmesh_protocol.iml.template import Scope, render
from imlmesh_protocol.states import ActionState

#: the memory of plans that name no session
DEFAULT_SESSION = "default"


def session_of(run: RunRecord) -> str:
    """The scope of the run's memory."""
    return run.plan.session_id or DEFAULT_SESSION


def params_of(
    state: State, env: Mapping[str, str], run: RunRecord, record: ActionRecord, node: str
) -> Mapping[str, Any]:
    """The params with every template filled for this node; InputError when one cannot be."""
    if not record.templated:
        return record.params
    scope = Scope(
        _Results(run), env, node, memory=_Memory(state, session_of(run)), aliases=state.aliases
    )
    rendered: Mapping[str, Any] = render(record.params, scope)
    return rendered


class _Results(Mapping[str, Any]):
    """By action id: the result of what completed, the fault of what failed."""

    def __init__(self, run: RunRecord) -> None:
        self._run = run

    def __getitem__(self, name: str) -> Any:
        done = self._run.actions[name]
        if done.state is ActionState.COMPLETED:
            return done.result
        if done.state is ActionState.ROLLED_BACK and done.fault is None:
            return done.result
        if done.ended and done.fault is not None:
            return done.fault
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.actions)

    def __len__(self) -> int:
        return len(self._run.actions)


class _Memory(Mapping[str, Any]):
    """The values of one session by key."""

    def __init__(self, state: State, session: str) -> None:
        self._state = state
        self._session = session

    def __getitem__(self, key: str) -> Any:
        return self._state.memory[self._session, key]

    def __iter__(self) -> Iterator[str]:
        return (key for session, key in self._state.memory if session == self._session)

    def __len__(self) -> int:
        return sum(1 for _ in self)
