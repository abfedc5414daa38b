"""One connection to a broker of the user's own, with gmqtt: MQTT 3.1.1, clean, and never renewed.

The one rule: whatever the broker sends, a session takes MQTT_RECEIVED_BYTES and then ends; its end is
always told. gmqtt is imported with this module, which is imported when it is needed. Deliberately
absent: the mesh's own link (runtime/link/mqtt.py), which lives for ever and is the opposite.
"""

import asyncio
import contextlib
import logging
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gmqtt
from gmqtt.mqtt.connection import MQTTConnection
from gmqtt.mqtt.constants import MQTTv311
from gmqtt.mqtt.handler import MQTTConnectError
from gmqtt.mqtt.package import Package
from gmqtt.mqtt.protocol import MQTTProtocol
from gmqtt.storage import PersistentStorage

from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.limits import KEEPALIVE_S, KILL_GRACE_MS, MQTT_RECEIVED_BYTES

# what the library has to say is told with a code; below ERROR it also logs payloads
logging.getLogger("gmqtt").setLevel(logging.ERROR)

_SUBACK_REFUSED = 128
_UNAVAILABLE = 3  # of CONNACK: the only refusal that may be over soon
OnMessage = Callable[[str, bytes, int, bool], None]


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to, and as whom."""

    address: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def place(self) -> str:
        """As [mqtt] allow of a policy writes it."""
        bracketed = f"[{self.address}]" if ":" in self.address else self.address
        return f"{bracketed}:{self.port}"


class Session:
    """A connection that is up; `connected` makes it."""

    def __init__(self, on_message: OnMessage | None) -> None:
        #: set once, with the reason, when the connection is gone
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_message = on_message
        self._unacked = PersistentStorage()
        name = f"imlmesh-{secrets.token_hex(6)}"
        self._client = _Client(name, persistent_storage=self._unacked)
        self._client.session = self
        self._client.on_message = self._take
        self._granted: asyncio.Future[tuple[int, ...]] = self.ended.get_loop().create_future()
        self._client.on_subscribe = self._subscribed

    async def open(self, broker: Broker) -> None:
        """Connect; raises what went wrong as the library or the system says it."""
        if broker.username is not None:
            self._client.set_auth_credentials(broker.username, broker.password)
        context = ssl.create_default_context() if broker.tls else False
        connecting = self._client.connect(
            broker.address, broker.port, ssl=context, keepalive=KEEPALIVE_S, version=MQTTv311
        )
        await self._or_ended(connecting)

    async def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Send one message; returns when the broker has acknowledged it, if it does at all."""
        self._client.publish(topic, payload, qos=qos, retain=retain)
        await self._or_ended(self._unacked.wait_empty())

    async def subscribe(self, topic: str, qos: int) -> None:
        """Ask for messages; `mqtt.refused` when the broker does not want that."""
        self._client.subscribe(topic, qos=qos)
        granted = await self._or_ended(self._granted)
        if any(code >= _SUBACK_REFUSED for code in granted):
            raise DriverDenied("mqtt.refused", f"topic: the broker refuses {topic[:200]!r}")

    async def close(self) -> None:
        """Say goodbye, and break the connection when that takes long."""
        try:
            async with asyncio.timeout(KILL_GRACE_MS / 1_000):
                if not self.ended.done():
                    await self._client.disconnect()
        except (OSError, TimeoutError):
            pass
        finally:
            self._client.abort()

    def lost(self, why: str) -> None:
        """The protocol's word: the connection is gone."""
        if not self.ended.done():
            self.ended.set_result(why)

    async def _or_ended(self, work: Any) -> Any:
        doing = asyncio.ensure_future(work)
        try:
            either: set[asyncio.Future[Any]] = {doing, self.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise ConnectionError(self.ended.result())
            return doing.result()
        finally:
            doing.cancel()

    def _take(
        self, _client: Any, topic: str, payload: bytes, qos: int, properties: dict[str, Any]
    ) -> int:
        if self._on_message is not None:
            self._on_message(topic, bytes(payload), qos, bool(properties.get("retain")))
        return 0

    def _subscribed(self, _client: Any, _mid: int, granted: tuple[int, ...], _: Any) -> None:
        if not self._granted.done():
            self._granted.set_result(granted)


@contextlib.asynccontextmanager
async def connected(
    broker: Broker, timeout_s: float, on_message: OnMessage | None = None
) -> AsyncIterator[Session]:
    """A session; `mqtt.unreachable` or `mqtt.refused` when there is none within `timeout_s`."""
    session = Session(on_message)
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await session.open(broker)
        except Exception as exc:
            raise _explain(exc, broker.place, timeout_s) from exc
        yield session
    finally:
        await session.close()


def _explain(exc: Exception, place: str, timeout_s: float) -> DriverError:
    """The one table of what may go wrong while connecting."""
    match exc:
        case MQTTConnectError(_code=code) if code != _UNAVAILABLE:
            return DriverDenied("mqtt.refused", f"broker: {place}: {exc.message}")
        case ssl.SSLError():
            return DriverDenied("mqtt.refused", f"tls: {place}: {exc.reason or exc}")
        case TimeoutError():
            return DriverError("mqtt.unreachable", f"broker: {place}: no answer in {timeout_s} s")
        case _:
            return DriverError("mqtt.unreachable", f"broker: {place}: {exc}")


class _Client(gmqtt.Client):  # type: ignore[misc]
    """A gmqtt client that connects once, through a protocol of ours."""

    session: Session
    _protocol: "_Protocol | None" = None

    async def reconnect(self, delay: bool = False) -> None:
        """Never: a session ends."""

    def abort(self) -> None:
        """Break the connection if there still is one."""
        if self._protocol is not None:
            self._protocol.abort()

    async def _create_connection(
        self, host: str, port: int, ssl: Any, clean_session: bool, keepalive: int
    ) -> MQTTConnection:
        loop = asyncio.get_running_loop()
        state, ids = self._connection_state, self._package_handler.id_generator
        make = partial(_Protocol, self.session, connection_state=state, id_generator=ids)
        transport, self._protocol = await loop.create_connection(make, host, port, ssl=ssl or None)
        return _Connection(
            transport, self._protocol, clean_session, keepalive, self._package_handler
        )


class _Connection(MQTTConnection):  # type: ignore[misc]
    """Lets an error of a packet through, which the library would only log."""

    def put_package(self, pkg: Package) -> None:
        self._last_data_in = time.monotonic()
        self._handler._handle_packet(pkg.cmd, pkg.data)


class _Protocol(MQTTProtocol):  # type: ignore[misc]
    """Counts what comes, and tells the end."""

    def __init__(self, session: Session, **options: Any) -> None:
        super().__init__(**options)
        self._session = session
        self._received = 0

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MQTT_RECEIVED_BYTES:
            self._session.lost(f"the broker sent more than {MQTT_RECEIVED_BYTES} bytes")
            self.abort()
            return
        super().data_received(data)

    async def _read_loop(self) -> None:
        try:
            await super()._read_loop()
        except Exception as exc:  # whatever the library's parser makes of garbage
            self._session.lost(f"the broker sent what is no MQTT: {exc!r}")
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            super().connection_lost(exc)
        self._session.lost(f"the connection ended: {exc or 'closed by the broker'}")

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
