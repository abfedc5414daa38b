"""What every broker of a mesh promises: one body over Mosquitto and the embedded broker."""

import asyncio
import contextlib
import shutil
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import gmqtt
import paho.mqtt.client as paho
import pytest
from cryptography import x509
from gmqtt.mqtt.constants import MQTTv311

from imlmesh_broker import Broker, BrokerPlace
from imlmesh_broker.choice import BROKERS
from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.probe import Cast, Probe
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from node_folders import make_node

BASE = "imlmesh/1/home"
ME = "orchestra"
PASSED_WITHIN_S = 60


class Heard:
    def __init__(self, will: Will | None = None) -> None:
        self.ups: asyncio.Queue[None] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._will = will

    def will(self) -> Will | None:
        return self._will

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self.ups.put_nowait(None)

    def link_down(self, reason: str) -> None:
        self.downs.put_nowait(reason)

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self.messages.put_nowait((topic, payload))


def mesh_at(root: Path) -> Home:
    home = Home(root)
    authority = Authority.create(home, "home", ME)
    for name in ("a", "b"):
        make_node(authority, name, home.node(name), brokers=("127.0.0.1:8883",))
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return mesh_at(tmp_path / "home")


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
async def broker(request: pytest.FixtureRequest, home: Home) -> AsyncIterator[Broker]:
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    keys = ControlKeys.load(home.ca, "home")
    started = BROKERS[request.param]("home", ME, place, keys.context)
    async with asyncio.timeout(PASSED_WITHIN_S):
        await started.start()
        try:
            yield started
        finally:
            await started.stop()


@pytest.fixture
async def join(home: Home, broker: Broker) -> AsyncIterator[Callable[..., object]]:
    links: list[MqttLink] = []

    async def start(
        name: str, *subscriptions: str, will: Will | None = None
    ) -> tuple[MqttLink, Heard]:
        filters = subscriptions or (f"{BASE}/all/+",)
        address = ("127.0.0.1", port_of(broker, name))
        link = MqttLink([address], name, context_of(home, name), filters)
        heard = Heard(will)
        links.append(link)
        link.start(heard)
        await heard.ups.get()
        return link, heard

    yield start
    for link in links:
        await link.close()


def port_of(broker: Broker, name: str) -> int:
    return broker.control_port if name == ME else broker.port


def serial_of(home: Home, name: str) -> int:
    pem = (home.node(name) / "keys" / "node.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem).serial_number


def context_of(home: Home, name: str) -> ssl.SSLContext:
    if name == ME:
        return ControlKeys.load(home.ca, "home").context()
    return NodeKeys.load(home.node(name), "home").context()


def anonymous_context(home: Home) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(home.ca / "control-ca.pem"))
    context.check_hostname = False
    return context


def stranger_context(home: Home, folder: Path) -> ssl.SSLContext:
    other = mesh_at(folder)
    # The stranger trusts our broker, so that it is the broker who refuses.
    for name in ("root.pub", "trust"):
        shutil.copy(home.ca / name, other.node("a") / "keys" / name)
    return context_of(other, "a")


@pytest.fixture
async def visit(home: Home, broker: Broker) -> AsyncIterator[Callable[..., Awaitable[Visitor]]]:
    inside: list[Visitor] = []

    async def enter(name: str, *filters: str, will: Message | None = None) -> Visitor:
        door = Door("127.0.0.1", port_of(broker, name), context_of(home, name))
        visitor = await Visitor.enter(door, name, will)
        inside.append(visitor)
        if filters:
            await visitor.subscribe(*filters)
        return visitor

    yield enter
    for visitor in inside:
        visitor.vanish()


async def ended(visitor: Visitor) -> None:
    """Returns when the broker has closed its connection."""
    with contextlib.suppress(LinkError):
        while True:
            await visitor.packet()
    with pytest.raises(LinkError, match="ended it"):
        await visitor.packet()


async def refused(home: Home, port: int) -> str:
    link = MqttLink([("127.0.0.1", port)], "a", context_of(home, "a"), (f"{BASE}/to/a/+",))
    heard = Heard()
    link.start(heard)
    reason = await heard.downs.get()
    await link.close()
    assert heard.ups.empty()
    return reason.partition(":")[0]


