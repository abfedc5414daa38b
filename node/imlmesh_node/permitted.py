"""Permits around the core: their signatures, the guard's word on what they begin, what sources tell.

The one rule: a permit is believed by a signature alone, when it comes and again at every start.
Deliberately absent: when one runs; the core decides that.
"""

from collections.abc import Callable, Mapping
from typing import Any

from imlmesh_node.config import NodeConfig
from imlmesh_node.core.commands import CheckDispatch
from imlmesh_node.core.events import Arrival, DispatchChecked, Event, PermitArrived, SourceTold
from imlmesh_node.core.permits import Permits
from imlmesh_node.core.state import HeldPermitRecord
from imlmesh_node.executor import Executor
from imlmesh_node.guard import Guard
from imlmesh_node.shell import Performer
from imlmesh_node.streams import EventStreams
from imlmesh_protocol.errors import Fault, MeshError, ProtocolError
from imlmesh_protocol.permits import Permit
from imlmesh_protocol.wire.documents import FindKey
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.permits import read_permit
from imlmesh_runtime.clock import Clock


class Permitted:
    """`find_key` finds plan keys; `post` takes events; `clock` is that of the core."""

    def __init__(
        self,
        config: NodeConfig,
        find_key: FindKey,
        guard: Guard,
        executor: Executor,
        post: Callable[[Event], None],
        clock: Clock,
    ) -> None:
        self._config = config
        self._find_key = find_key
        self._guard = guard
        self._executor = executor
        self._post = post
        self._clock = clock
        self._hears: Callable[[str], bool] = lambda source: False

    def believed(self, records: Mapping[str, HeldPermitRecord]) -> Mapping[str, HeldPermitRecord]:
        """Those of the journal, each with what speaks against it now."""
        for record in records.values():
            try:
                read_permit(record.document, self._find_key)
            except MeshError as exc:
                record.refusal = Fault("permit.untrusted", f"{record.permit.id}: {exc.message}")
        return records

    def serve(self, permits: Permits, performer: Performer, streams: EventStreams) -> None:
        """Answer the core's questions, and tell it what sources tell, where a permit wants to know."""
        self._hears = permits.hears
        performer.check = self._check
        streams.heard = self._source_told

    def take(self, message: Message) -> Event | None:
        """The fields of a command `permit`; TrustError or ProtocolError for one that is not for us."""
        permits: tuple[tuple[Permit, bytes], ...] = ()
        if "doc" in message.fields:
            document = message.fields["doc"]
            permit = read_permit(document, self._find_key)
            if (permit.mesh, permit.node) != (self._config.mesh, self._config.id):
                text = f"a permit of {permit.node[:80]} on {permit.mesh[:80]}"
                raise ProtocolError("message.audience", text)
            permits = ((permit, document),)
        drop = tuple(message.fields.get("drop", ()))
        at_ms = self._clock.now_ms()
        return PermitArrived(at_ms, permits, drop, message.term, message.seq, message.id)

    def _check(self, command: CheckDispatch) -> None:
        """The guard's word, as of a delegate's dispatch."""
        dispatch, refusal = self._guard.check(command.dispatch)
        instant = self._executor.ends_at_once(dispatch.module, dispatch.action)
        arrival = Arrival(dispatch, command.hash, refusal, refusal is None and instant)
        self._post(DispatchChecked(self._clock.now_ms(), arrival))

    def _source_told(self, name: str, values: Mapping[str, Any]) -> None:
        """A source saw something; few wait for that."""
        if self._hears(name):
            self._post(SourceTold(self._clock.now_ms(), name, values))
