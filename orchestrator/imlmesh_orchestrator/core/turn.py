"""The workbench of one event: what was decided so far, and what shall be done.

The one rule: `change` applies at once, so that later decisions of the same event see it.
"""

from collections import deque
from collections.abc import Mapping

from imlmesh_orchestrator.core.apply import APPLY
from imlmesh_orchestrator.core.changes import Change
from imlmesh_orchestrator.core.commands import Command
from imlmesh_orchestrator.core.deadlines import Deadlines
from imlmesh_orchestrator.core.placement import Pools
from imlmesh_orchestrator.core.state import ActionRecord, RunRecord, State


class Turn:
    """State, time and cause of one event, with its changes and commands as they gather."""

    __slots__ = (
        "at_ms",
        "cause",
        "changes",
        "commands",
        "deadlines",
        "env",
        "four_eyes",
        "pools",
        "ready",
        "sent",
        "state",
    )

    def __init__(
        self,
        state: State,
        deadlines: Deadlines,
        pools: Pools,
        env: Mapping[str, str],
        four_eyes: bool,
        at_ms: int,
        cause: str,
    ) -> None:
        self.state = state
        self.deadlines = deadlines
        self.pools = pools
        self.env = env
        self.four_eyes = four_eyes
        self.at_ms = at_ms
        self.cause = cause
        self.changes: list[Change] = []
        self.commands: list[Command] = []
        #: actions that may have become ready, and runs (without any) whose next undoing may begin:
        #: a queue, since a chain of failures may be longer than the stack
        self.ready: deque[tuple[RunRecord, list[ActionRecord] | None]] = deque()
        #: dispatches that went out in this turn and must be accepted in time
        self.sent: list[str] = []

    def change(self, change: Change) -> None:
        APPLY[type(change)](self.state, change)
        self.changes.append(change)

    def command(self, command: Command) -> None:
        self.commands.append(command)
