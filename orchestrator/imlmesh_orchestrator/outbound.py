"""What the core asked for becomes messages: merged per node, sealed while the commit runs.

The one rule: messages leave in exactly the order in which they were sealed, since receivers
refuse a lower seq than they have seen; whatever is sealed during a commit waits behind it.
Deliberately absent: sending again; the core does that from what it knows.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.stream import Stream
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES, Fault, InputError, LinkError, MeshError, StoreError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import EVERYBODY, Sealer
from imlmesh_protocol.wire.permits import PERMIT, sign_permit
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.link.base import Link, Will

log = logging.getLogger(__name__)


class Stored(Protocol):
    """What the performer asks of the changes that are stored; `store/lifecycle` is it."""

    #: the change after which everything comes that the last commit held
    before_seq: int

    def tell(self) -> None:
        """Let those who watch hear of what was stored."""
        ...


class Outbound:
    """The performer of the orchestrator's engine, and the only place that seals and publishes."""

    def __init__(
        self,
        mesh: str,
        me: str,
        sealer: Sealer,
        link: Link,
        clock: Clock,
        stream: Stream,
        stored: Stored,
    ) -> None:
        self._mesh = mesh
        self._me = me
        self._sealer = sealer
        self._link = link
        self._clock = clock
        self._stream = stream
        self._stored = stored
        self._sealed: deque[tuple[str, bytes, bool]] = deque()
        #: acks by node: of the commit under way, and of those before it
        self._decided: dict[str, k.SendAck] = {}
        self._acks: dict[str, k.SendAck] = {}
        self._ack_timer: asyncio.TimerHandle | None = None
        self._answers: list[k.Reply | k.Refuse] = []
        self._requests: dict[str, asyncio.Future[tuple[Any, int]]] = {}
        self._rare: dict[type[k.Command], Callable[[Any], None]] = {
            k.SendCancel: self._cancel,
            k.SendAdmission: self._admission,
            k.SendPermit: self._permit,
            k.DropPermits: self._drop_permits,
            k.AskInventory: self._inventory,
            k.AskRebirth: self._rebirth,
            k.Reply: self._answer,
            k.Refuse: self._answer,
            k.ReportRefusal: self._report,
        }
        #: messages that could not be handed to the link
        self.unsent = 0

    def expect(self, cause: str) -> asyncio.Future[tuple[Any, int]]:
        """Answers the request that is posted as `cause`: (value, seq), or a MeshError."""
        future: asyncio.Future[tuple[Any, int]] = asyncio.get_running_loop().create_future()
        self._requests[cause] = future
        return future

    def forget(self, cause: str) -> None:
        """Nobody waits for that answer any more."""
        self._requests.pop(cause, None)

    def early(self, commands: Sequence[k.Command]) -> Sequence[k.Command]:
        return commands

    def ahead(self, commands: Sequence[k.Command]) -> Sequence[k.Command]:
        return commands

    def prepare(self, commands: Sequence[k.Command]) -> None:
        dispatches: dict[str, list[bytes]] = {}
        rest: list[k.Command] = []
        for command in commands:
            if type(command) is k.SendDispatch:
                dispatches.setdefault(command.node, []).append(command.bin)
            elif type(command) is k.SendAck:
                _gather(self._decided, command)
            else:
                rest.append(command)
        for node, bins in dispatches.items():
            for batch in _batches(bins):
                self._seal_to(node, Kind.DELEGATE, {"dispatches": batch})
        for command in rest:
            self._rare[type(command)](command)

    def release(self) -> None:
        self._publish_sealed()
        if self._decided:
            self._settle()
        answers, self._answers = self._answers, []
        for answer in answers:
            future = self._requests.pop(answer.cause, None)
            if future is None or future.done():
                continue
            if isinstance(answer, k.Reply):
                future.set_result((answer.value, self._stored.before_seq))
            else:
                future.set_exception(_error_of(answer.fault))
        # who watches waits until what was decided is on its way
        self._stored.tell()

    def _settle(self) -> None:
        """Acks wait a moment for others, unless a heartbeat wants its answer or many gathered."""
        decided, self._decided = self._decided, {}
        for ack in decided.values():
            whole = _gather(self._acks, ack)
            if whole.beat is not None or len(whole.settled) >= limits.ACK_GATHERED:
                self._send_ack(self._acks.pop(ack.node))
        if self._acks and self._ack_timer is None:
            wait_s = limits.ACK_WAIT_MS / 1_000
            self._ack_timer = asyncio.get_running_loop().call_later(wait_s, self._send_acks)

    def _send_acks(self) -> None:
        self._ack_timer = None
        acks, self._acks = self._acks, {}
        for ack in acks.values():
            self._send_ack(ack)

    def _send_ack(self, ack: k.SendAck) -> None:
        for start in range(0, max(1, len(ack.settled)), limits.ACK_SETTLED):
            settled = list(ack.settled[start : start + limits.ACK_SETTLED])
            self.send(ack.node, Kind.ACK, {"beat": ack.beat, "settled": settled})

    def send_seal(self, node: str, fields: Mapping[str, Any]) -> None:
        """A seal of the ledger to one node, or to all (empty)."""
        held = bool(self._sealed)
        if node:
            self._seal_to(node, Kind.COMMAND, fields)
        else:
            self._seal(topics.to_all(self._mesh, Kind.COMMAND), Kind.COMMAND, EVERYBODY, fields)
        if not held:
            self._publish_sealed()

    def send(self, node: str, kind: Kind, fields: dict[str, Any]) -> None:
        """A message that rests on no commit; it still keeps its place in the order."""
        held = bool(self._sealed)
        self._seal_to(node, kind, fields)
        if not held:
            self._publish_sealed()

    def announce(self, state: str) -> None:
        """Our own status, retained: online or offline."""
        held = bool(self._sealed)
        topic = topics.orchestrator_status(self._mesh, self._me)
        self._seal(topic, Kind.STATUS, EVERYBODY, {"state": state}, retain=True)
        if not held:
            self._publish_sealed()

    def tell_all(self, fields: dict[str, Any]) -> None:
        """A command to every node, resting on no commit."""
        held = bool(self._sealed)
        self._seal(topics.to_all(self._mesh, Kind.COMMAND), Kind.COMMAND, EVERYBODY, fields)
        if not held:
            self._publish_sealed()

    def clear_status(self, node: str) -> None:
        """The broker keeps no word of this node any more."""
        held = bool(self._sealed)
        self._sealed.append((topics.from_node(self._mesh, node, Kind.STATUS), b"", True))
        if not held:
            self._publish_sealed()

    def will(self) -> Will:
        """What the broker says when we vanish."""
        topic = topics.orchestrator_status(self._mesh, self._me)
        payload = self._sealer.seal(
            Kind.STATUS, EVERYBODY, {"state": "gone"}, self._clock.now_ms(), 0
        )
        return Will(topic, payload)

    def settle_now(self) -> None:
        """Send the acks that wait for others."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._send_acks()

    def fail_all(self, error: MeshError) -> None:
        """The engine ended: nobody will answer."""
        for future in self._requests.values():
            if not future.done():
                future.set_exception(error)
        self._requests.clear()
        self._sealed.clear()
        self._decided.clear()
        self._acks.clear()

    def _publish_sealed(self) -> None:
        while self._sealed:
            topic, payload, retain = self._sealed.popleft()
            try:
                self._link.publish(topic, payload, retain=retain)
            except LinkError as exc:
                # down or full: the core sends again what is not accepted in time
                self.unsent += 1
                log.debug("%s: %s", topic, exc)
        self._link.flush()

    def _seal(
        self, topic: str, kind: Kind, aud: str, fields: Mapping[str, Any], *, retain: bool = False
    ) -> None:
        payload = self._sealer.seal(
            kind, aud, fields, self._clock.now_ms(), limits.MESSAGE_EXPIRY_MS
        )
        self._sealed.append((topic, payload, retain))

    def _seal_to(self, node: str, kind: Kind, fields: Mapping[str, Any]) -> None:
        self._seal(topics.to_node(self._mesh, node, kind), kind, node, fields)

    def _cancel(self, command: k.SendCancel) -> None:
        for start in range(0, len(command.dispatches), limits.ACK_SETTLED):
            dispatches = list(command.dispatches[start : start + limits.ACK_SETTLED])
            fields = {"do": "cancel", "dispatches": dispatches}
            self._seal_to(command.node, Kind.COMMAND, fields)

    def _admission(self, command: k.SendAdmission) -> None:
        self._seal_to(command.node, Kind.COMMAND, {"do": command.do})

    def _permit(self, command: k.SendPermit) -> None:
        fields = {"do": PERMIT, "doc": self._sealer.document(sign_permit, command.body)}
        self._seal_to(command.node, Kind.COMMAND, fields)

    def _drop_permits(self, command: k.DropPermits) -> None:
        self._seal_to(command.node, Kind.COMMAND, {"do": PERMIT, "drop": list(command.permits)})

    def _inventory(self, command: k.AskInventory) -> None:
        fields = {"what": "inventory", "nonce": command.nonce}
        self._seal_to(command.node, Kind.REQUEST, fields)

    def _rebirth(self, command: k.AskRebirth) -> None:
        fields = {"do": "rebirth"}
        if command.node:
            self._seal_to(command.node, Kind.COMMAND, fields)
        else:
            topic = topics.to_all(self._mesh, Kind.COMMAND)
            self._seal(topic, Kind.COMMAND, EVERYBODY, fields)

    def _answer(self, command: k.Reply | k.Refuse) -> None:
        self._answers.append(command)

    def _report(self, command: k.ReportRefusal) -> None:
        fault = command.fault
        at_ms = self._clock.now_ms()
        self._stream.refusal(at_ms, {"node": command.node}, fault.code, fault.message)


def _gather(acks: dict[str, k.SendAck], ack: k.SendAck) -> k.SendAck:
    """Add an ack to those of its node; returns the whole."""
    before = acks.get(ack.node)
    if before is not None:
        beats = [one.beat for one in (before, ack) if one.beat is not None]
        settled = (*before.settled, *ack.settled)
        ack = k.SendAck(ack.node, max(beats, default=None), settled)
    acks[ack.node] = ack
    return ack


def _batches(bins: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Dispatches of one delegate each: within the count and the size that travel together."""
    batch: list[bytes] = []
    size = 0
    for data in bins:
        if batch and (
            len(batch) == limits.BATCH_DISPATCHES or size + len(data) > limits.BATCH_BYTES
        ):
            yield batch
            batch, size = [], 0
        batch.append(data)
        size += len(data)
    yield batch


def _error_of(fault: Fault) -> MeshError:
    """The core refuses by code; here it becomes an error of the class that fits its blame."""
    made_by = InputError if CODES[fault.code].blame == "input" else StoreError
    return made_by(fault.code, fault.message)