async def test_it_passes_the_probe(home, broker, tmp_path):
    async def revoke() -> None:
        Authority.open(home).revoke([serial_of(home, name) for name in ("a", "b")])

    cast = Cast(
        anonymous=anonymous_context(home),
        stranger=stranger_context(home, tmp_path / "other"),
        control=context_of(home, ME),
        node=("a", context_of(home, "a")),
        other=("b", context_of(home, "b")),
        revoke=revoke,
    )
    places = [("127.0.0.1", port) for port in (broker.port, broker.control_port)]
    findings = await Probe("home", *places, cast).run()
    assert [finding for finding in findings if not finding.passed] == []
    assert len(findings) == 17


async def test_without_tls_nobody_comes_in(broker):
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01z")
    answer = b""
    # It is closed at once, or when the time for a handshake is over.
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(1):
            answer = await reader.read(4)
    assert answer[:1] != b"\x20"
    writer.transport.abort()


async def test_older_tls_is_refused(home, broker):
    context = anonymous_context(home)
    keys = home.node("a") / "keys"
    context.load_cert_chain(keys / "node.pem", keys / "node.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r".") as caught:
        await asyncio.open_connection("127.0.0.1", broker.port, ssl=context)
    assert isinstance(caught.value, ssl.SSLError | ConnectionResetError)


async def test_a_link_is_told_why_it_is_refused(home, broker, tmp_path):
    other = mesh_at(tmp_path / "other")
    assert await refused(other, broker.port) == "link.tls"
    for name in ("root.pub", "trust"):
        shutil.copy(home.ca / name, other.node("a") / "keys" / name)
    assert await refused(other, broker.port) == "link.refused"


async def test_the_brokers_own_certificate_is_no_clients(home, broker):
    context = anonymous_context(home)
    context.load_cert_chain(home.broker / "broker.pem", home.broker / "broker.key")
    with pytest.raises(LinkError) as caught:
        await Visitor.enter(Door("127.0.0.1", broker.port, context), "broker")
    assert caught.value.code == "link.refused"


async def test_a_node_reaches_its_own_topics_alone(join):
    _, orchestrator = await join(ME, f"{BASE}/#")
    a, a_heard = await join("a", "#")
    b, _ = await join("b")
    for topic in (
        f"{BASE}/to/a/delegate",
        f"{BASE}/from/b/complete",
        f"{BASE}/all/command",
        f"{BASE}/orchestrator/orchestra/status",
        "imlmesh/1/other/from/a/complete",
    ):
        a.publish(topic, b"forged")
    a.publish(f"{BASE}/from/a/complete", b"own")
    assert await orchestrator.messages.get() == (f"{BASE}/from/a/complete", b"own")
    b.publish(f"{BASE}/from/b/complete", b"of b")
    assert await orchestrator.messages.get() == (f"{BASE}/from/b/complete", b"of b")
    assert orchestrator.messages.empty()
    assert a_heard.messages.empty()
    assert a.unacked == 0


async def test_a_node_hears_its_own_topics_alone(join):
    orchestrator, _ = await join(ME, f"{BASE}/from/#")
    _, a = await join("a", "#", f"{BASE}/to/+/+")
    orchestrator.publish(f"{BASE}/to/b/delegate", b"for b")
    orchestrator.publish(f"{BASE}/to/a/delegate", b"for a")
    assert await a.messages.get() == (f"{BASE}/to/a/delegate", b"for a")


async def test_an_answer_waits_for_no_acknowledgement(join):
    """With Nagle's rule each one would wait 40 ms for the peer's delayed acknowledgement."""
    orchestrator, heard_back = await join(ME, f"{BASE}/from/+/+")
    node, heard = await join("a", f"{BASE}/to/a/+")
    taken_s = []
    for number in range(31):
        began_s = time.perf_counter()
        for part in range(2):
            orchestrator.publish(f"{BASE}/to/a/delegate", b"%d %d" % (number, part))
        for _ in range(2):
            await heard.messages.get()
            node.publish(f"{BASE}/from/a/complete", b"done")
        for _ in range(2):
            await heard_back.messages.get()
        taken_s.append(time.perf_counter() - began_s)
    assert statistics.median(taken_s) < 0.02, taken_s


async def test_a_will_obeys_the_rules(join):
    _, orchestrator = await join(ME, f"{BASE}/from/#")
    a, _ = await join("a", will=Will(f"{BASE}/from/a/status", b"a is gone"))
    b, _ = await join("b", will=Will(f"{BASE}/from/a/status", b"b says that a is gone"))
    for link in (b, a):
        link._session.abort()
    assert await orchestrator.messages.get() == (f"{BASE}/from/a/status", b"a is gone")
    assert orchestrator.messages.empty()


async def test_a_second_connection_ends_the_first(visit):
    control = await visit(ME, f"{BASE}/from/#")
    first = await visit(
        "a", f"{BASE}/to/a/+", will=Message(f"{BASE}/from/a/status", b"1", 1, False)
    )
    second = await visit("a", f"{BASE}/to/a/+")
    assert (await control.hear()).payload == b"1"
    with pytest.raises(LinkError) as caught:
        await first.hear()
    assert caught.value.code == "link.down"
    control.publish(Message(f"{BASE}/to/a/ack", b"for the second", 1, False))
    assert (await second.hear()).payload == b"for the second"


async def test_the_lower_qos_of_sender_and_taker_counts(visit):
    control = await visit(ME)
    node = await visit("a", f"{BASE}/to/a/+")
    for qos in (0, 1):
        control.publish(Message(f"{BASE}/to/a/ack", b"", qos, False))
        assert (await node.hear()).qos == qos


async def test_what_is_retained_comes_marked_and_the_rest_does_not(visit):
    node = await visit("a")
    early = await visit(ME, f"{BASE}/from/#")
    status = Message(f"{BASE}/from/a/status", b"here", 1, True)
    node.publish(status)
    assert await early.hear() == Message(status.topic, b"here", 1, False)
    assert await (await visit(ME, f"{BASE}/from/+/status")).hear() == status


async def test_unsubscribing_ends_delivery(visit):
    control = await visit(ME, f"{BASE}/from/#", f"{BASE}/from/a/status")
    topic = f"{BASE}/from/#".encode()
    control.send(b"\xa2" + bytes((4 + len(topic), 0, 9, 0, len(topic))) + topic)
    assert await control.packet() == (0xB0, b"\x00\x09")
    node = await visit("a")
    node.publish(Message(f"{BASE}/from/a/complete", b"unheard", 1, False))
    node.publish(Message(f"{BASE}/from/a/status", b"heard", 1, False))
    assert (await control.hear()).payload == b"heard"


async def test_what_is_said_before_a_goodbye_counts_and_the_goodbye_too(visit):
    control = await visit(ME, f"{BASE}/from/#")
    will = Message(f"{BASE}/from/a/status", b"will", 1, False)
    leaving = await visit("a", will=will)
    leaving.send(b"\x40\x02\x00\x09" * 20_000)  # acknowledges what never came: means nothing
    leaving.publish(Message(f"{BASE}/from/a/event/log", b"last", 0, False))
    leaving.leave()
    assert (await control.hear()).payload == b"last"
    (await visit("b")).publish(Message(f"{BASE}/from/b/complete", b"", 1, False))
    assert (await control.hear()).topic == f"{BASE}/from/b/complete"


async def test_a_ping_is_answered(visit):
    control = await visit(ME)
    control.send(b"\xc0\x00")
    assert await control.packet() == (0xD0, b"")


MALFORMED = (
    b"\x30\x03\x00\x09x",
    b"\x82\x06\x00\x01\x00\x01#\x03",
    b"\x82\x02\x00\x01",
    b"\xf0\x00",
    b"\x00\x00",
    b"\x30\xff\xff\xff\xff\x01",
    b"\x32\x05\x00\x03a/#",
)


async def test_a_malformed_packet_ends_its_sender_alone(visit):
    control = await visit(ME, f"{BASE}/from/#")
    good = await visit("b")
    for packet in MALFORMED:
        bad = await visit("a")
        bad.send(packet)
        await ended(bad)
        good.publish(Message(f"{BASE}/from/b/complete", packet, 1, False))
        assert (await control.hear()).payload == packet


async def test_gmqtt_goes_in_and_out(home, broker, visit):
    control = await visit(ME, f"{BASE}/from/#")
    client = gmqtt.Client("a")
    got: asyncio.Queue[bytes] = asyncio.Queue()
    subscribed = asyncio.Event()
    client.on_message = lambda _c, _t, payload, *_: got.put_nowait(payload)
    client.on_subscribe = lambda *_: subscribed.set()
    await client.connect("127.0.0.1", broker.port, ssl=context_of(home, "a"), version=MQTTv311)
    client.subscribe(f"{BASE}/to/a/+", qos=1)
    await subscribed.wait()
    control.publish(Message(f"{BASE}/to/a/ack", b"in", 1, False))
    assert await got.get() == b"in"
    client.publish(f"{BASE}/from/a/complete", b"out", qos=1)
    assert (await control.hear()).payload == b"out"
    # gmqtt fails when the broker closes before it does.
    with contextlib.suppress(OSError):
        await client.disconnect()


async def test_paho_goes_in_and_out(home, broker, visit):
    control = await visit(ME, f"{BASE}/from/#")
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[bytes] = asyncio.Queue()

    def tell(what: bytes) -> None:
        loop.call_soon_threadsafe(told.put_nowait, what)

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, "a")
    context = anonymous_context(home)
    keys = home.node("a") / "keys"
    context.load_cert_chain(keys / "node.pem", keys / "node.key")
    client.tls_set_context(context)
    client.on_connect = lambda c, *_: c.subscribe(f"{BASE}/to/a/+", 1)
    client.on_subscribe = lambda *_: tell(b"subscribed")
    client.on_message = lambda _c, _u, message: tell(message.payload)
    client.on_disconnect = lambda *_: tell(b"gone")
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert await told.get() == b"subscribed"
    control.publish(Message(f"{BASE}/to/a/ack", b"in", 1, False))
    assert await told.get() == b"in"
    client.publish(f"{BASE}/from/a/complete", b"out", qos=1)
    assert (await control.hear()).payload == b"out"
    client.publish(f"{BASE}/from/a/complete", bytes(limits.BROKER_PACKET_BYTES), qos=0)
    assert await told.get() == b"gone"
    client.loop_stop()


