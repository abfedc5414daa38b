"""What the core asked for becomes messages: merged per node, sealed while the commit runs.

The one rule: messages leave in exactly the order in which they were sealed, since receivers
refuse a lower seq than they have seen; whatever is sealed during a commit waits behind it.
Deliberately absent: sending again; the core does that from what it knows.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.stream import Stream
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, InputError, LinkError, MeshError, StoreError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import Sealer
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.link.base import Link, Will

log = logging.getLogger(__name__)

EVERYBODY = "*"


class Outbound:
    """The performer of the orchestrator's engine, and the only place that seals and publishes."""

    def __init__(
        self, mesh: str, me: str, sealer: Sealer, link: Link, clock: Clock, stream: Stream
    ) -> None:
        self._mesh = mesh
        self._me = me
        self._sealer = sealer
        self._link = link
        self._clock = clock
        self._stream = stream
        self._sealed: deque[tuple[str, bytes, bool]] = deque()
        self._answers: list[k.Reply | k.Refuse] = []
        self._requests: dict[str, asyncio.Future[Any]] = {}
        #: messages that could not be handed to the link
        self.unsent = 0

    def expect(self, cause: str) -> asyncio.Future[Any]:
        """The future answer to the request that is posted as `cause`; MeshError when refused."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._requests[cause] = future
        return future

    def early(self, commands: Sequence[k.Command]) -> Sequence[k.Command]:
        return commands

    def prepare(self, commands: Sequence[k.Command]) -> None:
        dispatches: dict[str, list[bytes]] = {}
        acks: dict[str, tuple[int | None, list[str]]] = {}
        rest: list[k.Command] = []
        for command in commands:
            if type(command) is k.SendDispatch:
                dispatches.setdefault(command.node, []).append(command.bin)
            elif type(command) is k.SendAck:
                beat, settled = acks.get(command.node, (None, []))
                settled.extend(command.settled)
                acks[command.node] = (command.beat if beat is None else beat, settled)
                if command.beat is not None and beat is not None:
                    acks[command.node] = (max(beat, command.beat), settled)
            elif isinstance(command, k.Reply | k.Refuse):
                self._answers.append(command)
            else:
                rest.append(command)
        for node, bins in dispatches.items():
            self._seal_dispatches(node, bins)
        for node, (beat, settled) in acks.items():
            self._seal_ack(node, beat, settled)
        for command in rest:
            self._seal_rare(command)

    def release(self) -> None:
        while self._sealed:
            self._publish(*self._sealed.popleft())
        answers, self._answers = self._answers, []
        for answer in answers:
            future = self._requests.pop(answer.cause, None)
            if future is None or future.done():
                continue
            if isinstance(answer, k.Reply):
                future.set_result(answer.value)
            else:
                future.set_exception(_error_of(answer.fault))

    def send(self, node: str, kind: Kind, fields: dict[str, Any]) -> None:
        """A message that rests on no commit; it still keeps its place in the order."""
        self._seal(topics.to_node(self._mesh, node, kind), kind, node, fields)
        self._release_unless_held()

    def announce(self, state: str) -> None:
        """Our own status, retained: online or offline."""
        held = bool(self._sealed)
        self._seal_status(state)
        if not held:
            self._publish(*self._sealed.popleft())

    def will(self) -> Will:
        """What the broker says when we vanish."""
        topic = topics.orchestrator_status(self._mesh, self._me)
        payload = self._sealer.seal(
            Kind.STATUS, EVERYBODY, {"state": "gone"}, self._clock.now_ms(), 0
        )
        return Will(topic, payload)

    def fail_all(self, error: MeshError) -> None:
        """The engine ended: nobody will answer."""
        for future in self._requests.values():
            if not future.done():
                future.set_exception(error)
        self._requests.clear()
        self._sealed.clear()
