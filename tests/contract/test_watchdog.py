"""systemd's watchdog is fed while the engine turns, and at no other time."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from imlmesh_protocol.errors import MeshError, StoreError
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.engine import Engine
from imlmesh_runtime.notify import is_service, watchdog_s
from imlmesh_runtime.process import until_told

PERIOD_US = 20_000
WITHIN_S = 10


class Idle:
    """A core that stores whatever it hears; its commits end when the test says so."""

    def __init__(self) -> None:
        self.commits: asyncio.Queue[Callable[[MeshError | None], None]] = asyncio.Queue()
        self.engine: Engine[str, str, str] = Engine(
            self, self, lambda _changes, done: self.commits.put_nowait(done), ManualClock(), str
        )

    def handle(self, event: str) -> tuple[list[str], list[str]]:
        return [event], []

    def next_deadline_ms(self) -> int | None:
        return None

    def early(self, commands: Sequence[str]) -> Sequence[str]:
        return commands

    def ahead(self, commands: Sequence[str]) -> Sequence[str]:
        return commands

    def prepare(self, commands: Sequence[str]) -> None:
        pass

    def release(self) -> None:
        pass

    async def begin_commit(self) -> Callable[[MeshError | None], None]:
        self.engine.post("stored")
        async with asyncio.timeout(WITHIN_S):
            return await self.commits.get()


class Systemd:
    """The socket that systemd would listen at."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    async def hear(self) -> str:
        async with asyncio.timeout(WITHIN_S):
            told = await asyncio.get_running_loop().sock_recv(self._socket, 1_000)
        return told.decode()

    def heard_so_far(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self._socket.recv(1_000).decode())
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(PERIOD_US))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    listening = Systemd(tmp_path / "notify")
    yield listening
    listening.close()


@pytest.fixture
async def idle(systemd: Systemd) -> AsyncIterator[Idle]:
    """An engine in a process that runs until the test ends."""
    idle = Idle()
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    running = asyncio.ensure_future(until_told(ended, idle.engine.turned))
    assert await systemd.hear() == "READY=1"
    yield idle
    ended.set_result(None)
    assert await running
    assert "STOPPING=1" in systemd.heard_so_far()


async def test_an_idle_engine_feeds_it(idle: Idle, systemd: Systemd) -> None:
    assert [await systemd.hear() for _ in range(3)] == ["WATCHDOG=1"] * 3


async def test_an_engine_that_hangs_in_a_commit_does_not(idle: Idle, systemd: Systemd) -> None:
    assert await systemd.hear() == "WATCHDOG=1"
    commit_done = await idle.begin_commit()
    systemd.heard_so_far()
    # the loop is as free as ever for ten periods: that alone must not count
    await asyncio.sleep(10 * PERIOD_US / 1e6)
    assert systemd.heard_so_far() == []
    commit_done(None)
    assert await systemd.hear() == "WATCHDOG=1"


async def test_a_failed_engine_never_feeds_it_again(idle: Idle, systemd: Systemd) -> None:
    (await idle.begin_commit())(StoreError("store.full", "the disk is full"))
    assert idle.engine.failed.done()
    systemd.heard_so_far()
    await asyncio.sleep(10 * PERIOD_US / 1e6)
    assert systemd.heard_so_far() == []


@pytest.mark.parametrize("wait_us", ["0", "-1", "²", "9" * 30, "1e6"])
def test_odd_words_of_the_environment_mean_no_watchdog(
    monkeypatch: pytest.MonkeyPatch, wait_us: str
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", wait_us)
    assert watchdog_s() is None


def test_the_watchdog_of_another_process_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getppid()))
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_s() == 1.0


@pytest.mark.parametrize(("invoked", "terminal"), [(True, True), (True, False), (False, False)])
def test_a_service_has_no_terminal(
    monkeypatch: pytest.MonkeyPatch, invoked: bool, terminal: bool
) -> None:
    monkeypatch.delenv("INVOCATION_ID", raising=False)
    if invoked:
        monkeypatch.setenv("INVOCATION_ID", "0" * 32)
    monkeypatch.setattr(os, "isatty", lambda descriptor: terminal and descriptor == 0)
    assert is_service() == (invoked and not terminal)
