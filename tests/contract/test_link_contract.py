"""What every link promises: one body over the memory twin and over MQTT with a real broker."""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest

from imlmesh_broker import Broker, BrokerPlace, choose_broker
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, ProtocolError
from imlmesh_runtime.link.base import Link, Will
from imlmesh_runtime.link.memory import MemoryHub, MemoryLink, MemoryPump
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from loopback import own_port
from node_folders import make_node

BASE = "imlmesh/1/home"
ORCHESTRATOR = "orchestra"


class Heard:
    """A shell that writes down what its link says; `will` may make one per session."""

    def __init__(self, will: Callable[[int], Will] | None = None) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.kept: list[bool] = []
        self.ups = 0
        self.downs: list[str] = []
        self.sessions = 0
        #: how many messages had come when the link last said that there are no more for now
        self.complete = 0
        self._will = will
        self._changed = asyncio.Event()

    def will(self) -> Will | None:
        self.sessions += 1
        return self._will(self.sessions) if self._will else None

    def handed_over(self) -> None:
        self.complete = len(self.messages)
        self._changed.set()

    def link_up(self) -> None:
        self.ups += 1
        self._changed.set()

    def link_down(self, reason: str) -> None:
        self.downs.append(reason)
        self._changed.set()

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self.messages.append((topic, payload))
        self.kept.append(retained)
        self._changed.set()
        if payload == b"raise":
            raise RuntimeError("the shell failed")

    async def until(self, true: Callable[[], bool], timeout_s: float = 10) -> None:
        async with asyncio.timeout(timeout_s):
            while not true():
                self._changed.clear()
                await self._changed.wait()


class Rig(Protocol):
    """A broker that a test can stop, and clients whose connections it can break."""

    def link(self, client_id: str, *subscriptions: str) -> Link: ...

    async def cut(self, client_id: str) -> None: ...

    async def stop_broker(self) -> None: ...

    async def start_broker(self) -> None: ...


class MemoryRig:
    def __init__(self) -> None:
        self.hub = MemoryHub(random.Random(7))

    def link(self, client_id: str, *subscriptions: str) -> Link:
        return MemoryLink(self.hub, client_id, subscriptions)

    async def cut(self, client_id: str) -> None:
        self.hub.drop(client_id)

    async def stop_broker(self) -> None:
        self.hub.stop()

    async def start_broker(self) -> None:
        self.hub.restart()


class Relay:
    """A TCP relay in front of the broker: breaking it is how a connection dies."""

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self.server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        except OSError:
            writer.transport.abort()
            return
        self._writers += [writer, far_writer]
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


class MqttRig:
    def __init__(self, home: Home, broker: Broker, relays: dict[str, tuple[Relay, int]]) -> None:
        self.home, self.broker, self.relays = home, broker, relays

    def link(self, client_id: str, *subscriptions: str) -> Link:
        keys: ControlKeys | NodeKeys
        if client_id == ORCHESTRATOR:
            keys = ControlKeys.load(self.home.ca, "home")
        else:
            keys = NodeKeys.load(self.home.node(client_id), "home")
        _, port = self.relays[client_id]
        return MqttLink([("127.0.0.1", port)], client_id, keys.context(), subscriptions)

    async def cut(self, client_id: str) -> None:
        self.relays[client_id][0].cut()

    async def stop_broker(self) -> None:
        await self.broker.stop()

    async def start_broker(self) -> None:
        await self.broker.start()


@contextlib.asynccontextmanager
async def mqtt_rig(folder: Path) -> AsyncIterator[MqttRig]:
    home = Home(folder / "home")
    authority = Authority.create(home, "home", ORCHESTRATOR)
    for name in ("a", "b"):
        make_node(authority, name, home.node(name), brokers=("127.0.0.1:8883",))
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log", port=own_port())
    keys = ControlKeys.load(home.ca, "home")
    broker = choose_broker(os.environ)("home", ORCHESTRATOR, place, keys.context)
    await broker.start()
    relays = {}
    for name in ("a", "b", ORCHESTRATOR):
        relay = Relay(broker.control_port if name == ORCHESTRATOR else broker.port)
        relays[name] = (relay, await relay.start())
    try:
        yield MqttRig(home, broker, relays)
    finally:
        await broker.stop()
        for relay, _ in relays.values():
            relay.server.close()
            relay.cut()


