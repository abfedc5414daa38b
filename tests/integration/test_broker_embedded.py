"""The embedded broker under clients that misbehave: refused or bounded, a line in its log, others unaffected."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from imlmesh_broker import BrokerPlace, Embedded
from imlmesh_broker.embedded.codec import REFUSED_FILTER, Message
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from node_folders import make_node

BASE = "imlmesh/1/home"
ME = "orchestra"
NODES = ("a", "b", "c")
Enter = Callable[..., Awaitable[Visitor]]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    authority = Authority.create(home, "home", ME)
    for name in NODES:
        make_node(authority, name, home.node(name), brokers=("127.0.0.1:8883",))
    return home


@pytest.fixture
async def broker(home: Home) -> AsyncIterator[Embedded]:
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = Embedded("home", ME, place, ControlKeys.load(home.ca, "home").context)
    async with asyncio.timeout(60):
        await broker.start()
        try:
            yield broker
        finally:
            await broker.stop()


@pytest.fixture
async def enter(home: Home, broker: Embedded) -> AsyncIterator[Enter]:
    """Lets somebody in; `client_id` may differ from the name in the certificate."""
    inside: list[Visitor] = []

    async def visit(name: str, *filters: str, client_id: str | None = None) -> Visitor:
        port = broker.control_port if name == ME else broker.port
        door = Door("127.0.0.1", port, context_of(home, name))
        visitor = await Visitor.enter(door, name if client_id is None else client_id)
        inside.append(visitor)
        if filters:
            await visitor.subscribe(*filters)
        return visitor

    yield visit
    for visitor in inside:
        visitor.vanish()


def context_of(home: Home, name: str) -> ssl.SSLContext:
    if name == ME:
        return ControlKeys.load(home.ca, "home").context()
    return NodeKeys.load(home.node(name), "home").context()


async def until_logged(home: Home, code: str, client: str) -> str:
    """The message of the first such line."""
    while True:
        for text in (home.logs / "broker.log").read_text().splitlines():
            line = json.loads(text)
            if line.get("code") == code and line.get("client", "") == client:
                return str(line["message"])
        await asyncio.sleep(0.02)


async def until_ended(visitor: Visitor) -> None:
    with contextlib.suppress(LinkError):
        while True:
            await visitor.packet()
    with pytest.raises(LinkError, match="ended it"):
        await visitor.packet()


async def still_serves(control: Visitor, node: Visitor, name: str) -> None:
    """A message of `node` reaches control, and one of control the node, within a second."""
    topic = f"{BASE}/from/{name}/complete"
    async with asyncio.timeout(1):
        node.publish(Message(topic, b"up", 1, False))
        while (await control.hear()) != Message(topic, b"up", 1, False):
            pass
        control.publish(Message(f"{BASE}/to/{name}/ack", b"down", 1, False))
        assert (await node.hear()).payload == b"down"


async def test_another_client_id_is_refused_and_an_empty_one_is_its_own(home, enter):
    control, b = await enter(ME, f"{BASE}/from/#"), await enter("b", f"{BASE}/to/b/+")
    with pytest.raises(LinkError) as caught:
        await enter("a", client_id="b")
    assert caught.value.code == "link.refused"
    assert "it calls itself 'b'" in await until_logged(home, "link.refused", "a")
    await still_serves(control, b, "b")
    await still_serves(control, await enter("a", f"{BASE}/to/a/+", client_id=""), "a")


async def test_another_version_of_mqtt_is_told_so(home, broker):
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", broker.port, ssl=context_of(home, "a")
    )
    writer.write(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02aa")
    assert await reader.read() == b"\x20\x02\x00\x01"
    writer.close()


@pytest.mark.parametrize("packet", [b"\xc0\x00", b"\x30\x03\x00\x01t"], ids=["ping", "publish"])
async def test_whoever_does_not_begin_with_connect_is_ended(home, broker, packet):
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", broker.port, ssl=context_of(home, "a")
    )
    writer.write(packet)
    with contextlib.suppress(OSError):
        assert await reader.read() == b""
    writer.close()
    await until_logged(home, "message.invalid", "a")


async def test_whoever_is_refused_at_the_door_stands_in_the_log(home, broker):
    context = ssl.create_default_context(cafile=str(home.ca / "control-ca.pem"))
    context.check_hostname = False
    with pytest.raises(LinkError) as caught:
        await Visitor.enter(Door("127.0.0.1", broker.port, context), "a")
    assert caught.value.code == "link.refused"
    assert "a stranger" in await until_logged(home, "link.refused", "")


async def test_foreign_topics_are_refused_and_told_a_few_times(home, enter):
    control, node = await enter(ME, f"{BASE}/from/#"), await enter("a", f"{BASE}/to/a/+")
    assert await node.subscribe(f"{BASE}/from/b/#") == [REFUSED_FILTER]
    for number in range(200):
        node.publish(Message(f"{BASE}/from/b/{number}", b"forged", 1, False))
    await still_serves(control, node, "a")
    await until_logged(home, "broker.topic", "a")
    lines = (home.logs / "broker.log").read_text().splitlines()
    told = [line for line in lines if json.loads(line).get("code") == "broker.topic"]
    assert len(told) == limits.BROKER_REFUSALS_TOLD


async def test_10_000_subscriptions_are_bounded(home, broker, enter):
    control, node = await enter(ME, f"{BASE}/from/#"), await enter("a")
    for first in range(0, 10_000, 1_000):
        names = (f"{BASE}/orchestrator/{n}/status" for n in range(first, first + 1_000))
        granted = await node.subscribe(*names)
        taken = limits.BROKER_SUBSCRIPTIONS if first == 0 else 0
        assert (granted.count(1), granted.count(REFUSED_FILTER)) == (taken, 1_000 - taken)
    await until_logged(home, "broker.subscriptions", "a")
    await still_serves(control, await enter("b", f"{BASE}/to/b/+"), "b")


OWN = f"{BASE}/orchestrator/+/status".encode()
FLOODS = {
    "refused filters": b"\x82\x06\x00\x01\x00\x01a\x01" * 8_000,
    "filters": (b"\x82" + bytes((len(OWN) + 5, 0, 1, 0, len(OWN))) + OWN + b"\x01") * 2_000,
    "unsubscribing": b"\xa2\x05\x00\x01\x00\x01a" * 8_000,
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_of_small_packets_leaves_the_others_their_turn(home, broker, enter, flood):
    control, good = await enter(ME, f"{BASE}/from/#"), await enter("b", f"{BASE}/to/b/+")
    bad = await enter("a", *(f"{BASE}/orchestrator/{n}/status" for n in range(60)))

    async def send() -> None:
        while True:
            bad.send(FLOODS[flood])
            await bad.drained()

    async def read() -> None:
        while True:
            await bad.packet()

    flooding = [asyncio.create_task(send()), asyncio.create_task(read())]
    for _ in range(20):
        await still_serves(control, good, "b")
    assert not any(each.done() for each in flooding)
    for each in flooding:
        each.cancel()
    await asyncio.gather(*flooding, return_exceptions=True)


async def test_a_packet_of_more_filters_than_anybody_needs_ends_its_sender(home, enter):
    control, bad = await enter(ME, f"{BASE}/from/#"), await enter("a")
    with pytest.raises(LinkError, match="ended it"):
        await bad.subscribe(*["a"] * (limits.BROKER_FILTERS + 1))
    await until_logged(home, "message.too_large", "a")
    await still_serves(control, await enter("b", f"{BASE}/to/b/+"), "b")


async def test_an_oversize_packet_ends_its_sender_at_its_header(home, enter):
    control, bad = await enter(ME, f"{BASE}/from/#"), await enter("a")
    bad.send(b"\x30\xff\xff\xff\x7f")
    await until_ended(bad)
    await until_logged(home, "message.too_large", "a")
    await still_serves(control, await enter("b", f"{BASE}/to/b/+"), "b")


async def test_a_slow_reader_is_bounded_and_ended_alone(home, broker, enter):
    control = await enter(ME, f"{BASE}/from/#")
    await enter("a", f"{BASE}/to/a/+")
    piece = Message(f"{BASE}/to/a/delegate", bytes(200_000), 1, False)
    for _ in range(3 * limits.BROKER_QUEUED_BYTES // len(piece.payload)):
        control.publish(piece)
        await control.packet()
    await until_logged(home, "broker.slow", "a")
    assert psutil.Process(broker.pid).memory_info().rss < 120_000_000
    await still_serves(control, await enter("b", f"{BASE}/to/b/+"), "b")


async def test_who_never_reads_its_acknowledgements_is_ended(home, broker, enter):
    control, bad = await enter(ME, f"{BASE}/to/+/ack"), await enter("a")
    pings = b"\xc0\x00" * 100_000

    async def ping() -> None:
        with contextlib.suppress(OSError):
            while True:
                bad.send(pings)
                await bad.drained()

    pinging = asyncio.create_task(ping())
    await until_logged(home, "broker.slow", "a")
    pinging.cancel()
    assert psutil.Process(broker.pid).memory_info().rss < 120_000_000
    b = await enter("b", f"{BASE}/to/b/+")
    control.publish(Message(f"{BASE}/to/b/ack", b"down", 1, False))
    assert (await b.hear()).payload == b"down"


async def test_a_flood_is_held_back_until_control_has_read_it(home, broker, enter):
    control, loud = await enter(ME, f"{BASE}/from/#"), await enter("a")
    quiet = await enter("b", f"{BASE}/to/b/+")
    count = 3 * limits.BROKER_QUEUED_BYTES // 200_000

    async def flood() -> None:
        for number in range(count):
            payload = number.to_bytes(2) + bytes(200_000)
            loud.publish(Message(f"{BASE}/from/a/complete", payload, 1, False))
            await loud.drained()

    flooding = asyncio.create_task(flood())
    # It gets stuck: the broker reads no further.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await asyncio.shield(flooding)
    assert psutil.Process(broker.pid).memory_info().rss < 120_000_000
    heard = [int.from_bytes((await control.hear()).payload[:2]) for _ in range(count)]
    assert heard == list(range(count))
    await flooding
    await still_serves(control, quiet, "b")


async def test_silence_ends_a_client_and_publishes_its_will(home, broker, enter):
    control = await enter(ME, f"{BASE}/from/#")
    will = Message(f"{BASE}/from/a/status", b"silent", 1, False)
    door = Door("127.0.0.1", broker.port, context_of(home, "a"))
    silent = await Visitor.enter(door, "a", will, keepalive_s=1)
    door = Door("127.0.0.1", broker.port, context_of(home, "b"))
    patient = await Visitor.enter(door, "b", keepalive_s=0)
    await patient.subscribe(f"{BASE}/to/b/+")
    assert await control.hear() == will
    await until_ended(silent)
    assert "silent for 1.5 s" in await until_logged(home, "link.down", "a")
    await still_serves(control, patient, "b")
    patient.vanish()


async def test_a_retained_status_outlives_its_sender(enter):
    node = await enter("a")
    status = Message(f"{BASE}/from/a/status", b"here", 1, True)
    node.publish(status)
    await node.packet()
    node.leave()
    assert await (await enter(ME, f"{BASE}/from/#")).hear() == status
