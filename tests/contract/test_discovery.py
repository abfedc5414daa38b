"""mDNS as it is spoken, on loopback alone: who announces is heard, and whoever ends is forgotten."""

import asyncio
import secrets
import socket
import struct
from pathlib import Path

import pytest

from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.discovery import MESHES, NODES, Discovery, Service, short_root
from imlmesh_runtime.multicast import Network, networks
from imlmesh_runtime.paths import Home

LOOPBACK = Network("127.0.0.1", "255.0.0.0", True)
WITHIN_S = 20


def here() -> tuple[Network, ...]:
    return (LOOPBACK,)


async def test_a_service_is_heard_and_forgotten_again() -> None:
    # a name of its own: loopback is shared with whatever else runs here
    root = secrets.token_hex(4)
    mesh = Service("m" * 63, root, port=8883, addresses=("127.0.0.1",))
    speaker, listener = (
        Discovery(announced=mesh, here=here),
        Discovery(watched=MESHES, here=here),
    )
    deaf = Discovery(watched=NODES, here=here)
    for each in (speaker, listener, deaf):
        each.start()

    def heard() -> bool:
        return mesh in listener.found.values()

    try:
        async with asyncio.timeout(WITHIN_S):
            await listener.until(heard)
            assert listener.trouble == ""
            await speaker.close()
            await listener.until(lambda: not heard())
        assert root not in {service.root for service in deaf.found.values()}
    finally:
        for each in (listener, deaf, speaker):
            await each.close()


async def test_two_nodes_of_one_name_are_both_shown() -> None:
    node = Service("home", secrets.token_hex(4), "pi-bed", addresses=("127.0.0.1",))
    speakers = [Discovery(announced=node, here=here) for _ in range(2)]
    listener = Discovery(watched=NODES, here=here)
    try:
        async with asyncio.timeout(WITHIN_S):
            listener.start()
            speakers[0].start()
            await listener.until(lambda: node in listener.found.values())
            speakers[1].start()
            await listener.until(lambda: list(listener.found.values()).count(node) == 2)
        assert listener.trouble == ""
    finally:
        for each in (listener, *speakers):
            await each.close()


def spoken(instance: bytes, texts: list[bytes]) -> bytes:
    """A response that says all about one mesh (RFC 1035 section 4.1, RFC 6763): PTR, SRV, TXT, A."""

    def name(*labels: bytes) -> bytes:
        return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"

    def record(owner: bytes, kind: int, data: bytes) -> bytes:
        return owner + struct.pack("!HHIH", kind, 1, 120, len(data)) + data

    kind = name(b"_imlmesh", b"_tcp", b"local")
    full = name(instance, b"_imlmesh", b"_tcp", b"local")
    server = name(instance[:30] + b"-at", b"local")
    records = [
        record(kind, 12, full),
        record(full, 33, struct.pack("!3H", 0, 0, 8883) + server),
        record(full, 16, b"".join(bytes([len(text)]) + text for text in texts)),
        record(server, 1, socket.inet_aton("127.0.0.1")),
    ]
    return struct.pack("!6H", 0, 0x8400, 0, len(records), 0, 0) + b"".join(records)


def say(packet: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sending.bind(("127.0.0.1", 5353))
        sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sending.sendto(packet, ("224.0.0.251", 5353))


async def test_what_strangers_say_is_heard_as_nothing() -> None:
    root = secrets.token_hex(4).encode()
    right = [b"mesh=home", b"root=" + root]
    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, said: raised.append(said))
    listener = Discovery(watched=MESHES, here=here)
    listener.start()
    mine = Service("home", root.decode(), port=8883, addresses=("127.0.0.1",))
    try:
        async with asyncio.timeout(WITHIN_S):
            await listener.until(lambda: listener.trouble == "")
            for number, texts in enumerate(
                (
                    [b"mesh=\xff\xfe", right[1]],
                    [b"mesh=home;reboot", right[1]],
                    [right[0], right[1] + b"0"],
                    [b"mesh", b"root"],
                    [*right, b"node=pi"],
                    [],
                )
            ):
                say(spoken(b"%s-%d" % (root, number), texts))
            for odd in (b"\x1b[31m" + root, root + b"\n", b"\xff" + root):
                say(spoken(odd, right))
            for _ in range(50):
                say(secrets.token_bytes(200))
            # UDP of one socket keeps its order on loopback, so the rest has been heard by then.
            say(spoken(root, right))
            await listener.until(lambda: mine in listener.found.values())
        heard = [each for each in listener.found.values() if each.root.startswith(root.decode())]
        assert set(heard) == {mine}
        assert not raised
    finally:
        await listener.close()


async def test_a_network_that_comes_later_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imlmesh_protocol.limits.DISCOVERY_LOOK_MS", 20)
    present: list[Network] = []
    mesh = Service("home", secrets.token_hex(4), port=8883, addresses=("127.0.0.1",))
    speaker = Discovery(announced=mesh, here=lambda: tuple(present))
    listener = Discovery(watched=MESHES, here=here)
    try:
        async with asyncio.timeout(WITHIN_S):
            speaker.start()
            listener.start()
            await speaker.until(lambda: speaker.trouble == "this computer is in no network")
            present.append(LOOPBACK)
            await speaker.until(lambda: speaker.trouble == "")
            await listener.until(lambda: mesh in listener.found.values())
            present.clear()
            await speaker.until(lambda: speaker.trouble)
            await listener.until(lambda: mesh not in listener.found.values())
        assert speaker.trouble == "this computer is in no network"
    finally:
        for each in (listener, speaker):
            await each.close()


async def test_what_failed_is_tried_again_and_told_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("imlmesh_protocol.limits.DISCOVERY_LOOK_MS", 20)
    monkeypatch.setattr("imlmesh_protocol.limits.DISCOVERY_AGAIN_MS", 50)
    answers: list[Exception | str] = [RuntimeError("odd"), "it is dropped", ""]

    async def trouble(_here: object) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("imlmesh_runtime.discovery.trouble", trouble)
    mesh = Service("home", secrets.token_hex(4), port=8883, addresses=("127.0.0.1",))
    listener = Discovery(watched=MESHES, here=here)
    speaker = Discovery(announced=mesh, here=here)
    try:
        async with asyncio.timeout(WITHIN_S):
            listener.start()
            await listener.until(lambda: "odd" in (listener.trouble or ""))
            await listener.until(lambda: listener.trouble == "it is dropped")
            await listener.until(lambda: listener.trouble == "")
            answers.append("")
            speaker.start()
            await listener.until(lambda: mesh in listener.found.values())
        assert (listener.trouble, answers) == ("", [])
    finally:
        for each in (listener, speaker):
            await each.close()


def test_networks_that_cannot_be_read_are_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise PermissionError(1, "not in this sandbox")

    monkeypatch.setattr("psutil.net_if_addrs", refuse)
    assert networks() == ()
    assert "not in this sandbox" in caplog.text


def test_meshes_of_one_name_have_root_hashes_of_their_own(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        home = Home(tmp_path / name)
        Authority.create(home, "home", "control")
        hashes.add(short_root(home.ca / "root.pub"))
    assert len(hashes) == 2
    with pytest.raises(TrustError) as caught:
        short_root(tmp_path / "a" / "ca" / "root.key")
    assert caught.value.code == "trust.file"
