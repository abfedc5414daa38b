"""A bare MQTT client that may misbehave, which no proper client library would.

The one rule: it does what it is told, one packet at a time, and keeps nothing. For the probe and for
measurements; deliberately absent: keepalive, reconnecting, any promise.
"""

import asyncio
import ssl
from dataclasses import dataclass
from typing import Self

from imlmesh_broker.embedded import codec
from imlmesh_broker.embedded.codec import Message
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError


@dataclass(frozen=True, slots=True)
class Door:
    """Where a broker listens, and a client context to go there with."""

    address: str
    port: int
    context: ssl.SSLContext


class Visitor:
    """One connection. Everything raises LinkError `link.down` when the broker ended it, and then
    `ended` is true."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.ended = False
        self._reader = reader
        self._writer = writer

    @classmethod
    async def enter(
        cls,
        door: Door,
        client_id: str,
        will: Message | None = None,
        keepalive_s: int = limits.KEEPALIVE_S,
    ) -> Self:
        """Connect; LinkError `link.refused` when the broker does not let it in."""
        try:
            async with asyncio.timeout(limits.PROBE_ANSWER_MS / 1000):
                streams = await asyncio.open_connection(door.address, door.port, ssl=door.context)
        except OSError as exc:
            text = str(exc) or f"{door.address}:{door.port} does not answer"
            raise LinkError("link.refused", text) from exc
        visitor = cls(*streams)
        try:
            visitor.send(_connect(client_id, will, keepalive_s))
            answer = await visitor.packet()
        except LinkError as exc:
            visitor.vanish()
            raise LinkError("link.refused", exc.message) from exc
        if answer != (codec.CONNACK, bytes((0, codec.ACCEPTED))):
            visitor.vanish()
            raise LinkError("link.refused", f"the broker answered {answer[1].hex()}")
        return visitor

    async def subscribe(self, *filters: str) -> list[int]:
        """Ask for QoS 1; what was granted, 128 for what was refused."""
        asked = b"".join(_field(name.encode()) + b"\x01" for name in filters)
        self.send(codec.framed(codec.SUBSCRIBE, b"\x00\x01" + asked))
        while True:
            kind, body = await self.packet()
            if kind == codec.SUBACK:
                return list(body[2:])

    def publish(self, message: Message) -> None:
        """Send it with packet id 7; the acknowledgement is read over by `hear`."""
        topic = message.topic.encode()
        packet_id = 7 if message.qos else 0
        self.send(codec.publish(topic, message.payload, packet_id, message.retain))

    async def hear(self) -> Message:
        """The next message, which is acknowledged."""
        while True:
            first, body = await self.packet()
            if first & 0xF0 == codec.PUBLISH:
                topic, packet_id, payload = codec.parse_publish(first, body)
                if packet_id:
                    self.send(codec.acknowledged(codec.PUBACK, packet_id))
                return Message(topic.decode(), payload, first >> 1 & 1, bool(first & 1))

    async def packet(self) -> tuple[int, bytes]:
        """(first byte, body) of the next packet."""
        try:
            async with asyncio.timeout(limits.PROBE_ANSWER_MS / 1000):
                first, size, shift = (await self._reader.readexactly(1))[0], 0, 0
                while True:
                    digit = (await self._reader.readexactly(1))[0]
                    size |= (digit & 0x7F) << shift
                    shift += 7
                    if digit < 0x80:
                        return first, await self._reader.readexactly(size)
        except TimeoutError as exc:
            raise LinkError("link.down", "no answer") from exc
        except (OSError, asyncio.IncompleteReadError) as exc:
            self.ended = True
            raise LinkError("link.down", f"the broker ended it: {exc}") from exc

    def send(self, data: bytes) -> None:
        """Write bytes, whatever they are."""
        self._writer.write(data)

    async def drained(self) -> None:
        """Returns when the way to the broker has room again."""
        await self._writer.drain()

    def leave(self) -> None:
        """Say goodbye."""
        self.send(codec.framed(codec.DISCONNECT, b""))
        self._writer.close()

    def vanish(self) -> None:
        """Break the connection."""
        self._writer.transport.abort()


def _connect(client_id: str, will: Message | None, keepalive_s: int) -> bytes:
    flags = 0x02
    parts = [_field(client_id.encode())]
    if will is not None:
        flags |= 0x04 | will.qos << 3 | will.retain << 5
        parts += [_field(will.topic.encode()), _field(will.payload)]
    head = _field(b"MQTT") + bytes((4, flags)) + keepalive_s.to_bytes(2)
    return codec.framed(codec.CONNECT, head + b"".join(parts))


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data
