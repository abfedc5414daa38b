"""Messages to and from an MQTT broker of the user's own.

The one rule: only brokers that the policy lists are called, and no password stands in any result, log or
error. These actions wait on the agent's own loop, so that ending one disturbs no pin.
"""

import asyncio
import base64
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import action
from imlmesh_drivers.iot.board import Board
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverTimeout
from imlmesh_protocol.limits import (
    LINK_CONNECT_MS,
    MQTT_KEPT_BYTES,
    MQTT_MESSAGES,
    MQTT_PAYLOAD_BYTES,
    MQTT_TEXT_BYTES,
)

Port = Annotated[int, Interval(ge=1, le=65535)]
Qos = Literal[0, 1, 2]


class Published(TypedDict):
    """`acknowledged` is false with QoS 0: nobody says whether it arrived."""

    broker: str
    port: int
    topic: str
    bytes_sent: int
    acknowledged: bool


class Taken(TypedDict):
    """One message; a payload that is no UTF-8 comes as Base64 instead."""

    topic: str
    payload: NotRequired[str]
    payload_base64: NotRequired[str]
    qos: int
    retain: bool


class Subscribed(TypedDict):
    """What came, in order; `truncated` when it ended early because that was enough."""

    broker: str
    port: int
    topic: str
    messages: list[Taken]
    count: int
    truncated: bool


class MqttActions(Board):
    """Actions at brokers of the user."""

    @action(effect="once", impact=0.5, permission="local_worker", runs="loop")
    async def publish_mqtt(
        self,
        *,
        broker: str,
        port: Port = 1883,
        topic: str,
        payload: str,
        qos: Qos = 0,
        retain: bool = False,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        timeout: Annotated[int, Interval(ge=1, le=60)] = 10,  # noqa: ASYNC109 - IML's own name
    ) -> Published:
        """Publish one message at a broker of your own; with QoS 1 and 2 it is acknowledged."""
        from imlmesh_drivers.iot import mqtt_session as mqtt

        where = mqtt.Broker(broker, port, tls, username, password)
        self._check(where)
        _check_topic(topic, wildcards=False)
        data = payload.encode()
        if len(data) > MQTT_PAYLOAD_BYTES:
            text = f"payload: {len(data)} bytes; at most {MQTT_PAYLOAD_BYTES} are published"
            raise DriverError("driver.params", text)
        async with mqtt.connected(where, timeout) as session:
            try:
                async with asyncio.timeout(timeout):
                    await session.publish(topic, data, qos, retain)
            except TimeoutError as exc:
                text = f"timeout: {where.place} did not acknowledge within {timeout} s"
                raise DriverTimeout("driver.timeout", text) from exc
            except ConnectionError as exc:
                raise DriverError("mqtt.unreachable", f"broker: {where.place}: {exc}") from exc
        return {
            "broker": broker,
            "port": port,
            "topic": topic,
            "bytes_sent": len(data),
            "acknowledged": qos > 0,
        }

    @action(effect="once", impact=0.5, permission="local_worker", runs="loop")
    async def subscribe_mqtt(
        self,
        *,
        broker: str,
        port: Port = 1883,
        topic: str,
        qos: Qos = 0,
        duration: Annotated[int, Interval(ge=1, le=3600)] = 30,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
    ) -> Subscribed:
        """Take messages of a broker of your own for `duration` seconds, or until they are many."""
        from imlmesh_drivers.iot import mqtt_session as mqtt

        where = mqtt.Broker(broker, port, tls, username, password)
        self._check(where)
        _check_topic(topic, wildcards=True)
        inbox = _Inbox()
        connect_s = LINK_CONNECT_MS / 1_000
        async with mqtt.connected(where, connect_s, inbox.take) as session:
            try:
                async with asyncio.timeout(connect_s):
                    await session.subscribe(topic, qos)
                ends: set[asyncio.Future[Any]] = {session.ended, inbox.full}
                await asyncio.wait(ends, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
            except (TimeoutError, ConnectionError) as exc:
                text = f"broker: {where.place}: {exc or 'the subscription is not answered'}"
                raise DriverError("mqtt.unreachable", text) from exc
            if session.ended.done() and not inbox.full.done():
                why = f"broker: {where.place}: {session.ended.result()}; {len(inbox.messages)} came"
                raise DriverError("mqtt.unreachable", why)
        return {
            "broker": broker,
            "port": port,
            "topic": topic,
            "messages": inbox.messages,
            "count": len(inbox.messages),
            "truncated": inbox.full.done(),
        }

    def _check(self, where: Any) -> None:
        if where.place not in self.site.buses.brokers:
            text = f"broker: {where.place[:200]} is not in [mqtt] allow of the policy"
            raise DriverDenied("policy.broker", text)
        if where.password is not None and where.username is None:
            raise DriverError("driver.params", "username: a password needs one")
        for name in ("username", "password"):
            if len((getattr(where, name) or "").encode()) > MQTT_TEXT_BYTES:
                text = f"{name}: at most {MQTT_TEXT_BYTES} bytes"
                raise DriverError("driver.params", text)


class _Inbox:
    """Messages up to the limits; then `full` is set and the rest is left."""

    def __init__(self) -> None:
        self.messages: list[Taken] = []
        self.full: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._bytes = 0

    def take(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        size = len(topic.encode()) + len(payload)
        too_many = len(self.messages) == MQTT_MESSAGES or self._bytes + size > MQTT_KEPT_BYTES
        if too_many and not self.full.done():
            self.full.set_result(None)
        if self.full.done():
            return
        self._bytes += size
        taken: Taken = {"topic": topic, "qos": qos, "retain": retain}
        try:
            taken["payload"] = payload.decode()
        except UnicodeDecodeError:
            taken["payload_base64"] = base64.b64encode(payload).decode()
        self.messages.append(taken)


def _check_topic(topic: str, *, wildcards: bool) -> None:
    """MQTT 3.1.1, 4.7: `driver.params` for what no broker would take."""
    levels = topic.split("/")
    wild = [level for level in levels if "+" in level or "#" in level]
    fits = not wild
    if wildcards:
        fits = all(level in ("+", "#") for level in wild) and "#" not in levels[:-1]
    if not fits or not topic or "\0" in topic or len(topic.encode()) > MQTT_TEXT_BYTES:
        raise DriverError("driver.params", f"topic: {topic[:200]!r} is no topic to use here")
