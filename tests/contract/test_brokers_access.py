"""Who is shut out stays out, with each broker: what counts is what is delivered, in both directions."""

import asyncio
import os
import signal
import socket
import ssl
import statistics
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from broker_stage import BASE, ME, MESH, Stage, down, ended, mesh_at, stage_of, up
from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.visitor import Visitor
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.core.joining_state import EnrolledRecord
from imlmesh_orchestrator.trust.expiring import ExpiredSessions
from imlmesh_orchestrator.trust.takeover import take_over
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, TrustError
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.files import write_private
from imlmesh_runtime.trust import broker_name
from node_folders import make_node
from waiting import eventually

KINDS = [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]
FROM = f"{BASE}/from/#"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def stage(kind: str, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage_of(mesh_at(tmp_path / "home", "a", "b"), kind) as stage:
        yield stage


async def hear_first(visitor: Visitor, *said: tuple[Visitor, Message]) -> bytes:
    """What comes first of messages that are published one after the other."""
    for speaker, message in said:
        speaker.publish(message)
        await speaker.packet()
    return (await visitor.hear()).payload


async def test_each_ca_has_its_own_door(stage):
    own = {"node": stage.broker.port, "control": stage.broker.control_port}
    assert len(set(own.values())) == 2
    stage.broker.port, stage.broker.control_port = own["control"], own["node"]
    assert await stage.is_refused("a")
    assert await stage.is_refused(ME)
    stage.broker.port, stage.broker.control_port = own["node"], own["control"]
    assert not await stage.is_refused("a")
    assert not await stage.is_refused(ME)


async def test_a_revoked_node_is_out_in_both_directions(stage):
    control = await stage.enter(ME, FROM)
    a = await stage.enter("a", f"{BASE}/to/a/+", will=up("a", "status", b"its will"))
    b = await stage.enter("b", f"{BASE}/to/b/+")
    stage.write_lists("a")
    stage.write_access(revoked=("a",))
    await stage.applied()
    # its session may live on, but nothing of it gets through, nor to it
    if not a.ended:
        a.publish(up("a", "complete", b"of a"))
    control.publish(down("a", "delegate", b"for a"))
    control.publish(down("b", "delegate", b"for b"))
    b.publish(up("b", "complete", b"of b"))
    assert (await control.hear()).payload == b"of b"
    assert (await b.hear()).payload == b"for b"
    await stage.enter(ME, client="a")
    with pytest.raises(LinkError):
        await a.hear()
    assert a.ended
    assert await stage.is_refused("a")
    assert await hear_first(control, (b, up("b", "complete", b"still"))) == b"still"


async def test_control_ends_a_session_by_its_id(stage):
    a = await stage.enter("a", f"{BASE}/to/a/+")
    control = await stage.enter(ME, FROM)
    guest = await stage.enter(ME, client="a")
    await ended(a)
    guest.leave()
    again = await stage.enter("a", f"{BASE}/to/a/+")
    control.publish(down("a", "ack", b"back"))
    assert (await again.hear()).payload == b"back"


async def test_a_certificate_on_the_list_is_refused_and_the_others_are_not(stage):
    assert not await stage.is_refused("a")
    for revoked in (("a",), ("a", "b"), (), ("b",)):
        stage.write_lists(*revoked)
        for name in ("a", "b"):
            await stage.until_refused(name, name in revoked)


@pytest.mark.parametrize("kind", ["embedded"])
async def test_nobody_new_comes_in_while_it_cannot_read_who_may(stage):
    """Else a handshake after the signal would prove that somebody is shut out who is not."""
    b = await stage.enter("b", f"{BASE}/to/b/+")
    control = await stage.enter(ME, FROM)
    file = stage.broker.place.folder / "served" / "access.json"
    kept = file.read_bytes()
    for text, refused in ((b"{", True), (kept, False)):
        write_private(file, text)
        os.kill(stage.broker.pid, signal.SIGHUP)
        await stage.until_refused("a", refused)
        # whoever is in goes on
        assert await hear_first(control, (b, up("b", "complete", text))) == text


WORK = ("accept", "reject", "event/log", "event/telemetry/iot")
SIGNS = ("status", "heartbeat", "request", "response", "complete")


async def test_a_quarantined_node_keeps_what_the_table_leaves_to_it(stage):
    control = await stage.enter(ME, FROM)
    a = await stage.enter("a", f"{BASE}/to/a/+", f"{BASE}/all/+", f"{BASE}/orchestrator/+/status")
    b = await stage.enter("b", f"{BASE}/to/b/+")
    stage.write_access(quarantined=("a",))
    await stage.applied()
    for name in (*WORK, *SIGNS):
        a.publish(up("a", name))
        b.publish(up("b", name))
    heard = [(await control.hear()).topic for _ in (*SIGNS, *WORK, *SIGNS)]
    assert sorted(heard) == sorted(
        [up("a", name).topic for name in SIGNS] + [up("b", name).topic for name in (*WORK, *SIGNS)]
    )
    status = Message(f"{BASE}/orchestrator/{ME}/status", b"", 1, False)
    asked = [down("a", name) for name in ("command", "request", "response", "ack")]
    asked.append(Message(f"{BASE}/all/command", b"", 1, False))
    for message in (down("a", "delegate"), status, *asked):
        control.publish(message)
    assert [await a.hear() for _ in asked] == asked
    # who comes back is under the same rules; who is released has all again, without asking anew
    again = await stage.enter("a", f"{BASE}/to/a/+")
    for message in (down("a", "delegate"), down("a", "ack")):
        control.publish(message)
    assert await again.hear() == down("a", "ack")
    stage.write_access()
    await stage.applied()
    control.publish(down("a", "delegate"))
    assert await again.hear() == down("a", "delegate")
    assert await hear_first(control, (again, up("a", "accept", b"free"))) == b"free"


async def test_a_killed_broker_comes_back_with_the_same_rights(stage):
    stage.write_lists("b")
    stage.write_access(quarantined=("a",), revoked=("b",))
    await stage.applied()
    killed = stage.broker.pid
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: stage.broker.pid not in (None, killed))
    await stage.until_refused(ME, wanted=False)
    assert await stage.is_refused("b")
    control = await stage.enter(ME, FROM)
    a = await stage.enter("a", f"{BASE}/to/a/+")
    for name in ("accept", "heartbeat"):
        a.publish(up("a", name))
    assert await control.hear() == up("a", "heartbeat")
    for name in ("delegate", "ack"):
        control.publish(down("a", name))
    assert await a.hear() == down("a", "ack")


