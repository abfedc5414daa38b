"""Processes of ours that begin as forks of one that has read our code already.

To read the code of an orchestrator takes half a second of a processor, and the tests start hundreds.
A fork is a process like any other: it has a number, a session, an environment and output of its own,
and runs the same `__main__`. That `python -m` leads there is proved wherever commands are typed.
"""

import asyncio
import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["imlmesh_orchestrator.main", "imlmesh_node.main"])


class Forked:
    """`python -m MODULE ARGUMENTS >>LOG 2>&1` in a session of its own."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        reading, begun = _FORKS.Pipe(duplex=False)
        given = (module, arguments, log, dict(os.environ), begun)
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
        self._process.join()
        assert self.returncode is not None
        return self.returncode


def _begin(
    module: str, arguments: Sequence[str], log: Path, environ: Mapping[str, str], begun: Any
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = [module, *arguments]
    begun.send(None)
    begun.close()
    runpy.run_module(module, run_name="__main__", alter_sys=True)
