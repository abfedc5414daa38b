"""One connection: bytes in, packets to the hub, and back.

The one rule: what is written in one turn of the loop leaves at once, since a system call costs more
than a packet. Deliberately absent: who may do what; the hub asks the certificate's identity.
"""

import asyncio
import logging
import socket
import ssl
import time
from typing import cast

from imlmesh_broker.embedded import codec
from imlmesh_broker.embedded.access import Identity, Role
from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.embedded.flow import Flow
from imlmesh_broker.embedded.hub import Hub
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError, ProtocolError
from imlmesh_runtime.link.packets import next_packet

logger = logging.getLogger(__name__)

_LOOK_S = 60.0
_BUFFERED_BYTES = 256 * 1024  # in the transport before messages wait in the flow


class Connection(asyncio.Protocol):
    """A client from its handshake to its end; a `Member` of the hub once it introduced itself."""

    def __init__(self, hub: Hub, role: Role) -> None:
        self.client = ""
        self.flow = Flow()
        self.will: Message | None = None
        self.asked: dict[str, int] = {}
        self.taken: dict[str, int] = {}
        #: it joined, or has ended
        self.introduced = asyncio.Event()
        self._hub = hub
        self._role = role
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._known: set[bytes] = set()
        self._refusals = 0
        self._lost: LinkError | None = None
        self._joined = self._ended = self._touched = self._held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_BUFFERED_BYTES)
        # asyncio sets it on sockets that it made itself alone; without it each answer waits 44 ms
        tcp: socket.socket = transport.get_extra_info("socket")
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        certificate = transport.get_extra_info("peercert")
        try:
            identity = Identity.of_certificate(self._hub.mesh, certificate, self._role)
            self.identity = self._hub.admit(identity)
        except LinkError as exc:
            logger.warning("a stranger: %s", exc.message, extra={"code": exc.code})
            self._ended = True
            self.introduced.set()
            self._transport.abort()
            return
        self._until_s = ssl.cert_time_to_seconds(certificate["notAfter"])
        self._heard_s = self._loop.time()
        self._patience_s = limits.LINK_ENTER_MS / 1000
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = LinkError("link.down", str(exc or "it went away"))
        self.flow.is_open = False
        self._read()

    def data_received(self, data: bytes) -> None:
        self._heard_s = self._loop.time()
        self._received += data
        self._read()

    def pause_writing(self) -> None:
        self.flow.is_open = False

    def resume_writing(self) -> None:
        self.flow.is_open = True
        self._go_on()

    def touch(self) -> None:
        if not self._touched:
            self._touched = True
            self._loop.call_soon(self._write)

    def refuse(self, error: MeshError) -> None:
        self._refusals += 1
        if self._refusals <= limits.BROKER_REFUSALS_TOLD:
            self._tell(logging.WARNING, error)

    def end(
        self, error: MeshError, level: int = logging.WARNING, last: bytes | None = None
    ) -> None:
        if self._ended:
            return
        self._ended = True
        self.introduced.set()
        self._timer.cancel()
        self._tell(level, error)
        if last is None:
            self._transport.abort()
        else:
            self._transport.write(last)
            self._transport.close()
        if self._joined:
            self._hub.leave(self)

    def hold(self) -> None:
        self._held = True
        self._transport.pause_reading()

    def release(self) -> None:
        self._held = False
        self._heard_s = self._loop.time()
        self._loop.call_soon(self._read_on)

    def limit(self, identity: Identity) -> None:
        self.identity = identity
        self._known.clear()

    def _watch(self) -> None:
        """End it when it was silent for too long or its certificate ended, else look again."""
        rest_s = self._heard_s + self._patience_s - self._loop.time()
        valid_s = self._until_s - time.time()
        if valid_s <= 0:
            self.end(LinkError("link.refused", "its certificate has ended"))
        elif rest_s > 0 or self._held:
            # by the wall clock, which may be set: looked at once a minute
            pause_s = min(max(rest_s, 1), valid_s, _LOOK_S)
            self._timer = self._loop.call_later(pause_s, self._watch)
        else:
            self.end(LinkError("link.down", f"silent for {self._patience_s:g} s"), logging.INFO)

    def _write(self) -> None:
        self._touched = False
        if self.flow.is_open and self.flow.unsent and not self._ended:
            data, self.flow.unsent = self.flow.unsent, bytearray()
            self._transport.write(data)
            self._go_on()

    def _go_on(self) -> None:
        if self.flow.waiting_bytes:
            self.flow.go_on()
            self._hub.caught_up(self)
        if self.flow.unsent:
            self.touch()

    def _read(self) -> None:
        """Take packets, and then let the others have their turn.

        What came before the connection was lost still counts, a goodbye in it above all.
        """
        start, rest = 0, limits.BROKER_TURN_PACKETS
        try:
            while rest > 0 and not (self._held or self._ended):
                bounds = next_packet(self._received, start)
                if bounds is None:
                    break
                first = self._received[start]
                begin, start = bounds
                self._take(first, bytes(self._received[begin:start]))
                # one that changes who gets what costs as much as all others of a turn
                rest -= limits.BROKER_TURN_PACKETS if first in codec.OF_FILTERS else 1
        except MeshError as exc:
            self.end(exc)
        del self._received[:start]
        if rest <= 0 and not (self._held or self._ended):
            self._transport.pause_reading()
            self._loop.call_soon(self._read_on)
        elif self._lost is not None:
            self.end(self._lost, logging.INFO)

    def _read_on(self) -> None:
        if not (self._held or self._ended):
            if self._lost is None:
                self._transport.resume_reading()
            self._read()

    def _take(self, first: int, body: bytes) -> None:
        if not self._joined:
            if first != codec.CONNECT:
                raise ProtocolError("message.invalid", "it did not begin with CONNECT")
            self._join(body)
        elif first & 0xF0 == codec.PUBLISH:
            self._publish(first, body)
        elif first == codec.PUBACK:
            self.flow.acknowledge(codec.parse_number(body, 2))
            self._go_on()
        else:
            self._take_rare(first, body)

    def _publish(self, first: int, body: bytes) -> None:
        topic, packet_id, payload = codec.parse_publish(first, body)
        if packet_id:
            self._send(codec.acknowledged(codec.PUBACK, packet_id))
        if topic not in self._known:
            if not self._hub.may_write(self, codec.read_topic(topic)):
                return
            if len(self._known) >= limits.BROKER_KNOWN_TOPICS:
                self._known.clear()
            self._known.add(topic)
        qos = first >> 1 & 1
        if first & 0x01:
            self._hub.publish(self, Message(topic.decode(), payload, qos, True))
        else:
            self._hub.spread(self, topic, payload, qos)

    def _take_rare(self, first: int, body: bytes) -> None:
        match first:
            case codec.SUBSCRIBE:
                packet_id, wanted = codec.parse_filters(first, body)
                granted = bytes(self._hub.subscribe(self, wanted))
                self._send(codec.framed(codec.SUBACK, packet_id.to_bytes(2) + granted))
                self._hub.send_retained(self, [asked for asked, _ in wanted])
            case codec.UNSUBSCRIBE:
                packet_id, unwanted = codec.parse_filters(first, body)
                self._hub.unsubscribe(self, [asked for asked, _ in unwanted])
                self._send(codec.acknowledged(codec.UNSUBACK, packet_id))
            case codec.PINGREQ:
                codec.parse_number(body, 0)
                self._send(codec.PINGRESP)
            case codec.DISCONNECT:
                codec.parse_number(body, 0)
                self.will = None
                error = LinkError("link.down", "it said goodbye")
                self.end(error, logging.INFO, bytes(self.flow.unsent))
            case _:
                raise ProtocolError("message.invalid", f"a packet that begins with {first:#04x}")

    def _join(self, body: bytes) -> None:
        introduction = codec.parse_connect(body)
        if introduction is None:
            self._turn_away(codec.OTHER_VERSION, "it does not speak MQTT 3.1.1")
            return
        # it may have been shut out since its handshake
        self.identity = self._hub.admit(self.identity)
        self.client = introduction[0] or self.identity.id
        if self.client != self.identity.id and not self.identity.is_control:
            self._turn_away(codec.OTHER_ID, f"it calls itself {self.client[:80]!r}")
        else:
            _, keepalive_s, self.will = introduction
            self._patience_s = keepalive_s * 1.5 or float("inf")
            self._timer.cancel()
            self._watch()
            self._hub.join(self)
            self._joined = True
            self.introduced.set()
            self._send(bytes((codec.CONNACK, 2, 0, codec.ACCEPTED)))
            logger.info("%s: connected", self.identity.id, extra={"client": self.identity.id})

    def _turn_away(self, code: int, text: str) -> None:
        self.end(LinkError("link.refused", text), last=bytes((codec.CONNACK, 2, 0, code)))

    def _send(self, packet: bytes) -> None:
        if not self.flow.is_open and len(self.flow.unsent) > _BUFFERED_BYTES:
            raise LinkError("broker.slow", "it does not read its acknowledgements")
        self.flow.unsent += packet
        self.touch()

    def _tell(self, level: int, error: MeshError) -> None:
        extra = {"code": error.code, "client": self.identity.id, "dropped": self.flow.dropped}
        logger.log(level, "%s: %s", self.identity.id, error.message, extra=extra)
