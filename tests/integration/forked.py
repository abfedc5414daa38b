"""Processes of ours that begin as forks of one that has read our code already.

To read the code of an orchestrator takes half a second of a processor, and the tests start hundreds.
A fork is a process like any other: it has a number, a session, an environment and output of its own,
and runs the same `__main__`; it may sit at a terminal or in another network namespace. That `python -m`
leads there is proved by the tests of start-up, of the demonstration, of chaos, of services and of new
drivers, which begin that way.
"""

import asyncio
import ctypes
import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["imlmesh_orchestrator.main", "imlmesh_node.main", "imlmesh.main", "imlmesh.local"]
)


@dataclass(frozen=True)
class Start:
    """What is started, and where."""

    module: str
    arguments: Sequence[str]
    out: Path
    #: None: where `out` goes
    err: Path | None = None
    folder: Path = Path()
    environ: Mapping[str, str] | None = None
    #: the network namespace in which it runs, or ours
    namespace: str = ""
    #: the terminal (/dev/pts/…) that is its input and controls it; None: it has neither
    terminal: Path | None = None
    #: it dies as by kill -9 at the so manyth time that something is made durable; 0: it does not
    dies_at: int = 0


class Forked:
    """`python -m MODULE ARGUMENTS >>OUT 2>>ERR` in a session of its own."""

    def __init__(self, start: Start) -> None:
        reading, begun = _FORKS.Pipe(duplex=False)
        environ = dict(os.environ if start.environ is None else start.environ)
        given = (start, start.folder.absolute(), environ, begun)
        self._process = _FORKS.Process(target=_begin, args=given, daemon=True)
        self._process.start()
        begun.close()
        reading.recv()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the number of the signal that ended it."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """To it alone, if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        """Its exit code, as soon as it has ended."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        return self.wait_here(None)

    def wait_here(self, timeout_s: float | None) -> int:
        """As `wait`, where no loop runs; TimeoutError when it takes longer."""
        self._process.join(timeout_s)
        if self.returncode is None:
            raise TimeoutError(f"{self.pid} did not end in {timeout_s} s")
        return self.returncode


def typed(
    words: Sequence[str],
    folder: Path,
    environ: Mapping[str, str] | None = None,
    namespace: str = "",
) -> subprocess.CompletedProcess[str]:
    """`imlmesh WORDS` in a folder, and where wanted in a network namespace, to its end."""
    with tempfile.TemporaryDirectory() as kept:
        out, err = Path(kept) / "out", Path(kept) / "err"
        process = Forked(Start("imlmesh", words, out, err, folder, environ, namespace))
        code = process.wait_here(100)
        return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())


def _begin(start: Start, folder: Path, environ: Mapping[str, str], begun: Any) -> None:
    # what was read already is looked through by no collector again
    gc.freeze()
    os.setsid()
    # as in a terminal, also where the tests were started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if start.namespace:
        _enter(start.namespace)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    for descriptor, path in ((1, start.out), (2, start.err or start.out)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    if start.terminal:
        _sit_at(start.terminal)
    if start.dies_at:
        _die_at(start.dies_at)
    sys.argv = [start.module, *start.arguments]
    begun.send(None)
    begun.close()
    runpy.run_module(start.module, run_name="__main__", alter_sys=True)


def _enter(namespace: str) -> None:
    """As `ip netns exec` does, but for /sys, of which nothing of ours reads what is of a network."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", namespace).open() as network:
        if libc.setns(network.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), namespace)


def _sit_at(terminal: Path) -> None:
    """Let it be the one that controls this session, and our standard streams be as Python makes them
    at one."""
    opened = os.open(terminal, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(opened, descriptor)
    os.close(opened)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the process
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


def _die_at(left: int) -> None:
    sync: Callable[[int], None] = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            os._exit(9)
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
