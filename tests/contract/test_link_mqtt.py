"""What only the MQTT link has: its limits, and a code for each way a connection can fail."""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.main import load_setup
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, ProtocolError
from imlmesh_runtime.link import mqtt
from imlmesh_runtime.link.base import Will, retry_ms
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.link.packets import next_packet
from imlmesh_runtime.pairs import own_certificate, write_pair
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import NodeKeys, new_tls_key
from node_folders import make_node

TOPIC = "imlmesh/1/home/to/a/delegate"


class Heard:
    def __init__(self) -> None:
        self.ups: asyncio.Queue[None] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    def will(self) -> Will | None:
        return None

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self.ups.put_nowait(None)

    def link_down(self, reason: str) -> None:
        self.downs.put_nowait(reason)

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self.messages.put_nowait((topic, payload))


class SlowBroker:
    """Answers CONNECT and SUBSCRIBE as told and acknowledges a PUBLISH only when asked to."""

    def __init__(self, connack: int = 0, granted: int = 1) -> None:
        self.published: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self._connack = connack
        self._granted = granted

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, body = await read_packet(reader)
                if kind == 0x10:
                    writer.write(bytes((0x20, 2, 0, self._connack)))
                elif kind == 0x80:
                    writer.write(b"\x90\x03" + body[:2] + bytes((self._granted,)))
                elif kind == 0x30:
                    (length,) = struct.unpack("!H", body[:2])
                    (mid,) = struct.unpack("!H", body[2 + length : 4 + length])
                    self.published.put_nowait((mid, body[4 + length :]))
        writer.close()

    def seen(self) -> bytes:
        """The certificate of the last client."""
        certificate: bytes = self.writer.get_extra_info("ssl_object").getpeercert(True)
        return certificate

    def acknowledge(self, mid: int) -> None:
        self.writer.write(b"\x40\x02" + struct.pack("!H", mid))

    def send(self, topic: str, payload: bytes) -> None:
        body = struct.pack("!H", len(topic)) + topic.encode() + payload
        self.writer.write(b"\x30" + length_of(body) + body)


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    (kind,) = await reader.readexactly(1)
    size = shift = 0
    while True:
        (byte,) = await reader.readexactly(1)
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return kind & 0xF0, await reader.readexactly(size)


def length_of(body: bytes) -> bytes:
    size, out = len(body), bytearray()
    while True:
        size, low = divmod(size, 128)
        out.append(low | (0x80 if size else 0))
        if not size:
            return bytes(out)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return mesh_at(tmp_path / "home")


def mesh_at(root: Path) -> Home:
    home = Home(root)
    authority = Authority.create(home, "home", "orchestra")
    make_node(authority, "a", home.node("a"), brokers=("127.0.0.1:8883",))
    return home


