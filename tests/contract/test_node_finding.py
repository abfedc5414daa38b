"""In which order a node tries addresses, whom it believes, and what it tells when nobody is heard."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from imlmesh_node.finding import Finder
from imlmesh_node.main import address_line
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.discovery import MESHES, Discovery, Service
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.multicast import Network

ME = Service("home", "1a2b3c4d", "pi-bed")
LINE = "imlmesh node run pi-bed --broker 10.0.0.1:8883"
OURS = Service("home", "1a2b3c4d", port=8883, addresses=("172.17.0.1", "10.0.0.1"))
OTHER_CA = Service("home", "ffffffff", port=8883, addresses=("10.0.0.9",))
OTHER_NAME = Service("shed", "1a2b3c4d", port=8883, addresses=("10.0.0.8",))
FAR = ("192.0.2.1", 8883)
WITHIN_S = 5


class Air(Discovery):
    """A network in which is heard what a test says."""

    def __init__(self) -> None:
        super().__init__(watched=MESHES)
        self.networks = (Network("10.0.0.2", "255.255.255.0", True),)
        self.running = False

    def start(self) -> None:
        self.running = True
        self.say("")

    async def close(self) -> None:
        self.running = False

    def say(self, trouble: str, *services: Service) -> None:
        self.trouble = trouble
        self.found = {str(number): service for number, service in enumerate(services)}
        self._change()


class Stage:
    def __init__(self, *given: Address) -> None:
        self.airs: list[Air] = []
        self.told: list[LinkError] = []
        self.finder = Finder(given, ME, LINE, self.told.append, self.look)

    def look(self, me: Service) -> Air:
        assert me == ME
        self.airs.append(Air())
        return self.airs[-1]

    async def next(self) -> Address:
        async with asyncio.timeout(WITHIN_S):
            return await self.finder.next()


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not holds():  # noqa: ASYNC110 - it happens in this very loop
            await asyncio.sleep(0)


async def test_only_the_mesh_of_our_own_ca_counts_and_its_nearest_address_first() -> None:
    stage = Stage()
    waiting = asyncio.create_task(stage.next())
    await until(lambda: stage.airs)
    stage.airs[0].say("", OTHER_CA, OTHER_NAME)
    await asyncio.sleep(0)
    assert not waiting.done()
    stage.airs[0].say("", OTHER_CA, OURS)
    assert await waiting == ("10.0.0.1", 8883)
    assert await stage.next() == ("172.17.0.1", 8883)
    # and so on, for ever
    assert await stage.next() == ("10.0.0.1", 8883)
    await stage.finder.close()
    assert not stage.airs[0].running


async def test_given_addresses_come_first_in_every_round() -> None:
    stage = Stage(FAR)
    assert await stage.next() == FAR
    assert not stage.airs, "nobody is asked before the given address failed"
    assert await stage.next() == FAR
    stage.airs[0].say("", OURS)
    assert [await stage.next() for _ in range(3)] == [FAR, ("10.0.0.1", 8883), ("172.17.0.1", 8883)]
    await stage.finder.close()


async def test_a_node_of_this_computer_never_asks_the_network() -> None:
    stage = Stage(("127.0.0.1", 8883), ("::1", 8884))
    found = [await stage.next() for _ in range(5)]
    assert found == [("127.0.0.1", 8883), ("::1", 8884)] * 2 + [("127.0.0.1", 8883)]
    assert not stage.airs


async def test_when_the_session_breaks_the_last_good_address_is_first() -> None:
    stage = Stage(FAR)
    assert [await stage.next() for _ in range(2)] == [FAR, FAR]
    stage.airs[0].say("", OURS)
    assert [await stage.next() for _ in range(2)] == [FAR, ("10.0.0.1", 8883)]
    stage.finder.reached()
    await until(lambda: not stage.airs[0].running)
    assert [await stage.next() for _ in range(2)] == [("10.0.0.1", 8883), FAR]
    # both fail: it looks again, and tries what it knows meanwhile
    assert [await stage.next() for _ in range(2)] == [FAR, ("10.0.0.1", 8883)]
    assert stage.airs[1].running
    await stage.finder.close()


async def test_a_blocked_network_is_told_once_with_the_line_to_use() -> None:
    stage = Stage()
    waiting = asyncio.create_task(stage.next())
    await until(lambda: stage.airs)
    stage.airs[0].say("UDP port 5353 is dropped")
    await until(lambda: stage.told)
    (error,) = stage.told
    assert (error.code, error.hint) == ("discovery.blocked", LINE)
    assert "UDP port 5353 is dropped" in error.message
    waiting.cancel()
    await stage.finder.close()


@pytest.mark.parametrize(
    ("given", "heard", "words"),
    [
        ((), (), "nobody on this network announces mesh home"),
        ((), (OTHER_CA,), "one of that name has another"),
        ((FAR,), (OTHER_NAME,), "no given address answered"),
    ],
)
async def test_a_quiet_network_is_told(
    monkeypatch: pytest.MonkeyPatch,
    given: tuple[Address, ...],
    heard: tuple[Service, ...],
    words: str,
) -> None:
    monkeypatch.setattr("imlmesh_protocol.limits.DISCOVERY_QUIET_MS", 50)
    stage = Stage(*given)
    for address in given:
        assert await stage.next() == address
    waiting = asyncio.create_task(stage.next())
    await until(lambda: stage.airs)
    stage.airs[0].say("", *heard)
    await until(lambda: stage.told)
    (error,) = stage.told
    assert (error.code, error.hint) == ("discovery.nothing", LINE)
    assert words in error.message
    waiting.cancel()
    await stage.finder.close()


async def test_a_mesh_that_lets_nobody_in_is_told_once_when_it_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stage = Stage(("127.0.0.1", 8883))
    refused = LinkError("link.down", "127.0.0.1:8883: refused")
    stage.finder.failed(refused)
    stage.finder.failed(refused)
    assert not stage.told, "it may be back at once"
    monkeypatch.setattr("imlmesh_protocol.limits.DISCOVERY_QUIET_MS", 0)
    for _ in range(3):
        stage.finder.failed(refused)
    (error,) = stage.told
    assert (error.code, "127.0.0.1:8883: refused" in error.message) == ("link.down", True)
    assert "firewall" in error.hint
    await stage.next()
    stage.finder.reached()
    stage.finder.failed(LinkError("link.tls", "another CA"))
    assert [told.code for told in stage.told] == ["link.down", "link.tls"]
    await stage.finder.close()


@pytest.mark.parametrize(
    ("is_service", "hint", "line"),
    [
        (False, "10.0.0.1:8883", "imlmesh node run '/srv/pi bed' --broker 10.0.0.1:8883"),
        (False, "", "imlmesh node run '/srv/pi bed' --broker ADDRESS:PORT"),
        # a second node of that folder would be refused, and the unit has no words of its own
        (True, "10.0.0.1:8883", 'brokers = ["10.0.0.1:8883"] into /srv/pi bed/mesh.toml'),
    ],
)
def test_the_line_fits_how_the_node_was_started(
    monkeypatch: pytest.MonkeyPatch, is_service: bool, hint: str, line: str
) -> None:
    monkeypatch.setattr("imlmesh_node.main.is_service", lambda: is_service)
    assert line in address_line(Path("/srv/pi bed"), hint)


async def test_who_is_found_in_time_is_told_nothing() -> None:
    stage = Stage()
    waiting = asyncio.create_task(stage.next())
    await until(lambda: stage.airs)
    stage.airs[0].say("", OURS)
    await waiting
    telling = stage.finder._telling
    assert telling is not None
    # it ends by itself, before anything is wrong
    await asyncio.wait_for(telling, WITHIN_S)
    assert not stage.told
    await stage.finder.close()
