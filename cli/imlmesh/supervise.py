"""Keeps programs of ours running as children, each in a process group of its own.

The one rule: a child ends with us. Ctrl-C reaches us alone, and we stop children in the reverse
order of their start; when we die without a word, they see the end of a pipe. Deliberately absent:
what the programs do, and the broker, which looks after itself.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_runtime.logs import is_too_long
from imlmesh_runtime.process import PARENT_FD

_LAST_LINE_BYTES = 2_000


@dataclass(frozen=True, slots=True)
class Program:
    """A Python module to run with arguments; its output is appended to `log`."""

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path


async def launch(
    program: Program,
    parent_fd: int,
    variables: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
) -> asyncio.subprocess.Process:
    """Start `program` in a process group of its own; it ends when the pipe `parent_fd` does.

    `variables` of its environment come on top of ours; `within` is a command that runs another one
    somewhere, such as `ip netns exec NAME`.
    """
    if is_too_long(program.log):
        program.log.replace(program.log.with_name(f"{program.log.name}.1"))
    with program.log.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *(*within, sys.executable),
            # -P: what lies in the folder that somebody is in must not stand for a module of ours
            *("-P", "-m", program.module, *program.arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
            pass_fds=(parent_fd,),
            env={**os.environ, **(variables or {}), PARENT_FD: str(parent_fd)},
        )


class Supervised:
    """One program, its present process, and the loop that restarts it."""

    def __init__(self, program: Program, parent_fd: int, notice: Callable[[str], None]) -> None:
        self.program = program
        self.ends = 0
        self._parent_fd = parent_fd
        self._notice = notice
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The number of the running process."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start the process and begin to look after it."""
        self._process = await self._launch()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(self._process))

    async def stop(self) -> None:
        """SIGTERM, once more after half of limits.STOP_MS for who finishes something, after all of it
        SIGKILL to the whole group; not restarted any more."""
        await self._let_go()
        for _ in range(2):
            if self._process is not None and self.pid is not None:
                # not the group: it ends its children itself, when they have finished
                self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(limits.STOP_MS / 2_000):
                        await self._ended()
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL to the whole group at once; not restarted any more."""
        await self._let_go()
        self._signal(signal.SIGKILL)
        await self._ended()

    def failure(self) -> MeshError | None:
        """Why it is not looked after any more, or None while it is."""
        if self._keeper is None or not self._keeper.done() or self._keeper.cancelled():
            return None
        return self.error(f"ended {limits.CHILD_RESTARTS + 1} times within a minute")

    def error(self, what: str) -> MeshError:
        """`process.failed` with the last line that the program wrote."""
        last = _words(_last_line(self.program.log))
        text = f"{self.program.name} {what}" + (f": {last}" if last else "")
        return MeshError("process.failed", text, hint=f"look at {self.program.log}")

    async def _keep(self, process: asyncio.subprocess.Process) -> None:
        loop = asyncio.get_running_loop()
        ends: deque[float] = deque(maxlen=limits.CHILD_RESTARTS)
        while True:
            code = await process.wait()
            self.ends += 1
            now_s = loop.time()
            while ends and now_s - ends[0] > limits.CHILD_RESTART_WINDOW_MS / 1000:
                ends.popleft()
            if len(ends) == limits.CHILD_RESTARTS:
                return
            pause_s = limits.CHILD_RESTART_MS / 1000 * 2 ** len(ends)
            ends.append(now_s)
            self._notice(f"{self.program.name} ended ({_how(code)}); again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            process = self._process = await self._launch()

    async def _launch(self) -> asyncio.subprocess.Process:
        return await launch(self.program, self._parent_fd)

    async def _let_go(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])

    async def _ended(self) -> None:
        if self._process is not None:
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            # The group may hold children of a process that has ended already.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


class Supervisor:
    """All programs of one `up`; `notice` gets a line for people when something ends unasked."""

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._read_fd, self._write_fd = os.pipe()
        self._running: list[Supervised] = []

    async def start(self, program: Program) -> Supervised:
        """Start a program; it is looked after until `stop`."""
        supervised = Supervised(program, self._read_fd, self._notice)
        await supervised.start()
        self._running.append(supervised)
        return supervised

    def check(self) -> None:
        """Raise `process.failed` when restarting a program did not help."""
        for supervised in self._running:
            failure = supervised.failure()
            if failure is not None:
                raise failure

    async def stop(self) -> None:
        """Stop all programs, the last started first."""
        while self._running:
            await self._running.pop().stop()
        for descriptor in (self._read_fd, self._write_fd):
            os.close(descriptor)


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _words(line: str) -> str:
    """What a line of our JSON logs says; any other line as it is."""
    try:
        entry = json.loads(line)
    except ValueError:
        return line
    return str(entry["message"]) if isinstance(entry, dict) and "message" in entry else line


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LAST_LINE_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""
    return ""
