"""The embedded broker's door under crowds that connect and say nothing: bounded, and open to others."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from broker_stage import ME, Stage, down, mesh_at, stage_of, up
from imlmesh_protocol import limits
from waiting import slower

CROWDED_BY = "127.0.0.2"
#: by then who says nothing has made room, and long before its handshake would have taken too long
ROOM_S = limits.BROKER_WAITING_MS / 1_000 + 5


@pytest.fixture
def descriptors() -> Iterator[None]:
    """As many as the system gives: a crowd needs one for each of its connections."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Crowd:
    """Connections that stay open and silent."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def come(self, port: int, count: int, address: str = CROWDED_BY) -> None:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", port), 10, (address, 0))
            one.setblocking(False)
            self._sockets.append(one)

    def inside(self) -> int:
        """How many the broker has not closed."""
        return sum(map(_is_open, self._sockets))

    async def settled(self, inside: int) -> None:
        async with asyncio.timeout(10):
            while self.inside() != inside:  # noqa: ASYNC110 - another process closes them
                await asyncio.sleep(0.02)

    def close(self) -> None:
        for one in self._sockets:
            one.close()


def _is_open(one: socket.socket) -> bool:
    try:
        return one.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


@pytest.fixture
def crowd(descriptors: None) -> Iterator[Crowd]:
    made = Crowd()
    yield made
    made.close()


async def still_serves(stage: Stage, name: str) -> None:
    """Somebody comes, and hears and is heard, within two seconds of a machine that is idle."""
    async with asyncio.timeout(2 * slower()):
        control = await stage.enter(ME, f"{up(name, 'complete').topic}", client=f"{ME}-{name}")
        node = await stage.enter(name, down(name, "ack").topic)
        node.publish(up(name, "complete", b"up"))
        assert (await control.hear()).payload == b"up"
        control.publish(down(name, "ack", b"down"))
        assert (await node.hear()).payload == b"down"


async def test_one_address_holds_its_share_and_nobody_else_waits(
    tmp_path: Path, crowd: Crowd
) -> None:
    async with stage_of(mesh_at(tmp_path / "home", "a", "b"), "embedded") as stage:
        await still_serves(stage, "a")
        process = psutil.Process(stage.broker.pid)
        before = process.num_fds()
        crowd.come(stage.broker.port, limits.BROKER_WAITING_OF_ADDRESS + 200)
        await crowd.settled(limits.BROKER_WAITING_OF_ADDRESS)
        assert process.num_fds() <= before + limits.BROKER_WAITING_OF_ADDRESS
        assert process.memory_info().rss < 120_000_000
        await still_serves(stage, "b")
        log = (stage.home.logs / "broker.log").read_text()
        assert '"broker.busy"' in log
        # however many came, a flood is told once a second
        assert log.count('"broker.busy"') < 20


async def test_who_says_nothing_makes_room_for_who_comes(tmp_path: Path, crowd: Crowd) -> None:
    async with stage_of(mesh_at(tmp_path / "home", "a", "b"), "embedded") as stage:
        share = limits.BROKER_WAITING_OF_ADDRESS
        crowd.come(stage.broker.port, share, "127.0.0.1")
        await crowd.settled(share)
        # from the same address, while all of its places are taken
        async with asyncio.timeout(ROOM_S):
            await stage.until_refused("a", wanted=False)
        assert crowd.inside() < share
        await still_serves(stage, "b")


async def test_all_addresses_together_have_a_bound(tmp_path: Path, crowd: Crowd) -> None:
    async with stage_of(mesh_at(tmp_path / "home", "a"), "embedded") as stage:
        before = psutil.Process(stage.broker.pid).num_fds()
        for number in range(2, 5):
            crowd.come(stage.broker.port, limits.BROKER_WAITING // 2 - 50, f"127.0.0.{number}")
        await crowd.settled(limits.BROKER_WAITING)
        assert psutil.Process(stage.broker.pid).num_fds() <= before + limits.BROKER_WAITING
        async with asyncio.timeout(ROOM_S):
            await stage.until_refused("a", wanted=False)


async def test_a_certificate_without_a_word_of_mqtt_counts_too(
    tmp_path: Path, crowd: Crowd
) -> None:
    async with stage_of(mesh_at(tmp_path / "home", "a", "b"), "embedded") as stage:
        context = stage.context("a")

        async def greet() -> asyncio.StreamReader:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", stage.broker.port, ssl=context
            )
            silent.append(writer)
            return reader

        silent: list[asyncio.StreamWriter] = []
        first = await greet()
        for _ in range(20):
            await greet()
        crowd.come(stage.broker.port, limits.BROKER_WAITING_OF_ADDRESS - 21, "127.0.0.1")
        ending = asyncio.create_task(first.read())
        async with asyncio.timeout(ROOM_S):
            while not ending.done():
                crowd.come(stage.broker.port, 1, "127.0.0.1")
                await asyncio.sleep(0.1)
        with contextlib.suppress(OSError):
            assert ending.result() == b""
        for writer in silent:
            writer.transport.abort()
        await still_serves(stage, "b")
