"""The way out: fields become signed envelopes and leave in the order in which they were sealed.

The one rule: receivers refuse a lower number than they have seen, so nothing sealed later may
leave earlier. What is asked for while prepared messages wait for their commit queues behind them,
unsealed. Deliberately absent: keeping; what the link loses is sent again by whoever needs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.limits import MESSAGE_EXPIRY_MS
from imlmesh_protocol.wire.envelope import Sealer
from imlmesh_protocol.wire.topics import Kind, from_node
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.link.base import Link, Will


@dataclass(frozen=True, slots=True)
class Address:
    """Who speaks to whom on which mesh."""

    mesh: str
    node: str
    orchestrator: str


@dataclass(slots=True)
class Letter:
    """One message to be sealed."""

    kind: Kind
    fields: Mapping[str, Any]
    channel: str = ""
    qos: int = 1
    retain: bool = False


class Outbox:
    """`clock` is mesh time, for the age of messages."""

    def __init__(self, address: Address, sealer: Sealer, link: Link, clock: Clock) -> None:
        self._address = address
        self._sealer = sealer
        self._link = link
        self._clock = clock
        self._sealed: list[tuple[str, bytes, Letter]] = []
        self._behind: list[Letter] = []
        self._holding = False

    def prepare(self, letters: list[Letter]) -> None:
        """Seal; everything else waits until `release`."""
        self._holding = True
        self._sealed += [self._seal(letter) for letter in letters]

    def release(self) -> None:
        """Let go of what was prepared, then of what was asked for meanwhile."""
        self._holding = False
        sealed, self._sealed = self._sealed, []
        for topic, envelope, letter in sealed:
            self._publish(topic, envelope, letter)
        if sealed:
            self._link.flush()
        behind, self._behind = self._behind, []
        for letter in behind:
            self.send(letter)

    def send(self, letter: Letter) -> None:
        """Send now, or behind what is prepared; forgotten when the link is down or full."""
        if self._holding:
            self._behind.append(letter)
        elif self._link.connected:
            self._publish(*self._seal(letter))
            if letter.qos:
                self._link.flush()

    @property
    def unacked(self) -> int:
        """Messages that the broker has not acknowledged."""
        return self._link.unacked

    def check_broker(self) -> bool:
        """Whether mesh time, now that it is known, allows the broker's certificate; else it is left."""
        return self._link.check_peer(self._clock.now_ms())

    def begin_anew(self) -> None:
        """End this session of the link, and begin another at once."""
        self._link.begin_anew()

    def new_session(self, boot: int, session: int) -> Will:
        """Number a new session; returns the will that belongs to it."""
        self._sealer.new_session(boot, session)
        envelope = self._sealer.seal(
            Kind.STATUS, self._address.orchestrator, {"state": "gone"}, self._clock.now_ms(), 0
        )
        return Will(self._topic(Kind.STATUS), envelope)

    def _seal(self, letter: Letter) -> tuple[str, bytes, Letter]:
        envelope = self._sealer.seal(
            letter.kind,
            self._address.orchestrator,
            letter.fields,
            self._clock.now_ms(),
            MESSAGE_EXPIRY_MS,
        )
        return self._topic(letter.kind, letter.channel), envelope, letter

    def _topic(self, kind: Kind, channel: str = "") -> str:
        return from_node(self._address.mesh, self._address.node, kind, channel)

    def _publish(self, topic: str, envelope: bytes, letter: Letter) -> None:
        try:
            self._link.publish(topic, envelope, qos=letter.qos, retain=letter.retain)
        except LinkError:
            # results, accepts and births are sent again; the rest was for this moment only
            return