async def shown(stage: Stage) -> bytes:
    """The certificate of the broker, as DER."""
    context = stage.context(ME)
    _, writer = await asyncio.open_connection("127.0.0.1", stage.broker.control_port, ssl=context)
    found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(found)


async def test_a_new_certificate_of_the_broker_is_shown_once_its_key_is_there(stage, tmp_path):
    first, a = await shown(stage), await stage.enter("a")
    Authority.open(stage.home).issue_broker(tmp_path / "new")
    for name, is_pair in (("broker.key", False), ("broker.pem", True)):
        write_private(stage.home.broker / name, (tmp_path / "new" / name).read_bytes())
        stage.write_access()
        await stage.applied()
        assert (await shown(stage) != first) == is_pair
    # nobody was thrown out for it
    a.send(b"\xc0\x00")
    assert await a.packet() == (0xD0, b"")


BROKEN: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "corrupt": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "no list": lambda path: path.write_bytes(path.with_name("node-ca.pem").read_bytes()),
    "of another CA": lambda path: path.write_bytes(path.with_name("control-ca.crl").read_bytes()),
}


@pytest.mark.parametrize("how", sorted(BROKEN))
async def test_a_broken_list_opens_nothing(stage, how, caplog):
    stage.write_lists("a")
    stage.write_access()
    await stage.applied()
    assert await stage.is_refused("a")
    BROKEN[how](stage.home.ca / "node-ca.crl")
    # rights are still taken, and the broker is told of them
    stage.write_access(quarantined=("b",))
    await stage.applied()
    assert await stage.is_refused("a")
    assert not await stage.is_refused("b")
    alarms = [record for record in caplog.records if getattr(record, "code", "") == "broker.lists"]
    assert len(alarms) == 1
    # a broker that is started meanwhile has the last good one
    await stage.broker.stop()
    await stage.broker.start()
    assert await stage.is_refused("a")
    assert not await stage.is_refused("b")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"version": 9, "revoked": []',
        b'{"version": 9, "revoked": [], "quarantined": ["a/b"]}',
        b'{"version": 9, "revoked": ["orchestra"], "quarantined": []}',
        b'{"version": "9", "revoked": [], "quarantined": []}',
        b"[" * 100_000,
        None,
    ],
)
async def test_a_broken_access_file_opens_nothing(stage, text, caplog):
    control = await stage.enter(ME, FROM)
    a, b = await stage.enter("a"), await stage.enter("b")
    stage.write_access(quarantined=("a",))
    await stage.applied()
    path = stage.home.broker / "access.json"
    if text is None:
        path.unlink()
    else:
        path.write_bytes(text)
    await eventually(lambda: "broker.access" in [getattr(r, "code", "") for r in caplog.records])
    said = ((a, up("a", "accept", b"no")), (b, up("b", "accept", b"yes")))
    assert await hear_first(control, *said) == b"yes"
    stage.write_access()
    await stage.applied()
    assert await hear_first(control, *said) == b"no"


