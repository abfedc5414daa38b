"""A link over MQTT 3.1.1 with gmqtt; the only file that knows the client library.

The one rule: one gmqtt client per connection. Its own reconnect asks for a stored session and
never resubscribes, it has no inbound limit, no back-pressure and forgets why a connection
ended; all of that is done here. Deliberately absent: MQTT 5, QoS 2, stored sessions.
"""

import asyncio
import logging
import random
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gmqtt
from gmqtt.mqtt.connection import MQTTConnection
from gmqtt.mqtt.constants import MQTTv311
from gmqtt.mqtt.handler import MQTTConnectError
from gmqtt.mqtt.package import Package
from gmqtt.mqtt.protocol import MQTTProtocol

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError, ProtocolError
from imlmesh_runtime.background import Background
from imlmesh_runtime.link.base import (
    Address,
    Addresses,
    CountedEvents,
    InTurn,
    LinkEvents,
    Will,
    check_size,
    retry_ms,
)
from imlmesh_runtime.link.dialling import dialled
from imlmesh_runtime.link.endings import ending, explain, is_valid_at
from imlmesh_runtime.link.packets import next_packet
from imlmesh_runtime.link.window import Window

logger = logging.getLogger(__name__)
# What the library has to say is told again here with a code; below ERROR it also logs payloads.
logging.getLogger("gmqtt").setLevel(logging.ERROR)

_JOINED_BYTES = 64 * 1024  # written at once; then the transport says when it is full
_JOINED_S = 0.005  # what nobody flushes waits this long for company
_ACKED_BYTES = 128  # of acknowledgements after one read: a third of what a broker lets be open
_QUEUED_PACKET_BYTES = 256 * 1024  # in the transport before publishing waits
_SUBACK_REFUSED = 128
_CONNACK_UNAVAILABLE = 3


class MqttLink:
    """A `Link` to a broker; each connection attempt takes the next of its `addresses`.

    `context` verifies the broker under the name of its mesh, whatever the address is; what makes one
    is asked before each attempt, since keys and certificates are renewed. `draw` gives the jitter of
    reconnects, in [0, 1); between two of them lie at most `retry_max_ms`.
    """

    def __init__(
        self,
        addresses: Sequence[Address] | Addresses,
        client_id: str,
        context: ssl.SSLContext | Callable[[], ssl.SSLContext],
        subscriptions: tuple[str, ...],
        draw: Callable[[], float] = random.random,
        retry_max_ms: int = limits.LINK_RETRY_MAX_MS,
    ) -> None:
        self.last_error: MeshError | None = None
        self._addresses: Addresses = (
            InTurn(addresses) if isinstance(addresses, Sequence) else addresses
        )
        self._client_id = client_id
        self._context = context if callable(context) else lambda: context
        self._subscriptions = subscriptions
        self._draw = draw
        self._retry_max_ms = retry_max_ms
        self._events: CountedEvents | None = None
        self._session: _Session | None = None
        self._runner = Background("the link", self._run)
        self._closing = False
        self._anew: asyncio.Task[None] | None = None
        self._failed = 0  # attempts in a row that came to nothing, or to what broke at once

    @property
    def connected(self) -> bool:
        return self._session is not None and self._session.up

    @property
    def unacked(self) -> int:
        return 0 if self._session is None else self._session.window.unacked

    @property
    def faults(self) -> int:
        return 0 if self._events is None else self._events.faults

    def start(self, events: LinkEvents) -> None:
        self._events = CountedEvents(events)
        self._runner.start()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        session = self._session
        if session is None or not session.up:
            raise LinkError("link.down", "no session with the broker")
        check_size(topic, payload)
        session.window.publish(topic, payload, qos, retain)

    def flush(self) -> None:
        if self._session is not None:
            self._session.flush()

    def begin_anew(self) -> None:
        session = self._session
        if session is not None and session.up and self._anew is None:
            self._anew = asyncio.get_running_loop().create_task(session.say_goodbye())

    def check_peer(self, at_ms: int) -> bool:
        return self._session is None or self._session.check_peer(at_ms)

    async def close(self) -> None:
        self._closing = True
        if self._session is not None and self._session.up:
            await self._session.say_goodbye()
        await self._runner.close()

    async def _run(self) -> None:
        events = self._events
        assert events is not None  # noqa: S101 - `start` was given them
        while True:
            error = await self._live(events)
            if self._closing:
                return
            if self._anew is not None:
                # we ended it ourselves: nobody failed, and nobody has to wait
                await self._anew
                self._anew = None
                events.link_down(str(error))
                continue
            self.last_error = error
            self._addresses.failed(error)
            events.link_down(str(error))
            await asyncio.sleep(retry_ms(self._failed, self._draw(), self._retry_max_ms) / 1000)
            self._failed += 1

    async def _live(self, events: CountedEvents) -> MeshError:
        """One session, from the first packet to its end; returns why it ended or never began."""
        host, port = await self._addresses.next()
        try:
            session = _Session(self._client_id, events, events.will())
        except LinkError as exc:
            return exc
        self._session = session
        try:
            async with asyncio.timeout(limits.LINK_ENTER_MS / 1000):
                await session.connect(host, port, self._context(), self._subscriptions)
            self._addresses.reached()
            up_s = time.monotonic()
            error = await session.ended
            # A session that lasted starts the back-off anew; one that breaks at once does not.
            if (time.monotonic() - up_s) * 1000 > limits.LINK_LASTED_MS:
                self._failed = 0
            return error
        except MQTTConnectError as exc:
            code = "link.down" if exc._code == _CONNACK_UNAVAILABLE else "link.refused"
            return LinkError(code, f"{host}:{port}: {exc}")
        except Exception as exc:
            return explain(exc, f"{host}:{port}")
        finally:
            self._session = None
            session.abort()


