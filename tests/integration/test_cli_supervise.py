"""Children are restarted, stopped in order, and never outlive their parent."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from imlmesh.supervise import Program, Supervised, Supervisor
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError

LIVING = """\
import os, signal, sys, threading
name, out = sys.argv[1:3]
def say(what):
    with open(out, "a") as file: file.write(f"{name} {what} {os.getpid()}\\n")
def ended(*_):
    say("ended"); os._exit(0)
signal.signal(signal.SIGTERM, ended)
say("began")
os.read(int(os.environ["IMLMESH_PARENT_FD"]), 1)
say("orphaned")
"""
FAILING = """import sys; sys.exit('{"level": "error", "message": "no such mesh"}')"""
STUBBORN = """\
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[2], "a").write("began\\n")
time.sleep(60)
"""


async def until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - files and processes tell nobody
            await asyncio.sleep(0.01)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("living", LIVING), ("failing", FAILING), ("stubborn", STUBBORN)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(limits, "CHILD_RESTART_MS", 10)
    return tmp_path


@pytest.fixture
async def supervisor(modules: Path) -> AsyncIterator[Supervisor]:
    notices: list[str] = []
    found = Supervisor(notices.append)
    found.notices = notices  # type: ignore[attr-defined]
    yield found
    await found.stop()


def lines(folder: Path) -> list[str]:
    out = folder / "out"
    return [line.rsplit(" ", 1)[0] for line in out.read_text().splitlines()] if out.exists() else []


async def start(supervisor: Supervisor, folder: Path, module: str, name: str) -> Supervised:
    log = folder / f"{name}.log"
    return await supervisor.start(Program(name, module, (name, str(folder / "out")), log))


async def test_a_killed_child_is_started_again(supervisor: Supervisor, modules: Path) -> None:
    child = await start(supervisor, modules, "living", "a")
    await until(lambda: lines(modules) == ["a began"])
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    await until(lambda: lines(modules) == ["a began"] * 2)
    assert supervisor.notices == ["a ended (signal 9); again in 0.01 s"]  # type: ignore[attr-defined]
    supervisor.check()


async def test_the_last_started_ends_first(modules: Path) -> None:
    supervisor = Supervisor(lambda _line: None)
    for name in ("a", "b", "c"):
        await start(supervisor, modules, "living", name)
    await until(lambda: len(lines(modules)) == 3)
    await supervisor.stop()
    assert lines(modules)[3:] == ["c ended", "b ended", "a ended"]


async def test_what_cannot_stay_up_is_given_up_with_its_last_line(
    supervisor: Supervisor, modules: Path
) -> None:
    child = await start(supervisor, modules, "failing", "a")
    await until(lambda: child.failure() is not None)
    assert child.ends == limits.CHILD_RESTARTS + 1
    with pytest.raises(MeshError, match=r"minute: no such mesh$") as caught:
        supervisor.check()
    assert caught.value.code == "process.failed"


async def test_a_child_that_ignores_sigterm_is_killed(
    modules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "STOP_MS", 100)
    supervisor = Supervisor(lambda _line: None)
    child = await start(supervisor, modules, "stubborn", "a")
    await until(lambda: (modules / "out").exists())
    async with asyncio.timeout(10):
        await supervisor.stop()
    assert child.pid is None


async def test_a_killed_child_stays_dead_when_it_should(
    supervisor: Supervisor, modules: Path
) -> None:
    child = await start(supervisor, modules, "living", "a")
    await until(lambda: lines(modules) == ["a began"])
    await child.kill()
    assert child.pid is None
    assert child.failure() is None


async def test_children_see_the_end_of_their_parent(modules: Path) -> None:
    parent = f"""\
import asyncio, os
from pathlib import Path
from imlmesh.supervise import Program, Supervisor
async def main():
    supervisor = Supervisor(print)
    out = {str(modules / "out")!r}
    await supervisor.start(Program("a", "living", ("a", out), Path(out + ".log")))
    while not os.path.exists(out):
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", parent)
    assert await process.wait() == -signal.SIGKILL
    await until(lambda: lines(modules) == ["a began", "a orphaned"])
