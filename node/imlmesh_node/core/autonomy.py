"""The side of an agent that works by permit; `permits` decides what and when.

The one rule: what a permit begins takes the way of every dispatch, from its row in the journal on.
"""

from collections.abc import Callable, Iterable

from imlmesh_node.core import changes, commands, events
from imlmesh_node.core.changes import Change
from imlmesh_node.core.commands import Command
from imlmesh_node.core.permits import Permits
from imlmesh_node.core.slots import HeldRecord, Slots
from imlmesh_node.core.state import AgentState
from imlmesh_node.core.unsettled import Unsettled
from imlmesh_protocol.errors import Fault


class Autonomy:
    """Part of an agent, which has all that this needs."""

    permits: Permits
    state: AgentState
    slots: Slots
    session: int | None
    _seen: tuple[int, int]
    _unsettled: Unsettled
    _change: Callable[[Change], None]
    _command: Callable[[Command], None]
    _refuse: Callable[[str, str], None]
    _raise_floor: Callable[[], None]
    _fail_waiting: Callable[[HeldRecord, int, Fault], None]
    _start_waiting: Callable[[int], list[str]]
    _needs_accept: Callable[[str, int], bool]
    _send_results: Callable[[Iterable[str], int], None]

    def _on_permit(self, event: events.PermitArrived) -> None:
        """Its answer is a birth, which tells what is held now."""
        place = (event.epoch, event.seq)
        if place <= self._seen:
            self._refuse("message.replayed", f"a permit of {place} after {self._seen}")
            return
        self._seen = place
        self.permits.take(event)
        self._raise_floor()
        if self.session is not None:
            self._command(commands.SendStatus("online", self.permits.held()))

    def _on_checked(self, event: events.DispatchChecked) -> None:
        arrival = self.permits.checked(event)
        if arrival is None or self.slots.stopping:
            return
        dispatch, at_ms = arrival.dispatch, event.at_ms
        self._change(changes.DispatchTaken(dispatch.id, arrival.hash, dispatch.effect, at_ms))
        held = HeldRecord(dispatch, arrival.instant, at_ms, at_ms)
        self.slots.wait(held)
        if arrival.refusal is not None:
            self._fail_waiting(held, at_ms, arrival.refusal)
        else:
            self._start_waiting(at_ms)
            self._needs_accept(dispatch.id, at_ms)

    def _on_source(self, event: events.SourceTold) -> None:
        self.permits.source_told(event, closed=self._closed)

    @property
    def _closed(self) -> bool:
        """Whether no run of a permit may begin."""
        return self.slots.stopping or self._unsettled.full

    def _go_on_alone(self, at_ms: int) -> None:
        """Begin what is due; of a run that is over the results are sent until they are settled."""
        if not self.state.permits or self.slots.stopping:
            return
        results = self.permits.look(at_ms, closed=self._closed)
        for result in results:
            self._unsettled.keep(result, at_ms)
        if results:
            self._send_results([result.dispatch for result in results], at_ms)
