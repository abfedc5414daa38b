"""The agent's side of a guardian: starts it with its command, tells it to end, hears how it went.

The one rule: a command that was started is `gone` before anybody forgets it. When even its guardian
was killed, its process group is killed from here, and that is an error, since what had left the
group may still run.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imlmesh_drivers.os_exec import guardian
from imlmesh_protocol.errors import DriverError, DriverTimeout
from imlmesh_protocol.limits import (
    APPLICATION_MEMORY_BYTES,
    APPLICATION_PROCESSES,
    COMMAND_END_MS,
    COMMAND_MEMORY_BYTES,
    COMMAND_NICE,
    COMMAND_PROCESSES,
    KILL_GRACE_MS,
)

_LINE_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a command and all that it starts may take together."""

    processes: int
    memory_bytes: int


COMMAND = Bounds(COMMAND_PROCESSES, COMMAND_MEMORY_BYTES)
APPLICATION = Bounds(APPLICATION_PROCESSES, APPLICATION_MEMORY_BYTES)


class Guarded:
    """A command under its guardian; `pid` is the command's own."""

    def __init__(
        self, name: str, bounds: Bounds, process: asyncio.subprocess.Process, line: socket.socket
    ) -> None:
        self.name = name
        self.pid = 0
        self._bounds = bounds
        self._process = process
        self._line = line
        self._heard = b""

    async def hear_start(self) -> None:
        """Wait until the command runs; FileNotFoundError and the like when it cannot."""
        self.pid = (await self._hear()).get("pid", 0)
        number = (await self._hear()).get("errno")
        if number == 0:
            return
        if number in (errno.ENOENT, errno.EACCES, errno.EPERM):
            raise OSError(number, os.strerror(number), self.name)
        why = os.strerror(number) if number else "its guardian ended"
        raise DriverError("driver.failed", f"{self.name} does not start: {why}")

    async def hear_end(self) -> int:
        """The command's return code, negative for a signal; `driver.failed` at a limit.

        What it has left behind is being killed by then; `gone` waits for that.
        """
        said = await self._hear()
        bounds = self._bounds
        match said.get("broken"):
            case "processes":
                text = f"{self.name} started more than {bounds.processes} processes"
                raise DriverError("driver.failed", text)
            case "memory":
                text = f"{self.name} took more than {bounds.memory_bytes} bytes of memory"
                raise DriverError("driver.failed", text)
        if said.get("code") is None:
            raise DriverError("driver.crashed", f"{self.name} was killed with its guardian")
        code: int = said["code"]
        return code

    def end(self, *, force: bool = False) -> None:
        """Ask all of it to end; with `force`, or after the grace time, it is killed."""
        # a guardian that has ended hears nothing
        with contextlib.suppress(OSError):
            self._line.send(b"k" if force else b"t")

    async def gone(self) -> None:
        """Wait until nothing is left; `driver.timeout` for what the kernel itself holds on to."""
        limit_s = (KILL_GRACE_MS + COMMAND_END_MS) / 1_000
        try:
            async with asyncio.timeout(limit_s):
                code = await self._process.wait()
        except TimeoutError as exc:
            text = f"{self.name} cannot be killed: it hangs in the kernel, or is another account's"
            raise DriverTimeout("driver.timeout", text) from exc
        if code != 0 and self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            raise DriverError("driver.crashed", f"the guardian of {self.name} was killed")

    async def ended(self) -> None:
        """Wait, as long as it takes, until nothing is left."""
        await self._process.wait()

    def close(self) -> None:
        """Let go; a guardian that still lives ends its command now."""
        self._line.close()

    async def _hear(self) -> dict[str, Any]:
        """The next line of the guardian; empty when it has ended."""
        loop = asyncio.get_running_loop()
        while b"\n" not in self._heard:
            with contextlib.suppress(ConnectionError):
                if data := await loop.sock_recv(self._line, _LINE_BYTES):
                    self._heard += data
                    continue
            return {}
        line, _, self._heard = self._heard.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said


async def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    bounds: Bounds,
    descriptors: tuple[int, int, int],
    cwd: int,
) -> Guarded:
    """Start a command with (stdin, stdout, stderr) in the open folder `cwd`.

    Raises FileNotFoundError, PermissionError, `driver.failed`.
    """
    stdin, stdout, stderr = descriptors
    mine, its = socket.socketpair()
    with contextlib.ExitStack() as kept:
        kept.callback(mine.close)
        with its:
            mine.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", str(Path(guardian.__file__)), str(stdin), str(cwd)),
                stdin=its.fileno(),
                stdout=stdout,
                stderr=stderr,
                pass_fds=(stdin, cwd),
                env={"LANG": "C.UTF-8"},
                start_new_session=True,
            )
        guarded = Guarded(argv[0], bounds, process, mine)
        order = {
            "argv": list(argv),
            "env": dict(env),
            "processes": bounds.processes,
            "memory_bytes": bounds.memory_bytes,
            "grace_s": KILL_GRACE_MS / 1_000,
            "nice": COMMAND_NICE,
        }
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(mine, json.dumps(order).encode() + b"\n")
            await guarded.hear_start()
        except BaseException:
            # without us the guardian ends what it started, if it came so far
            mine.close()
            await guarded.gone()
            raise
        kept.pop_all()
    return guarded
