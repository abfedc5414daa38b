"""A real Mosquitto with our configuration: whom it lets in, and what they reach there."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import paho.mqtt.client as paho
import pytest

from imlmesh_broker import Mosquitto
from imlmesh_broker.mosquitto import BrokerPlace, find_mosquitto, free_port
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.link.base import Link, Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys

pytestmark = pytest.mark.mosquitto

BASE = "imlmesh/1/home"


class Heard:
    def __init__(self, will: Will | None = None) -> None:
        self.ups: asyncio.Queue[None] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._will = will

    def will(self) -> Will | None:
        return self._will

    def link_up(self) -> None:
        self.ups.put_nowait(None)

    def link_down(self, reason: str) -> None:
        self.downs.put_nowait(reason)

    def message(self, topic: str, payload: bytes) -> None:
        self.messages.put_nowait((topic, payload))


def mesh_at(root: Path) -> Home:
    home = Home(root)
    authority = Authority.create(home, "home", "orchestra")
    for name in ("a", "b"):
        authority.provision(name, home.node(name), brokers=("127.0.0.1:8883",))
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return mesh_at(tmp_path / "home")


@contextlib.asynccontextmanager
async def running(home: Home, port: int | None = None) -> AsyncIterator[Mosquitto]:
    place = BrokerPlace(home.broker, home.ca / "ca.pem", home.logs / "broker.log", port=port)
    broker = Mosquitto("home", "orchestra", place, ControlKeys.load(home.ca, "home").context)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@pytest.fixture
async def broker(home: Home) -> AsyncIterator[Mosquitto]:
    async with asyncio.timeout(60), running(home) as started:
        yield started


@pytest.fixture
async def join(home: Home, broker: Mosquitto) -> AsyncIterator[Callable[..., object]]:
    links: list[Link] = []

    async def start(
        name: str, *subscriptions: str, client_id: str = "", will: Will | None = None
    ) -> tuple[MqttLink, Heard]:
        context = context_of(home, name)
        filters = subscriptions or (f"{BASE}/all/+",)
        link, heard = (
            MqttLink([("127.0.0.1", broker.port)], client_id or name, context, filters),
            Heard(will),
        )
        links.append(link)
        link.start(heard)
        await heard.ups.get()
        return link, heard

    yield start
    for link in links:
        await link.close()


def context_of(home: Home, name: str) -> ssl.SSLContext:
    if name == "orchestra":
        return ControlKeys.load(home.ca, "home").context()
    return NodeKeys.load(home.node(name), "home").context()


async def refused(home: Home, port: int) -> str:
    link = MqttLink([("127.0.0.1", port)], "a", context_of(home, "a"), (f"{BASE}/to/a/+",))
    heard = Heard()
    link.start(heard)
    reason = await heard.downs.get()
    await link.close()
    assert heard.ups.empty()
    return reason.partition(":")[0]


async def test_without_a_certificate_nobody_comes_in(home, broker):
    context = ssl.create_default_context(cafile=str(home.ca / "ca.pem"))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", broker.port, ssl=context, server_hostname="broker.home.imlmesh"
    )
    writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01z")
    answer = b""
    with contextlib.suppress(OSError):
        answer = await reader.read(4)
    assert answer == b""
    writer.transport.abort()


async def test_without_tls_nobody_comes_in(broker):
    reader, writer = await asyncio.open_connection("127.0.0.1", broker.port)
    writer.write(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01z")
    answer = b""
    with contextlib.suppress(OSError):
        answer = await reader.read(4)
    assert answer[:1] != b"\x20"
    writer.transport.abort()


async def test_older_tls_is_refused(home, broker):
    context = ssl.create_default_context(cafile=str(home.ca / "ca.pem"))
    keys = home.node("a") / "keys"
    context.load_cert_chain(keys / "node.pem", keys / "node.key")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(OSError, match=r".") as caught:
        await asyncio.open_connection(
            "127.0.0.1", broker.port, ssl=context, server_hostname="broker.home.imlmesh"
        )
    assert isinstance(caught.value, ssl.SSLError | ConnectionResetError)


async def test_a_certificate_of_another_ca_is_refused(home, broker, tmp_path):
    other = mesh_at(tmp_path / "other")
    # The stranger trusts our broker, so that it is the broker who refuses.
    shutil.copy(home.ca / "ca.pem", other.node("a") / "keys" / "ca.pem")
    assert await refused(other, broker.port) == "link.refused"


async def test_a_broker_of_another_ca_is_refused(broker, tmp_path):
    assert await refused(mesh_at(tmp_path / "other"), broker.port) == "link.tls"


async def test_a_node_reaches_its_own_topics_alone(join):
    _, orchestrator = await join("orchestra", f"{BASE}/#")
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


async def test_a_node_hears_its_own_topics_alone(join):
    orchestrator, _ = await join("orchestra", f"{BASE}/from/#")
    _, a = await join("a", "#", f"{BASE}/to/+/+")
    orchestrator.publish(f"{BASE}/to/b/delegate", b"for b")
    orchestrator.publish(f"{BASE}/to/a/delegate", b"for a")
    assert await a.messages.get() == (f"{BASE}/to/a/delegate", b"for a")


async def test_a_foreign_client_id_takes_nobody_over(join):
    b, b_heard = await join("b", f"{BASE}/to/b/+")
    a, _ = await join("a", client_id="b")
    orchestrator, _ = await join("orchestra", f"{BASE}/from/#")
    orchestrator.publish(f"{BASE}/to/b/delegate", b"for b")
    assert await b_heard.messages.get() == (f"{BASE}/to/b/delegate", b"for b")
    assert a.connected
    assert b.connected
    assert b_heard.downs.empty()


async def test_a_will_is_delivered_and_obeys_the_rules(home, broker, join):
    _, orchestrator = await join("orchestra", f"{BASE}/from/#")
    a, _ = await join("a", will=Will(f"{BASE}/from/a/status", b"a is gone"))
    b, _ = await join("b", will=Will(f"{BASE}/from/a/status", b"b says that a is gone"))
    for link in (b, a):
        link._session.abort()
    assert await orchestrator.messages.get() == (f"{BASE}/from/a/status", b"a is gone")
    assert orchestrator.messages.empty()


async def test_a_packet_above_the_limit_is_refused(home, broker, join):
    _, orchestrator = await join("orchestra", f"{BASE}/from/#")
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, "a")
    context = ssl.create_default_context(cafile=str(home.ca / "ca.pem"))
    context.check_hostname = False
    keys = home.node("a") / "keys"
    context.load_cert_chain(keys / "node.pem", keys / "node.key")
    client.tls_set_context(context)
    loop = asyncio.get_running_loop()
    ended: asyncio.Queue[None] = asyncio.Queue()
    client.on_connect = lambda *_: client.publish(
        f"{BASE}/from/a/complete", bytes(limits.BROKER_PACKET_BYTES), qos=0
    )
    client.on_disconnect = lambda *_: loop.call_soon_threadsafe(ended.put_nowait, None)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    await ended.get()
    client.loop_stop()
    client.disconnect()
    small, _ = await join("b")
    small.publish(f"{BASE}/from/b/complete", b"after")
    assert await orchestrator.messages.get() == (f"{BASE}/from/b/complete", b"after")


async def test_a_broker_that_dies_is_started_again(broker, join):
    _, heard = await join("a", f"{BASE}/to/a/+")
    first = broker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await heard.downs.get()
    await heard.ups.get()
    assert broker.pid not in (None, first)
    assert not broker.failed.done()


async def test_a_broker_that_cannot_stay_up_is_given_up(home, broker, monkeypatch):
    monkeypatch.setattr(limits, "LINK_RETRY_MS", 1)
    (home.broker / "broker.key").unlink()
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    with pytest.raises(LinkError) as caught:
        await broker.failed
    assert caught.value.code == "broker.failed"


async def test_stop_ends_the_child_and_frees_the_port(home):
    async with running(home) as broker:
        pid, port = broker.pid, broker.port
        assert pid is not None
        assert os.getpgid(pid) == pid
    assert broker.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert free_port("127.0.0.1", port) == port


async def test_a_port_of_another_broker_is_not_taken_for_ours(home, broker, tmp_path):
    other = mesh_at(tmp_path / "other")
    with pytest.raises(LinkError) as caught:
        async with running(other, broker.port):
            pass
    assert caught.value.code == "broker.failed"


async def test_the_next_free_port_is_used():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port


def test_a_missing_broker_is_said_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(LinkError) as caught:
        find_mosquitto()
    assert caught.value.code == "broker.missing"
    assert "apt-get install mosquitto" in caught.value.hint


PARENT = """
import asyncio, pathlib, sys
from imlmesh_broker import Mosquitto
from imlmesh_broker.mosquitto import BrokerPlace
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys

async def main():
    home = Home(pathlib.Path(sys.argv[1]))
    place = BrokerPlace(home.broker, home.ca / "ca.pem", home.logs / "broker.log")
    broker = Mosquitto("home", "orchestra", place, ControlKeys.load(home.ca, "home").context)
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_broker_ends_with_its_parent(home):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(home.root)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    watch = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    with contextlib.closing(os.fdopen(watch)):
        assert select.select([watch], [], [], 10)[0] == [watch]
