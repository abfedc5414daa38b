"""The broker as a child: started again, given up, stopped, ended with its parent; for each broker."""

import asyncio
import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imlmesh_broker import Broker, BrokerPlace, child
from imlmesh_broker.child import free_port
from imlmesh_broker.choice import BROKERS
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.files import write_private
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys
from loopback import own_port
from waiting import eventually


def mesh_at(root: Path) -> Home:
    home = Home(root)
    Authority.create(home, "home", "orchestra")
    return home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return mesh_at(tmp_path / "home")


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@contextlib.asynccontextmanager
async def running(home: Home, kind: str, port: int | None = None) -> AsyncIterator[Broker]:
    # other tests take the usual ports, perhaps in the moment in which this broker is down
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log", port=port or own_port())
    keys = ControlKeys.load(home.ca, "home")
    broker = BROKERS[kind]("home", "orchestra", place, keys.context)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@pytest.fixture
async def broker(home: Home, kind: str) -> AsyncIterator[Broker]:
    async with asyncio.timeout(60), running(home, kind) as started:
        yield started


async def until_serving_as_another(broker: Broker, first: int) -> None:
    while True:
        if broker.pid not in (None, first):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
                writer.close()
                return
        await asyncio.sleep(0.02)


async def test_a_broker_that_dies_is_started_again(broker):
    first = broker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until_serving_as_another(broker, first)
    assert not broker.failed.done()


async def test_a_broker_that_cannot_stay_up_is_given_up(home, broker, monkeypatch):
    monkeypatch.setattr(limits, "LINK_RETRY_MS", 1)
    for folder in (home.broker, home.broker / "served"):
        (folder / "broker.key").unlink()
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    with pytest.raises(LinkError) as caught:
        await broker.failed
    assert caught.value.code == "broker.failed"


def shut_out(home: Home, version: int) -> None:
    """As the orchestrator does."""
    table = {"version": version, "revoked": ["gone"], "quarantined": []}
    write_private(home.broker / "access.json", json.dumps(table).encode())


def applied(home: Home) -> int:
    return int(json.loads((home.broker / "applied.json").read_text())["version"])


class FullOnce:
    """A disk that has no room for applied.json, once; counts what was written there."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, path: Path, data: bytes) -> None:
        if path.name == "applied.json":
            self.asked += 1
            if self.asked == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_private(path, data)


async def test_a_disk_that_is_full_during_a_restart_leaves_no_broker_alone(
    home, broker, monkeypatch
):
    disk = FullOnce()
    monkeypatch.setattr(child, "write_private", disk)
    first = broker.pid
    os.kill(first, signal.SIGKILL)
    await until_serving_as_another(broker, first)
    # what could not be told is told by itself, of the broker that runs
    await eventually(lambda: disk.asked == 2)
    second = broker.pid
    assert (home.broker / "applied.json").exists()
    # and it is watched on: it hears what is new, and is started again
    shut_out(home, 7)
    await eventually(lambda: applied(home) == 7)
    assert broker.pid == second
    os.kill(second, signal.SIGKILL)
    await until_serving_as_another(broker, second)
    assert not broker.failed.done()


async def test_a_disk_that_is_full_at_the_start_leaves_no_broker_alone(home, kind, monkeypatch):
    disk = FullOnce()
    monkeypatch.setattr(child, "write_private", disk)
    async with asyncio.timeout(60), running(home, kind) as broker:
        pid = broker.pid
        await eventually((home.broker / "applied.json").exists)
        assert broker.pid == pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def fill(file: Path) -> None:
    """Nothing fits onto its disk any more."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


async def test_a_disk_that_stays_full_keeps_no_broker_down(kind, small_disk):
    home = mesh_at(small_disk / "home")
    filler = small_disk / "filler"
    async with asyncio.timeout(60), running(home, kind) as broker:
        fill(filler)
        first = broker.pid
        os.kill(first, signal.SIGKILL)
        await until_serving_as_another(broker, first)
        with pytest.raises(OSError, match="No space"):
            write_private(home.broker / "anything", bytes(4096))
        filler.unlink()
        shut_out(home, 7)
        await eventually(lambda: applied(home) == 7)


async def test_what_the_system_refuses_during_a_restart_is_tried_again(home, broker, caplog):
    logs, aside = home.logs, home.root / "aside"
    logs.rename(aside)
    first = broker.pid
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: "the broker did not start" in caplog.text)
    aside.rename(logs)
    await until_serving_as_another(broker, first)
    assert not broker.failed.done()


async def test_nothing_is_told_as_applied_while_no_broker_runs(home, broker, monkeypatch):
    monkeypatch.setattr(limits, "LINK_RETRY_MS", limits.BROKER_WATCH_MS)
    before = applied(home)
    home.logs.rename(home.root / "aside")
    os.kill(broker.pid, signal.SIGKILL)
    shut_out(home, 7)
    with pytest.raises(LinkError):
        await broker.failed
    assert broker.pid is None
    assert applied(home) == before


async def test_an_error_that_nobody_foresaw_is_told_to_who_runs_the_broker(broker, monkeypatch):
    def command() -> list[str]:
        raise RuntimeError("not foreseen")

    monkeypatch.setattr(broker, "command", command)
    os.kill(broker.pid, signal.SIGKILL)
    with pytest.raises(LinkError, match="not foreseen") as caught:
        await broker.failed
    assert caught.value.code == "broker.failed"


async def test_stop_ends_the_child_and_frees_the_port(home, kind):
    async with running(home, kind) as broker:
        pid, port = broker.pid, broker.port
        assert pid is not None
        assert os.getpgid(pid) == pid
    assert broker.pid is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert free_port("127.0.0.1", port) == port


async def test_a_port_of_another_broker_is_not_taken_for_ours(broker, kind, tmp_path):
    other = mesh_at(tmp_path / "other")
    with pytest.raises(LinkError) as caught:
        async with running(other, kind, broker.port):
            pass
    assert caught.value.code == "broker.failed"


async def test_the_next_free_port_is_used():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port


PARENT = """
import asyncio, pathlib, sys
from imlmesh_broker import BrokerPlace
from imlmesh_broker.choice import BROKERS
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys

async def main():
    home = Home(pathlib.Path(sys.argv[1]))
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = BROKERS[sys.argv[2]]("home", "orchestra", place, ControlKeys.load(home.ca, "home").context)
    await broker.start()
    print(broker.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_broker_ends_with_its_parent(home, kind):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(home.root), kind], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    watch = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    with contextlib.closing(os.fdopen(watch)):
        assert select.select([watch], [], [], 10)[0] == [watch]
