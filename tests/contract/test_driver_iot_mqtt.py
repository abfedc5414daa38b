"""MQTT at a broker of the user's own: a real Mosquitto, and brokers that misbehave on purpose."""

import asyncio
import contextlib
import getpass
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imlmesh_broker.mosquitto import find_mosquitto
from imlmesh_drivers.buses import BusRules
from imlmesh_drivers.iot import Iot
from imlmesh_drivers.iot.mqtt_session import Broker
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import MQTT_KEPT_BYTES, MQTT_MESSAGES
from loopback import ADDRESS, deaf_port, own_port

WITHIN_S = 10


def listens(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """Whether a broker comes to listen at its port; it ends when somebody else has it."""
    for _ in range(1_000):
        with socket.socket() as trying:
            answered = trying.connect_ex((ADDRESS, port)) == 0
        if process.poll() is not None:
            return False
        if answered:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    return False


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts brokers on loopback; extra lines of configuration may be given. Gives the port."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*lines: str) -> int:
        for _ in range(3):
            port = own_port()
            path = tmp_path / f"mosquitto-{port}.conf"
            path.write_text(
                "\n".join((f"user {getpass.getuser()}", f"listener {port} {ADDRESS}", *lines, ""))
            )
            started.append(subprocess.Popen([find_mosquitto(), "-c", path]))
            if listens(started[-1], port):
                return port
        pytest.fail("mosquitto does not listen")

    yield start
    for process in started:
        process.terminate()
        process.wait(WITHIN_S)


def run(*argv: str, given: bytes = b"") -> None:
    subprocess.run(argv, input=given, check=True, timeout=WITHIN_S)


class User:
    """A driver that may call one broker."""

    def __init__(self, make_iot: Callable[..., Any], port: int) -> None:
        self.port = port
        self.rig = make_iot(buses=BusRules(brokers=(f"{ADDRESS}:{port}",)))

    async def do(self, action: str, **params: Any) -> Any:
        params = {"broker": ADDRESS, "port": self.port, "topic": "garden/soil"} | params
        async with asyncio.timeout(2 * WITHIN_S):
            return await self.rig.wait_for(action, **params)

    async def refusal(self, action: str, **params: Any) -> tuple[str, str]:
        with pytest.raises(DriverError) as caught:
            await self.do(action, **params)
        return caught.value.code, caught.value.message


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port at which nobody listens."""
    with deaf_port() as port:
        yield port


@pytest.fixture
def user(make_iot: Callable[..., Any], mosquitto: Callable[..., int]) -> User:
    return User(make_iot, mosquitto("allow_anonymous true"))


@pytest.mark.mosquitto
@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_what_is_published_is_taken(user: User, qos: int) -> None:
    await user.do("publish_mqtt", payload="first", retain=True, qos=1)
    taking = asyncio.create_task(user.do("subscribe_mqtt", topic="garden/#", duration=1, qos=qos))
    while not taking.done():
        published = await user.do("publish_mqtt", payload="grün", qos=qos)
        assert published == {
            "broker": ADDRESS,
            "port": user.port,
            "topic": "garden/soil",
            "bytes_sent": 5,
            "acknowledged": qos > 0,
        }
    taken = taking.result()
    place = {"topic": "garden/soil"}
    first = place | {"qos": min(qos, 1), "retain": True, "payload": "first"}
    assert first in taken["messages"]
    assert place | {"qos": qos, "retain": False, "payload": "grün"} in taken["messages"]
    assert taken["count"] == len(taken["messages"])
    # a machine that is quick enough reaches the limit within the second
    assert taken["truncated"] == (taken["count"] == MQTT_MESSAGES)


@pytest.mark.mosquitto
async def test_payloads_that_are_no_text_come_in_base64(user: User) -> None:
    run("mosquitto_pub", "-p", str(user.port), "-t", "garden/soil", "-r", "-s", given=b"\xff\x00")
    taken = await user.do("subscribe_mqtt", topic="garden/+", duration=1)
    assert [message["payload_base64"] for message in taken["messages"]] == ["/wA="]


@pytest.mark.mosquitto
async def test_user_name_and_password_decide(
    make_iot: Callable[..., Any], mosquitto: Callable[..., int], tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    run("mosquitto_passwd", "-b", "-c", str(passwords), "ann", "secret-1")
    passwords.chmod(0o644)
    user = User(make_iot, mosquitto("allow_anonymous false", f"password_file {passwords}"))
    who = {"username": "ann", "password": "secret-1"}
    assert (await user.do("publish_mqtt", payload="x", qos=1, **who))["acknowledged"]
    for wrong in ({}, who | {"password": "secret-2"}):
        code, text = await user.refusal("publish_mqtt", payload="x", **wrong)
        assert code == "mqtt.refused"
        assert "secret" not in text
    code, text = await user.refusal("publish_mqtt", payload="x", password="p")
    assert (code, text.partition(":")[0]) == ("driver.params", "username")
    assert "secret" not in repr(Broker(ADDRESS, 1, False, "ann", "secret-1"))


@pytest.mark.mosquitto
async def test_plain_and_tls_do_not_mix(user: User) -> None:
    code, text = await user.refusal("publish_mqtt", payload="x", tls=True)
    assert code in ("mqtt.refused", "mqtt.unreachable")
    assert str(user.port) in text


async def test_nobody_there_is_told(make_iot: Callable[..., Any], deaf: int) -> None:
    user = User(make_iot, deaf)
    for action, params in (("publish_mqtt", {"payload": "x"}), ("subscribe_mqtt", {})):
        code, text = await user.refusal(action, **params)
        assert (code, text.partition(":")[0]) == ("mqtt.unreachable", "broker")


@pytest.mark.parametrize(
    ("action", "params", "code", "field"),
    [
        ("publish_mqtt", {"broker": "other.example"}, "policy.broker", "broker"),
        ("publish_mqtt", {"port": 1}, "policy.broker", "broker"),
        ("subscribe_mqtt", {"broker": "::1"}, "policy.broker", "broker"),
        ("publish_mqtt", {"topic": "a/+/b"}, "driver.params", "topic"),
        ("publish_mqtt", {"topic": ""}, "driver.params", "topic"),
        ("publish_mqtt", {"topic": "a\0"}, "driver.params", "topic"),
        ("publish_mqtt", {"topic": "x" * 65_536}, "driver.params", "topic"),
        ("publish_mqtt", {"payload": "x" * 196_609}, "driver.params", "payload"),
        ("publish_mqtt", {"username": "x" * 65_536}, "driver.params", "username"),
        ("publish_mqtt", {"qos": 3}, "driver.params", "iot.publish_mqtt"),
        ("subscribe_mqtt", {"topic": "#/a"}, "driver.params", "topic"),
        ("subscribe_mqtt", {"topic": "a+"}, "driver.params", "topic"),
        ("subscribe_mqtt", {"duration": 0}, "driver.params", "iot.subscribe_mqtt"),
    ],
)
async def test_bad_input_calls_nobody(
    make_iot: Callable[..., Any],
    deaf: int,
    action: str,
    params: dict[str, Any],
    code: str,
    field: str,
) -> None:
    # an attempt would end as mqtt.unreachable
    user = User(make_iot, deaf)
    payload = {"payload": "x"} if action == "publish_mqtt" else {}
    found, text = await user.refusal(action, **(payload | params))
    assert (found, text.partition(":")[0]) == (code, field)


Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def broker(
    make_iot: Callable[..., Any],
) -> AsyncIterator[Callable[[Behave], Awaitable[User]]]:
    """A user of a broker that answers CONNECT and then behaves as told."""
    servers: list[asyncio.Server] = []

    async def start(behave: Behave) -> User:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"imlmesh-")
                writer.write(b"\x20\x02\x00\x00")
                await behave(reader, writer)
            writer.close()

        servers.append(await asyncio.start_server(serve, ADDRESS, 0))
        return User(make_iot, servers[-1].sockets[0].getsockname()[1])

    yield start
    for server in servers:
        server.close()


def message(topic: str, payload: bytes) -> bytes:
    body = struct.pack("!H", len(topic)) + topic.encode() + payload
    size, length = len(body), b""
    while True:
        size, low = divmod(size, 128)
        length += bytes((low | (128 if size else 0),))
        if not size:
            return b"\x30" + length + body


def suback(packet: bytes) -> bytes:
    return b"\x90\x03" + packet[:2] + b"\x00"


async def subscribed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read the rest of CONNECT and the SUBSCRIBE; say yes."""
    await reader.readuntil(b"\x82")
    await reader.readexactly(1)
    writer.write(suback(await reader.readexactly(2)))


async def test_a_flood_of_messages_ends_the_subscription_early(broker: Any) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await subscribed(reader, writer)
        while True:
            writer.write(message("a", b"x") * 100)
            await writer.drain()

    taken = await (await broker(flood)).do("subscribe_mqtt", duration=3_600)
    assert (taken["count"], taken["truncated"]) == (MQTT_MESSAGES, True)


async def test_a_few_large_messages_end_it_too(broker: Any) -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await subscribed(reader, writer)
        while True:
            writer.write(message("a", b"x" * (MQTT_KEPT_BYTES // 3)))
            await writer.drain()

    taken = await (await broker(flood)).do("subscribe_mqtt", duration=3_600)
    assert (taken["count"], taken["truncated"]) == (2, True)


async def test_an_endless_packet_is_not_kept(broker: Any) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await subscribed(reader, writer)
        writer.write(b"\x30\xff\xff\xff\x7f")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()

    code, text = await (await broker(endless)).refusal("subscribe_mqtt", duration=3_600)
    assert (code, "more than" in text) == ("mqtt.unreachable", True)


async def test_garbage_ends_a_subscription_at_once(broker: Any) -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await subscribed(reader, writer)
        writer.write(b"\x30\x01\xff" + bytes(200))
        await reader.read()

    code, _ = await (await broker(garbage)).refusal("subscribe_mqtt", duration=3_600)
    assert code == "mqtt.unreachable"


async def test_a_broker_that_goes_away_is_told(broker: Any) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await subscribed(reader, writer)

    code, _ = await (await broker(leave)).refusal("subscribe_mqtt", duration=3_600)
    assert code == "mqtt.unreachable"


async def test_a_broker_that_never_acknowledges_is_a_timeout(broker: Any) -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    code, text = await (await broker(mute)).refusal("publish_mqtt", payload="x", qos=1, timeout=1)
    assert (code, text.partition(":")[0]) == ("driver.timeout", "timeout")


async def test_a_cancelled_subscription_closes_its_connection(broker: Any) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await subscribed(reader, writer)
        begun.set()
        await reader.read()
        ended.set()

    user = await broker(hold)
    taking = asyncio.create_task(user.do("subscribe_mqtt", duration=3_600))
    async with asyncio.timeout(WITHIN_S):
        await begun.wait()
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        await ended.wait()


def test_these_actions_wait_on_the_loop_and_disturb_no_pin() -> None:
    assert {Iot.runs_of(name) for name in ("publish_mqtt", "subscribe_mqtt")} == {"loop"}
    assert Iot.runs_of("digital_write") == "process"