@pytest.fixture(
    params=["memory", "mqtt"],
)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    if request.param == "memory":
        memory = MemoryRig()
        pump = MemoryPump(memory.hub)
        yield memory
        pump.close()
    else:
        async with mqtt_rig(tmp_path) as mqtt:
            yield mqtt


@pytest.fixture
async def begin(rig: Rig) -> AsyncIterator[Callable[..., object]]:
    """Starts a link and waits until it is up; closes all at the end."""
    links: list[Link] = []

    async def start(
        client_id: str, *subscriptions: str, will: Callable[[int], Will] | None = None
    ) -> tuple[Link, Heard]:
        link = rig.link(client_id, *(subscriptions or (f"{BASE}/all/+",)))
        links.append(link)
        heard = Heard(will)
        link.start(heard)
        await heard.until(lambda: heard.ups == 1)
        return link, heard

    yield start
    for link in links:
        await link.close()


def gone(session: int) -> Will:
    return Will(f"{BASE}/from/a/status", b"gone %d" % session)


async def test_delivers_in_order_what_a_subscription_matches(begin):
    orchestrator, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, node_heard = await begin("a", f"{BASE}/to/a/+")
    count = limits.WINDOW_UNACKED * 5
    for number in range(count):
        node.publish(f"{BASE}/from/a/complete", b"%d" % number)
    orchestrator.publish(f"{BASE}/to/b/delegate", b"not for a")
    orchestrator.publish(f"{BASE}/to/a/delegate", b"for a")
    await heard.until(lambda: len(heard.messages) == count)
    await node_heard.until(lambda: bool(node_heard.messages))
    assert [int(payload) for _, payload in heard.messages] == list(range(count))
    assert node_heard.messages == [(f"{BASE}/to/a/delegate", b"for a")]


async def test_says_when_all_that_came_together_was_handed_over(begin):
    _, heard = await begin("a", f"{BASE}/to/a/+")
    sender, _ = await begin(ORCHESTRATOR)
    for number in range(20):
        sender.publish(f"{BASE}/to/a/ack", b"%d" % number)
    sender.flush()
    await heard.until(lambda: heard.complete == 20)
    assert len(heard.messages) == 20


async def test_everything_is_acknowledged_in_the_end(begin):
    orchestrator, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, node_heard = await begin("a", f"{BASE}/to/a/+")
    for _ in range(200):
        node.publish(f"{BASE}/from/a/complete", b"x" * 100)
    node.publish(f"{BASE}/from/a/event/log", b"last", qos=0)
    # The broker may let QoS 0 pass what waits for acknowledgement.
    await heard.until(lambda: len(heard.messages) == 201)
    assert heard.messages.count((f"{BASE}/from/a/event/log", b"last")) == 1
    orchestrator.publish(f"{BASE}/to/a/ack", b"")
    await node_heard.until(lambda: bool(node_heard.messages))
    assert node.unacked == 0


async def test_a_retained_message_waits_for_who_comes_later(begin):
    node, _ = await begin("a")
    node.publish(f"{BASE}/from/a/status", b"here", retain=True)
    node.publish(f"{BASE}/from/a/heartbeat", b"not kept")
    _, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    await heard.until(lambda: (f"{BASE}/from/a/status", b"here") in heard.messages)
    node.publish(f"{BASE}/from/a/status", b"", retain=True)
    await heard.until(lambda: heard.messages[-1][1] == b"")
    _, later = await begin("b", f"{BASE}/all/+")
    assert later.messages == []


async def test_what_the_broker_had_kept_is_marked_and_nothing_else(begin, rig):
    _, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, _ = await begin("a")
    node.publish(f"{BASE}/from/a/status", b"here", retain=True)
    node.publish(f"{BASE}/from/a/complete", b"done")
    await heard.until(lambda: len(heard.messages) == 2)
    await rig.cut(ORCHESTRATOR)
    await heard.until(lambda: heard.ups == 2)
    node.publish(f"{BASE}/from/a/complete", b"again")
    await heard.until(lambda: len(heard.messages) == 4)
    told = dict(zip(heard.messages[2:], heard.kept[2:], strict=True))
    assert heard.kept[:2] == [False, False], "it came while they listened"
    assert told == {
        (f"{BASE}/from/a/status", b"here"): True,
        (f"{BASE}/from/a/complete", b"again"): False,
    }