@pytest.mark.parametrize("name", ["node-ca.crl", "control-ca.crl"])
async def test_without_a_good_list_no_broker_starts(kind, name, tmp_path):
    home = mesh_at(tmp_path / "home", "a")
    (home.ca / name).write_bytes(b"torn")
    with pytest.raises(TrustError) as caught:
        async with stage_of(home, kind):
            pass
    assert caught.value.code == "broker.lists"


def greet(
    context: ssl.SSLContext, port: int, session: ssl.SSLSession | None = None
) -> tuple[bytes, ssl.SSLSession | None]:
    """(the answer to a CONNECT of the node `brief`, what a next connection may resume)."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname=broker_name(MESH), session=session) as secured,
    ):
        secured.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05brief")
        return secured.recv(4), secured.session


async def test_an_expired_certificate_is_refused_with_its_ticket_too(stage):
    """A ticket would let TLS 1.3 resume what began before the certificate ended."""
    make_node(Authority.open(stage.home), "brief", stage.home.node("brief"), lifetime_s=2)
    context, port = stage.context("brief"), stage.broker.port
    answer, session = await asyncio.to_thread(greet, context, port)
    assert answer == b"\x20\x02\x00\x00"
    await stage.until_refused("brief")
    try:
        answer, _ = await asyncio.to_thread(greet, context, port, session)
    except OSError:
        answer = b""
    assert answer == b""
    assert not await stage.is_refused("a")


async def test_the_embedded_broker_ends_a_session_with_its_certificate(tmp_path):
    async with stage_of(mesh_at(tmp_path / "home", "a"), "embedded") as stage:
        make_node(Authority.open(stage.home), "brief", stage.home.node("brief"), lifetime_s=2)
        brief, a = await stage.enter("brief"), await stage.enter("a")
        async with asyncio.timeout(10):
            await ended(brief)
        a.send(b"\xc0\x00")
        assert await a.packet() == (0xD0, b"")


@pytest.mark.mosquitto
async def test_the_orchestrator_ends_a_session_with_its_certificate(tmp_path, monkeypatch):
    """Mosquitto looks at a certificate once; who has a newer one is left alone."""
    monkeypatch.setattr(limits, "EXPIRED_LOOK_S", 0.1)
    async with stage_of(mesh_at(tmp_path / "home", "a"), "mosquitto") as stage:
        authority = Authority.open(stage.home)
        _, issued = make_node(authority, "brief", stage.home.node("brief"), lifetime_s=2)
        brief, a = await stage.enter("brief"), await stage.enter("a")
        ended_ms, later_ms = issued.not_after_ms, issued.not_after_ms + 86_400_000
        enrolled = {
            "brief": enrolled_with("brief", {"1": ended_ms}),
            "a": enrolled_with("a", {"2": ended_ms, "3": later_ms}),
        }

        async def end_session(node: str) -> bool:
            address = ("127.0.0.1", stage.broker.control_port)
            return await take_over(address, node, stage.context(ME), 1)

        looking = ExpiredSessions(enrolled, MeshClock(), end_session)
        looking.start()
        try:
            brief.send(b"\xc0\x00")
            assert await brief.packet() == (0xD0, b"")
            async with asyncio.timeout(10):
                await ended(brief)
            assert MeshClock().now_ms() >= ended_ms
            a.send(b"\xc0\x00")
            assert await a.packet() == (0xD0, b"")
        finally:
            await looking.close()
        assert await stage.is_refused("brief")


def enrolled_with(name: str, certificates: dict[str, int]) -> EnrolledRecord:
    return EnrolledRecord(name, name, b"", "readonly", "test", 0, certificates)


async def test_nothing_is_delivered_any_more_within_moments(stage):
    """From the written file on, as the median of ten."""
    control = await stage.enter(ME, FROM)
    a = await stage.enter("a")
    took_s = []
    for _ in range(10):
        stage.write_access()
        await stage.applied()
        began_s = time.perf_counter()
        stage.write_access(quarantined=("a",))
        while True:
            a.publish(up("a", "accept", b"of a"))
            await a.packet()
            control.publish(up("a", "accept", b"mark"))
            if (await control.hear()).payload == b"mark":
                break
            assert (await control.hear()).payload == b"mark"
        took_s.append(time.perf_counter() - began_s)
    print(f"no delivery after {statistics.median(took_s) * 1000:.0f} ms")
    assert statistics.median(took_s) < 1
