"""This side of a peer: its process in the Python of `.peers`, asked for one measure at a time.

The one rule: every process of the peer is in the session that its first one leads, so that none
outlives the `async with`, whatever became of the first.
"""

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Any

import psutil

from bench.peers.install import PYTHON, ROOT, Absent, Candidate, shortened
from bench.peers.measures import Measure

_START_S = 60
_MEASURE_S = 40
_END_S = 20
#: an answer holds some fifty numbers
_LINE_BYTES = 64 * 1024


class Near:
    def __init__(self, process: asyncio.subprocess.Process, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self.version = ""

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, candidate: Candidate) -> AsyncIterator["Near"]:
        """A peer that has run its first action. Raises Absent."""
        with contextlib.ExitStack() as stack:
            # Whatever the peer's processes leave behind is in here, even when they are killed.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="imlmesh-peer-", ignore_cleanup_errors=True)
            )
            log = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            process = await asyncio.create_subprocess_exec(
                *(PYTHON, "-m", f"bench.peers.{candidate.module}"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder},
                start_new_session=True,
                limit=_LINE_BYTES,
            )
            near = cls(process, log)
            try:
                near.version = await near._answer(_START_S)
                yield near
            finally:
                await near._end()

    async def measure(self, measure: Measure) -> list[float]:
        """Seconds, as the far side took them. Raises Absent."""
        self._stdin.write(f"{measure}\n".encode())
        seconds: list[float] = await self._answer(_MEASURE_S)
        return seconds

    @property
    def _stdin(self) -> asyncio.StreamWriter:
        assert self._process.stdin is not None
        return self._process.stdin

    async def _answer(self, limit_s: float) -> Any:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                line = await self._process.stdout.readline()
        except TimeoutError as exc:
            raise Absent(f"no answer within {limit_s} s") from exc
        if not line:
            self._log.seek(0)
            raise Absent(
                shortened(self._log.read().decode(errors="replace")) or "it ended without a word"
            )
        return json.loads(line)

    async def _end(self) -> None:
        self._stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._process.wait()
        for pid in psutil.pids():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == self._process.pid:
                    os.kill(pid, signal.SIGKILL)
        await self._process.wait()
