"""The contract of a link: how a shell speaks to the broker of its mesh.

The one rule: a link carries bytes and promises nothing about their fate. What was published
and not acknowledged when a session ends is forgotten; whoever needs it sends it again from
its own store. Deliberately absent: envelopes, kinds, retries of messages.
"""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError, ProtocolError

logger = logging.getLogger(__name__)

#: of a broker: an IP address or a name, and the port
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes (QoS 1) when a session ends without a goodbye."""

    topic: str
    payload: bytes
    retain: bool = True


class LinkEvents(Protocol):
    """What a shell hears from its link, always on the thread of the loop."""

    def will(self) -> Will | None:
        """Asked before every connection attempt: a new session begins."""

    def link_up(self) -> None:
        """Connected and subscribed; comes before the first message of the session."""

    def link_down(self, reason: str) -> None:
        """A session ended, or an attempt to begin one failed. `reason` is `code: text`."""

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        """One message on a subscribed topic; QoS 1 messages of a topic keep their order.

        `retained`: the broker had kept it from before the subscription.
        """

    def handed_over(self) -> None:
        """All messages that came together have been handed over."""


class Link(Protocol):
    """One client of the broker. It connects, and reconnects for ever with full jitter."""

    @property
    def connected(self) -> bool:
        """True between `link_up` and `link_down`."""

    @property
    def unacked(self) -> int:
        """QoS 1 messages that the broker has not acknowledged, those that wait included."""

    @property
    def faults(self) -> int:
        """Exceptions that the events raised; each is in the log with its traceback."""

    @property
    def last_error(self) -> MeshError | None:
        """Why the last session or attempt ended: link.down, link.refused, link.tls, clock.behind."""

    def start(self, events: LinkEvents) -> None:
        """Begin to connect. Called once."""

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Hand over one message, in order, without waiting.

        Raises LinkError `link.down` while there is no session and `link.full` when too much
        waits for acknowledgement; ProtocolError `message.too_large` above limits.MESSAGE_BYTES.
        """

    def flush(self) -> None:
        """Nothing more is published for now: what was handed over leaves at once.

        Without it the link waits a moment for more, so that messages travel together.
        """

    def begin_anew(self) -> None:
        """End this session well (no will), and begin another at once with the keys that there are
        now; `link_down` and `link_up` are called. Nothing happens without a session."""

    def check_peer(self, at_ms: int) -> bool:
        """Whether the broker's certificate is valid at this mesh time; if not, the session ends with
        `link.tls`. For who connected without a clock."""

    async def close(self) -> None:
        """Say goodbye (no will) and end for good; `link_down` is not called."""


class Addresses(Protocol):
    """Where a link may find its broker."""

    async def next(self) -> Address:
        """The one to try now; may wait until there is one."""

    def reached(self) -> None:
        """A session began at the last one given."""

    def failed(self, error: MeshError) -> None:
        """No session began there, or one ended."""


class InTurn:
    """Fixed addresses, one after the other, for ever."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._turn = itertools.cycle(addresses)

    async def next(self) -> Address:
        """The following one."""
        return next(self._turn)

    def reached(self) -> None:
        """Nothing to note."""

    def failed(self, error: MeshError) -> None:
        """Nothing to note."""


class CountedEvents:
    """Passes events on to a shell and keeps what the shell raises: counted and logged.

    The MQTT client has acknowledged a message before our code sees it and swallows exceptions
    of its callbacks, so nobody else would ever learn of them.
    """

    def __init__(self, events: LinkEvents) -> None:
        self._events = events
        self.faults = 0

    def will(self) -> Will | None:
        try:
            return self._events.will()
        except Exception as exc:
            self._fault("will")
            raise LinkError("link.down", f"no will could be made: {exc}") from exc

    def link_up(self) -> None:
        try:
            self._events.link_up()
        except Exception:
            self._fault("link_up")

    def link_down(self, reason: str) -> None:
        try:
            self._events.link_down(reason)
        except Exception:
            self._fault("link_down")

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        try:
            self._events.message(topic, payload, retained)
        except Exception:
            self._fault(f"message on {topic}")

    def handed_over(self) -> None:
        try:
            self._events.handed_over()
        except Exception:
            self._fault("handed_over")

    def _fault(self, where: str) -> None:
        self.faults += 1
        logger.exception("link event failed: %s", where)


def check_size(topic: str, payload: bytes) -> None:
    """Raise `message.too_large` for what the broker would close the connection for."""
    if len(payload) > limits.MESSAGE_BYTES:
        raise ProtocolError(
            "message.too_large",
            f"{len(payload)} bytes on {topic}; the limit is {limits.MESSAGE_BYTES}",
        )


def retry_ms(attempt: int, draw: float, most_ms: int = limits.LINK_RETRY_MAX_MS) -> int:
    """The pause before attempt number `attempt` (from 0): `draw` in [0, 1) of a span that doubles up
    to `most_ms`."""
    span_ms = min(most_ms, limits.LINK_RETRY_MS << min(attempt, 16))
    return round(span_ms * draw)