async def test_a_broken_connection_publishes_the_will_of_its_session(begin, rig):
    _, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, node_heard = await begin("a", f"{BASE}/to/a/+", will=gone)
    await rig.cut("a")
    await heard.until(lambda: (f"{BASE}/from/a/status", b"gone 1") in heard.messages)
    await node_heard.until(lambda: node_heard.ups == 2)
    assert node.connected
    assert node_heard.downs[0].startswith("link.down: ")
    sessions = node_heard.sessions
    await rig.cut("a")
    wanted = (f"{BASE}/from/a/status", b"gone %d" % sessions)
    await heard.until(lambda: wanted in heard.messages)


async def test_a_goodbye_publishes_no_will(begin):
    _, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, node_heard = await begin("a", will=gone)
    node.publish(f"{BASE}/from/a/status", b"offline", retain=True)
    await node.close()
    other, _ = await begin("b")
    other.publish(f"{BASE}/from/b/complete", b"after")
    await heard.until(lambda: (f"{BASE}/from/b/complete", b"after") in heard.messages)
    assert heard.messages[0] == (f"{BASE}/from/a/status", b"offline")
    assert len(heard.messages) == 2
    assert node_heard.downs == []
    assert not node.connected


async def test_a_session_that_begins_anew_ends_well_and_loses_nothing(begin):
    _, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, node_heard = await begin("a", f"{BASE}/to/a/+", will=gone)
    for number in range(50):
        node.publish(f"{BASE}/from/a/complete", b"%d" % number)
    node.begin_anew()
    node.begin_anew()
    await node_heard.until(lambda: node_heard.ups == 2)
    assert node.connected
    assert node_heard.sessions == 2
    assert len(node_heard.downs) == 1
    node.publish(f"{BASE}/from/a/complete", b"50")
    await heard.until(lambda: len(heard.messages) >= 51)
    assert [int(payload) for _, payload in heard.messages] == list(range(51))


async def test_without_a_session_nothing_begins_anew(rig):
    link = rig.link("a")
    link.begin_anew()
    assert not link.connected
    await link.close()


async def test_a_new_broker_finds_its_clients_again(begin, rig):
    orchestrator, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, node_heard = await begin("a", f"{BASE}/to/a/+")
    await rig.stop_broker()
    await heard.until(lambda: bool(heard.downs))
    await node_heard.until(lambda: bool(node_heard.downs))
    for link in (orchestrator, node):
        assert not link.connected
        assert link.last_error is not None
        assert link.last_error.code == "link.down"
        with pytest.raises(LinkError) as caught:
            link.publish(f"{BASE}/from/a/complete", b"lost")
        assert caught.value.code == "link.down"
    await rig.start_broker()
    await heard.until(lambda: heard.ups == 2, 15)
    await node_heard.until(lambda: node_heard.ups == 2, 15)
    orchestrator.publish(f"{BASE}/to/a/delegate", b"again")
    node.publish(f"{BASE}/from/a/complete", b"again")
    await heard.until(lambda: (f"{BASE}/from/a/complete", b"again") in heard.messages)
    await node_heard.until(lambda: (f"{BASE}/to/a/delegate", b"again") in node_heard.messages)


async def test_publishing_before_the_session_is_refused(rig):
    link = rig.link("a")
    with pytest.raises(LinkError) as caught:
        link.publish(f"{BASE}/from/a/complete", b"early")
    assert caught.value.code == "link.down"
    await link.close()


async def test_an_exception_of_the_shell_is_counted_and_logged(begin, caplog):
    orchestrator, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, _ = await begin("a")
    with caplog.at_level(logging.ERROR):
        node.publish(f"{BASE}/from/a/complete", b"raise")
        node.publish(f"{BASE}/from/a/complete", b"next")
        await heard.until(lambda: len(heard.messages) == 2)
    assert orchestrator.faults == 1
    assert orchestrator.connected
    traces = [record for record in caplog.records if record.exc_info]
    assert [str(record.exc_info[1]) for record in traces] == ["the shell failed"]


async def test_a_message_above_the_limit_is_refused_before_it_leaves(begin):
    node, _ = await begin("a")
    with pytest.raises(ProtocolError) as caught:
        node.publish(f"{BASE}/from/a/complete", bytes(limits.MESSAGE_BYTES + 1))
    assert caught.value.code == "message.too_large"
    assert node.connected


async def test_the_largest_message_passes(begin):
    _, heard = await begin(ORCHESTRATOR, f"{BASE}/from/#")
    node, _ = await begin("a")
    node.publish(f"{BASE}/from/a/complete", bytes(limits.MESSAGE_BYTES))
    await heard.until(lambda: bool(heard.messages))
    assert len(heard.messages[0][1]) == limits.MESSAGE_BYTES