@contextlib.asynccontextmanager
async def listening(home: Home, broker: SlowBroker, *, proof: bool = True) -> AsyncIterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.broker / "broker.pem", home.broker / "broker.key")
    context.load_verify_locations(home.ca / "node-ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED if proof else ssl.CERT_NONE
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def link_to(port: int, home: Home, *before: int) -> MqttLink:
    """A link that tries the ports `before` first."""
    context = NodeKeys.load(home.node("a"), "home").context()
    addresses = [("127.0.0.1", one) for one in (*before, port)]
    return MqttLink(addresses, "a", context, ("imlmesh/1/home/to/a/+",), lambda: 0.0)


async def why_down(port: int, home: Home) -> LinkError:
    link, heard = link_to(port, home), Heard()
    link.start(heard)
    async with asyncio.timeout(10):
        reason = await heard.downs.get()
    error = link.last_error
    await link.close()
    assert heard.ups.empty()
    assert isinstance(error, LinkError)
    assert reason == str(error)
    return error


async def test_the_window_holds_back_and_keeps_order(home, monkeypatch):
    monkeypatch.setattr(limits, "LINK_WAITING_MESSAGES", 10)
    broker, heard = SlowBroker(), Heard()
    async with asyncio.timeout(10), listening(home, broker) as port:
        link = link_to(port, home)
        link.start(heard)
        await heard.ups.get()
        count = limits.WINDOW_UNACKED + 10
        for number in range(count):
            link.publish(TOPIC, b"%d" % number)
        with pytest.raises(LinkError) as caught:
            link.publish(TOPIC, b"one too many")
        assert caught.value.code == "link.full"
        first = [await broker.published.get() for _ in range(limits.WINDOW_UNACKED)]
        assert broker.published.empty()
        assert link.unacked == count
        rest = []
        for mid, _ in first[:10]:
            broker.acknowledge(mid)
            rest.append(await broker.published.get())
        assert [int(payload) for _, payload in first + rest] == list(range(count))
        assert link.unacked == limits.WINDOW_UNACKED
        for mid, _ in first[10:] + rest:
            broker.acknowledge(mid)
        await link.close()


async def test_what_was_not_acknowledged_is_forgotten_with_the_session(home):
    broker, heard = SlowBroker(), Heard()
    async with asyncio.timeout(10), listening(home, broker) as port:
        link = link_to(port, home)
        link.start(heard)
        await heard.ups.get()
        for number in range(limits.WINDOW_UNACKED + 1):
            link.publish(TOPIC, b"%d" % number)
        broker.writer.transport.abort()
        await heard.ups.get()
        assert link.unacked == 0
        link.publish(TOPIC, b"new")
        while (await broker.published.get())[1] != b"new":
            pass
        broker.acknowledge(1)
        broker.acknowledge(2)
        await link.close()


async def test_a_packet_above_the_limit_closes_the_connection(home):
    broker, heard = SlowBroker(), Heard()
    async with asyncio.timeout(10), listening(home, broker) as port:
        link = link_to(port, home)
        link.start(heard)
        await heard.ups.get()
        broker.send(TOPIC, bytes(limits.LINK_PACKET_BYTES + 1))
        assert (await heard.downs.get()).startswith("message.too_large: ")
        await heard.ups.get()
        broker.send(TOPIC, b"fits")
        assert await heard.messages.get() == (TOPIC, b"fits")
        await link.close()


async def test_the_connection_sends_without_delay(home):
    broker, heard = SlowBroker(), Heard()
    async with asyncio.timeout(10), listening(home, broker) as port:
        link = link_to(port, home)
        link.start(heard)
        await heard.ups.get()
        tcp = link._session._protocol._transport.get_extra_info("socket")
        assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await link.close()


async def test_a_closed_port_is_link_down(home):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert (await why_down(unused.getsockname()[1], home)).code == "link.down"


async def test_the_next_address_is_tried_when_one_is_closed(home):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()[1]
        async with listening(home, SlowBroker()) as port:
            link, heard = link_to(port, home, nobody), Heard()
            link.start(heard)
            async with asyncio.timeout(10):
                reason = await heard.downs.get()
                await heard.ups.get()
            await link.close()
    assert reason.startswith("link.down")


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of each attempt for which a link would have waited; it does not."""
    told: list[int] = []

    def at_once(attempt: int, _draw: float, most_ms: int) -> int:
        told.append(attempt)
        return 0

    monkeypatch.setattr("imlmesh_runtime.link.mqtt.retry_ms", at_once)
    return told


async def test_a_session_that_worked_is_no_failed_attempt_when_it_breaks(
    home, monkeypatch, attempts
):
    """Else each torn connection of a bad radio would keep a node away for longer than the one before."""
    broker, heard = SlowBroker(), Heard()
    async with asyncio.timeout(10), listening(home, broker) as port:
        link = link_to(port, home)
        link.start(heard)
        for lasted_ms in (60_000, 60_000, 0, 60_000):
            monkeypatch.setattr(limits, "LINK_LASTED_MS", lasted_ms)
            await heard.ups.get()
            broker.writer.transport.abort()
            await heard.downs.get()
        await heard.ups.get()
        await link.close()
    assert attempts == [0, 1, 0, 1]


async def test_an_attempt_that_took_long_and_came_to_nothing_is_a_failed_one(
    home, monkeypatch, attempts
):
    monkeypatch.setattr(limits, "LINK_ENTER_MS", 50)
    monkeypatch.setattr(limits, "LINK_LASTED_MS", 0)
    monkeypatch.setattr(limits, "LINK_RETRY_MAX_MS", 0)
    broker, heard = SlowBroker(), Heard()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(broker, "serve", silent)
    async with asyncio.timeout(10), listening(home, broker) as port:
        link = link_to(port, home)
        link.start(heard)
        for _ in range(3):
            await heard.downs.get()
        await link.close()
    assert attempts[:3] == [0, 1, 2]


async def test_a_broker_of_another_mesh_is_link_tls(home, tmp_path):
    other = mesh_at(tmp_path / "other")
    async with listening(other, SlowBroker(), proof=False) as port:
        assert (await why_down(port, home)).code == "link.tls"


@pytest.mark.parametrize(
    ("connack", "code"), [(2, "link.refused"), (3, "link.down"), (5, "link.refused")]
)
async def test_what_the_broker_answers_to_connect(home, connack, code):
    async with listening(home, SlowBroker(connack=connack)) as port:
        assert (await why_down(port, home)).code == code


async def test_a_refused_subscription_is_link_refused(home):
    async with listening(home, SlowBroker(granted=128)) as port:
        assert (await why_down(port, home)).code == "link.refused"


async def test_a_broker_that_never_answers_is_link_down(home, monkeypatch):
    monkeypatch.setattr(limits, "LINK_ENTER_MS", 200)
    broker = SlowBroker()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    monkeypatch.setattr(broker, "serve", silent)
    async with listening(home, broker) as port:
        error = await why_down(port, home)
    assert error.code == "link.down"
    assert "no answer in time" in error.message


async def test_a_clock_that_is_behind_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "CERTIFICATE_BACKDATE_MS", -24 * 3_600_000)
    home = mesh_at(tmp_path / "home")
    async with listening(home, SlowBroker(), proof=False) as port:
        assert (await why_down(port, home)).code == "clock.behind"


async def test_who_learns_the_time_later_leaves_a_broker_of_another_year(home):
    now_ms, year_ms = time.time_ns() // 1_000_000, 365 * 86_400_000
    heard = Heard()
    async with asyncio.timeout(10), listening(home, SlowBroker()) as port:
        link = link_to(port, home)
        link.start(heard)
        await heard.ups.get()
        assert link.check_peer(now_ms)
        assert link.connected
        for years in (-3, 3):
            assert not link.check_peer(now_ms + years * year_ms)
            assert (await heard.downs.get()).startswith("link.tls: ")
            await heard.ups.get()
        await link.close()


async def test_each_session_is_begun_with_the_keys_of_its_time(home):
    """The broker sees the certificate that was there when the session began anew."""
    broker, heard = SlowBroker(), Heard()
    node_pem = home.node("a") / "keys" / "node.pem"
    context = NodeKeys.load(home.node("a"), "home").context
    async with asyncio.timeout(10), listening(home, broker) as port:
        link = MqttLink([("127.0.0.1", port)], "a", context, ("imlmesh/1/home/to/a/+",))
        link.start(heard)
        await heard.ups.get()
        first = broker.seen()
        assert first == own_certificate(node_pem)
        key, request = new_tls_key("a")
        write_pair(node_pem, key, Authority.open(home).certify(request, "a").pem)
        link.begin_anew()
        await heard.ups.get()
        assert broker.seen() == own_certificate(node_pem) != first
        await link.close()


async def first_pauses_ms(link: MqttLink, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The longest that the dice may give before each attempt; counted and not waited for."""
    pauses_ms: list[int] = []

    def counted(attempt: int, _draw: float, most_ms: int) -> int:
        pauses_ms.append(retry_ms(attempt, 1.0, most_ms))
        return 0

    monkeypatch.setattr(mqtt, "retry_ms", counted)
    heard = Heard()
    link.start(heard)
    async with asyncio.timeout(10):
        while len(pauses_ms) < 7:
            await heard.downs.get()
    await link.close()
    return pauses_ms[:7]


async def test_the_orchestrator_is_back_sooner_than_a_node(home, monkeypatch):
    """One client, whose absence stops the mesh, need not spare a broker as thousands must."""
    node = await first_pauses_ms(link_to(1, home), monkeypatch)
    assert node == [250, 500, 1_000, 2_000, 4_000, 8_000, limits.LINK_RETRY_MAX_MS]
    control = await first_pauses_ms(load_setup(home, "127.0.0.1:1").link(), monkeypatch)
    assert control == [250, 500, 1_000, *[limits.CONTROL_RETRY_MAX_MS] * 4]
    assert limits.CONTROL_RETRY_MAX_MS <= limits.LINK_RETRY_MAX_MS / 5


async def test_a_will_that_cannot_be_made_begins_no_session(home, caplog):
    class Failing(Heard):
        def will(self) -> Will | None:
            raise RuntimeError("no key")

    link, heard = link_to(1, home), Failing()
    with caplog.at_level(logging.ERROR):
        link.start(heard)
        async with asyncio.timeout(10):
            assert (await heard.downs.get()).startswith("link.down: no will")
    assert link.faults >= 1
    await link.close()


def test_packets_are_cut_where_they_end():
    stream = bytearray(b"\x30\x02ab\x30\x80\x01" + bytes(128) + b"\x40")
    assert next_packet(stream, 0) == (2, 4)
    assert next_packet(stream, 4) == (7, 135)
    assert next_packet(stream, 135) is None
    assert next_packet(bytearray(b"\x30\x81"), 0) is None
    assert next_packet(bytearray(b"\x30\x05abcd"), 0) is None


@pytest.mark.parametrize(
    ("start", "code"),
    [
        (b"\x30\xff\xff\x7f", "message.too_large"),
        (b"\x30\x80\x80\x80\x80\x01", "message.invalid"),
    ],
)
def test_a_length_that_no_packet_of_ours_has_is_refused(start, code):
    with pytest.raises(ProtocolError) as caught:
        next_packet(bytearray(start), 0)
    assert caught.value.code == code