@pytest.mark.mosquitto
@pytest.mark.usefixtures("mosquitto_clients")
async def test_mosquittos_own_clients_go_in_and_out(home, broker, visit):
    node = await visit("a")
    node.publish(Message(f"{BASE}/from/a/status", b"here", 1, True))
    await node.packet()
    door = ["-h", "127.0.0.1", "--cafile", str(home.ca / "control-ca.pem")]
    door += ["--insecure", "-q", "1", "--tls-version", "tlsv1.3"]
    control = [
        "-p",
        str(broker.control_port),
        "-i",
        ME,
        "--cert",
        str(home.ca / "control.pem"),
        "--key",
        str(home.ca / "control.key"),
    ]
    keys = home.node("b") / "keys"
    own = [
        "-p",
        str(broker.port),
        "-i",
        "b",
        "--cert",
        str(keys / "node.pem"),
        "--key",
        str(keys / "node.key"),
    ]
    hearing = await asyncio.create_subprocess_exec(
        *("mosquitto_sub", *door, *control, "-t", f"{BASE}/from/#", "-C", "2", "-v"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert hearing.stdout is not None
    assert await hearing.stdout.readline() == f"{BASE}/from/a/status here\n".encode()
    saying = await asyncio.create_subprocess_exec(
        *("mosquitto_pub", *door, *own, "-t", f"{BASE}/from/b/complete", "-m", "out")
    )
    assert await saying.wait() == 0
    assert await hearing.stdout.readline() == f"{BASE}/from/b/complete out\n".encode()
    assert await hearing.wait() == 0
