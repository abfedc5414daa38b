"""Ending the session of a node at a real Mosquitto whose client ids are free, as control's are."""

import asyncio
import os
import pwd
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imlmesh_broker.child import free_port
from imlmesh_broker.mosquitto import find_mosquitto
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.trust.takeover import take_over
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from node_folders import make_node

HOLD_MS = 150
PASSED_WITHIN_S = 40


@dataclass
class Rig:
    home: Home
    port: int

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def control(self) -> ssl.SSLContext:
        return ControlKeys.load(self.home.ca, "home").context()

    def node(self) -> ssl.SSLContext:
        return NodeKeys.load(self.home.node("pi-1"), "home").context()


class Ups:
    """A victim that notes its sessions, and how often it was thrown out."""

    def __init__(self) -> None:
        self.ups: asyncio.Queue[None] = asyncio.Queue()
        self.downs: asyncio.Queue[str] = asyncio.Queue()

    def will(self) -> Will | None:
        return None

    def handed_over(self) -> None: ...

    def message(self, topic: str, payload: bytes, retained: bool = False) -> None: ...

    def link_up(self) -> None:
        self.ups.put_nowait(None)

    def link_down(self, reason: str) -> None:
        self.downs.put_nowait(reason)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    home = Home(tmp_path / "home")
    authority = Authority.create(home, "home", "orchestra")
    make_node(authority, "pi-1", home.node("pi-1"), brokers=("127.0.0.1:8883",))
    cas = tmp_path / "cas.pem"
    cas.write_bytes(b"".join((home.ca / f"{n}-ca.pem").read_bytes() for n in ("node", "control")))
    made = Rig(home, free_port("127.0.0.1", 28_883))
    lines = [
        f"user {pwd.getpwuid(os.geteuid()).pw_name}",
        "allow_anonymous false",
        f"listener {made.port} 127.0.0.1",
        f"cafile {cas}",
        f"certfile {home.broker / 'broker.pem'}",
        f"keyfile {home.broker / 'broker.key'}",
        "require_certificate true",
        "use_identity_as_username true",
    ]
    config = tmp_path / "free.conf"
    config.write_text("\n".join([*lines, ""]))
    Authority.open(home)
    with (tmp_path / "broker.log").open("wb") as log:
        broker = await asyncio.create_subprocess_exec(
            find_mosquitto(), "-c", str(config), stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(PASSED_WITHIN_S):
            while True:
                try:
                    assert await take_over(made.address, "first", made.control(), 1)
                    break
                except LinkError:
                    await asyncio.sleep(0.05)
            yield made
    finally:
        broker.kill()
        await broker.wait()


@pytest.mark.mosquitto
async def test_a_session_ends_and_who_does_not_come_back_is_proved_gone(rig: Rig) -> None:
    victim = Ups()
    link = MqttLink([rig.address], "pi-1", rig.node(), ("imlmesh/1/home/all/+",), lambda: 1.0)
    link.start(victim)
    await victim.ups.get()
    closing: list[asyncio.Task[None]] = []
    original = victim.link_down

    def thrown_out(reason: str) -> None:
        original(reason)
        closing.append(asyncio.create_task(link.close()))

    victim.link_down = thrown_out  # type: ignore[method-assign]
    assert await take_over(rig.address, "pi-1", rig.control(), HOLD_MS) is True
    await victim.downs.get()
    await asyncio.gather(*closing)
    assert victim.ups.empty()


@pytest.mark.mosquitto
async def test_who_takes_its_session_back_within_the_hold_is_noticed(rig: Rig) -> None:
    taking = asyncio.create_task(take_over(rig.address, "pi-1", rig.control(), 5_000))
    ended: list[bool] = []
    while not taking.done():
        ended.append(await take_over(rig.address, "pi-1", rig.node(), 10))
    assert await taking is False
    assert ended


@pytest.mark.mosquitto
async def test_without_a_certificate_of_the_mesh_nobody_is_thrown_out(rig: Rig) -> None:
    context = rig.control()
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.check_hostname = False
    stranger.verify_mode = ssl.CERT_NONE
    with pytest.raises(LinkError) as caught:
        await take_over(rig.address, "pi-1", stranger, HOLD_MS)
    assert caught.value.code == "link.down"
    assert await take_over(rig.address, "pi-1", context, 1)


async def test_a_broker_that_is_not_there_is_no_proof(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    Authority.create(home, "home", "orchestra")
    context = ControlKeys.load(home.ca, "home").context()
    port = free_port("127.0.0.1", 28_900)
    with pytest.raises(LinkError) as caught:
        await take_over(("127.0.0.1", port), "pi-1", context, HOLD_MS)
    assert caught.value.code == "link.down"


async def test_a_broker_that_refuses_is_told_apart_from_one_that_is_away(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    Authority.create(home, "home", "orchestra")
    control = ControlKeys.load(home.ca, "home").context()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.broker / "broker.pem", home.broker / "broker.key")

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"\x20\x02\x00\x05")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0, ssl=context)
    async with server:
        with pytest.raises(LinkError) as caught:
            await take_over(server.sockets[0].getsockname(), "pi-1", control, HOLD_MS)
    assert caught.value.code == "link.refused"