class _Session:
    """One connection: a gmqtt client, its window of unacknowledged messages, and its end."""

    def __init__(self, client_id: str, events: CountedEvents, will: Will | None) -> None:
        loop = asyncio.get_running_loop()
        self.up = False
        self.ended: asyncio.Future[MeshError] = loop.create_future()
        self._subscribed: asyncio.Future[None] = loop.create_future()
        self._events = events
        self.window = Window(self._send)
        self._protocol: _Protocol | None = None
        message = will and gmqtt.Message(will.topic, will.payload, qos=1, retain=will.retain)
        self._client = _Client(client_id, will_message=message, persistent_storage=self.window)
        self._client.open_protocol = self._open_protocol
        self._client.on_message = self._on_message
        self._client.on_subscribe = self._on_subscribe

    async def connect(
        self, host: str, port: int, context: ssl.SSLContext, subscriptions: tuple[str, ...]
    ) -> None:
        """Connect and subscribe; raises what went wrong as the library or the system says it."""
        connecting = asyncio.ensure_future(self._handshake(host, port, context, subscriptions))
        try:
            either: set[asyncio.Future[Any]] = {connecting, self.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise self.ended.result()
            connecting.result()
        finally:
            connecting.cancel()

    async def _handshake(
        self, host: str, port: int, context: ssl.SSLContext, subscriptions: tuple[str, ...]
    ) -> None:
        await self._client.connect(
            host, port, ssl=context, keepalive=limits.KEEPALIVE_S, version=MQTTv311
        )
        self._client.subscribe([gmqtt.Subscription(topic, qos=1) for topic in subscriptions])
        await self._subscribed

    async def say_goodbye(self) -> None:
        """Wait for acknowledgements, then DISCONNECT, which makes the broker forget the will."""
        try:
            async with asyncio.timeout(limits.LINK_CLOSE_MS / 1000):
                await self.window.wait_quiet()
        except TimeoutError:
            logger.warning("closing with %d messages not acknowledged", self.window.unacked)
        self.up = False
        if self.ended.done():
            return
        try:
            async with asyncio.timeout(limits.LINK_CLOSE_MS / 1000):
                await self._client.disconnect()
        except (OSError, TimeoutError):
            logger.warning("the broker did not close the connection in time")

    def check_peer(self, at_ms: int) -> bool:
        """End the session unless the broker's certificate is valid at that time."""
        if self._protocol is None or is_valid_at(self._protocol.peer, at_ms):
            return True
        self.lost(LinkError("link.tls", "the broker's certificate is not valid in mesh time"))
        return False

    def flush(self) -> None:
        """Write what was joined."""
        if self._protocol is not None:
            self._protocol.flush()

    def abort(self) -> None:
        """Break the connection if there still is one."""
        self.up = False
        self.window.release()
        if self._protocol is not None:
            self._protocol.abort()

    def lost(self, error: MeshError) -> None:
        """The connection is gone; called once by the protocol."""
        self.up = False
        self.window.release()
        if not self.ended.done():
            self.ended.set_result(error)

    def _open_protocol(self, client: "_Client") -> "_Protocol":
        self._protocol = _Protocol(client, self)
        return self._protocol

    def _send(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        self._client.publish(topic, payload, qos=qos, retain=retain)

    def _on_message(
        self, _client: object, topic: str, payload: bytes, _qos: int, properties: dict[str, Any]
    ) -> None:
        if self.up:
            self._events.message(topic, payload, bool(properties["retain"]))

    def read(self) -> None:
        """All packets of one read were taken."""
        if self.up:
            self._events.handed_over()

    def _on_subscribe(
        self, _client: object, _mid: int, granted: tuple[int, ...], _properties: object
    ) -> None:
        if self._subscribed.done():
            return
        if any(qos >= _SUBACK_REFUSED for qos in granted):
            self._subscribed.set_exception(LinkError("link.refused", "subscription refused"))
            return
        # Here and not after the await: messages may follow in the same read.
        self.up = True
        self._subscribed.set_result(None)
        self._events.link_up()


class _Client(gmqtt.Client):  # type: ignore[misc]
    """A gmqtt client that connects once, through a protocol of ours."""

    open_protocol: Callable[["_Client"], "_Protocol"]

    async def reconnect(self, delay: bool = False) -> None:
        """The link reconnects, with a new client."""

    async def _create_connection(
        self, host: str, port: int, ssl: ssl.SSLContext, clean_session: bool, keepalive: int
    ) -> MQTTConnection:
        loop = asyncio.get_running_loop()
        protocol_of = partial(self.open_protocol, self)
        transport, protocol = await loop.create_connection(
            protocol_of, sock=await dialled(host, port), ssl=ssl, server_hostname=host
        )
        return MQTTConnection(
            transport, protocol, clean_session, keepalive, package_handler=self._package_handler
        )


class _Protocol(MQTTProtocol):  # type: ignore[misc]
    """Bytes to packets with a limit, and the end of the connection with its reason."""

    def __init__(self, client: _Client, session: _Session) -> None:
        handler = client._package_handler
        super().__init__(
            connection_state=client._connection_state, id_generator=handler.id_generator
        )
        self._session = session
        self._received = bytearray()
        self._unsent = bytearray()
        self._timed = False
        self._broken: MeshError | None = None
        self.peer: dict[str, Any] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.peer = transport.get_extra_info("peercert")
        self._transport.set_write_buffer_limits(high=_QUEUED_PACKET_BYTES)
        tcp: socket.socket = transport.get_extra_info("socket")
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # A peer that vanished is noticed although gmqtt itself would wait for 2 keepalives.
            patience_ms = limits.KEEPALIVE_S * 1500
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience_ms)

    async def _read_loop(self) -> None:
        """Packets are cut in `data_received`; the library's reader has no limit."""

    def data_received(self, data: bytes) -> None:
        self._received += data
        start = 0
        try:
            while (bounds := next_packet(self._received, start)) is not None:
                begin, end = bounds
                packet = Package(self._received[start], bytes(self._received[begin:end]))
                self._connection.put_package(packet)
                start = end
        except ProtocolError as exc:
            self._broken = exc
            self.abort()
        del self._received[:start]
        if start:
            self._session.read()
        if len(self._unsent) > _ACKED_BYTES:
            self.flush()

    def write_data(self, data: bytes) -> None:
        """Join what is written, acknowledgements above all, until `flush` or for a moment."""
        self._connection._last_data_out = time.monotonic()
        self._unsent += data
        if len(self._unsent) > _JOINED_BYTES:
            self.flush()
        elif not self._timed:
            self._timed = True
            self._loop.call_later(_JOINED_S, self._on_time)

    def _on_time(self) -> None:
        self._timed = False
        self.flush()

    def send_disconnect(self, reason_code: int = 0, **properties: object) -> None:
        super().send_disconnect(reason_code, **properties)
        self.flush()

    def flush(self) -> None:
        data, self._unsent = self._unsent, bytearray()
        # the timer of what was joined may find the connection gone
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._session.window.set_writable(False)

    def resume_writing(self) -> None:
        self._session.window.set_writable(True)

    def connection_lost(self, exc: Exception | None) -> None:
        answered = self._session.up
        if self._connection is not None:
            super().connection_lost(exc)
        self._session.lost(self._broken or ending(exc, answered))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
