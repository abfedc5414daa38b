"""The agent's side of guardians: starts commands under them, and hears how they ended.

The one rule: a command that was started is `gone` before anybody forgets it. A guardian that was
killed is an error, even though what it guarded is killed as well.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imlmesh_drivers.base import CommandRule
from imlmesh_drivers.os_exec import guardian
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverNotFound, DriverTimeout
from imlmesh_protocol.limits import (
    APPLICATION_MEMORY_BYTES,
    APPLICATION_PROCESSES,
    COMMAND_END_MS,
    COMMAND_MEMORY_BYTES,
    COMMAND_NICE,
    COMMAND_PROCESSES,
    KILL_GRACE_MS,
)

#: from being asked to end to the certain end
END_S = (KILL_GRACE_MS + COMMAND_END_MS) / 1_000
_MIB = 1024 * 1024
#: without our packages, which would be copied with every fork
_BEGIN = "import sys; sys.path.append(sys.argv[1]); import guardian; guardian.main()"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a command and all that it starts may take together."""

    processes: int
    memory_bytes: int

    def for_rule(self, rule: CommandRule) -> "Bounds":
        """These, but for what the policy says of one program."""
        memory_bytes = self.memory_bytes if rule.memory_mb is None else rule.memory_mb * _MIB
        return Bounds(rule.processes or self.processes, memory_bytes)


COMMAND = Bounds(COMMAND_PROCESSES, COMMAND_MEMORY_BYTES)
APPLICATION = Bounds(APPLICATION_PROCESSES, APPLICATION_MEMORY_BYTES)


@dataclass(frozen=True, slots=True)
class Launch:
    """What is started: an argv with an absolute path, its environment, bounds and open folder."""

    argv: Sequence[str]
    env: Mapping[str, str]
    bounds: Bounds
    cwd: int


class Guarded:
    """A command under its guardian; `pid` is the command's own."""

    def __init__(
        self, name: str, bounds: Bounds, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """`reader` and `writer` are the line to the guardian."""
        self.name = name
        self.pid = 0
        self._bounds = bounds
        self._reader = reader
        self._writer = writer

    async def hear_start(self) -> None:
        """Wait until the command runs; `driver.not_found`, `driver.denied`, `driver.failed`."""
        word, pid = await self._hear()
        self.pid = int(pid) if word == "pid" else 0
        word, said = await self._hear()
        if word != "errno":
            raise self._crashed()
        number = int(said)
        if number == errno.ENOENT:
            raise DriverNotFound("driver.not_found", f"{self.name} is not installed on the node")
        if number in (errno.EACCES, errno.EPERM):
            text = f"{self.name} may not be run by the node's account"
            raise DriverDenied("driver.denied", text)
        if number:
            text = f"{self.name} does not start: {os.strerror(number)}"
            raise DriverError("driver.failed", text)

    async def hear_end(self) -> int:
        """The command's return code, negative for a signal; `driver.failed` at a limit.

        What it has left behind is being killed by then; `gone` waits for that.
        """
        bounds = self._bounds
        match await self._hear():
            case "code", code if code != "None":
                return int(code)
            case "broken", "processes":
                text = f"{self.name} started more than {bounds.processes} processes"
                raise DriverError("driver.failed", text)
            case "broken", _:
                text = f"{self.name} took more than {bounds.memory_bytes} bytes of memory"
                raise DriverError("driver.failed", text)
        raise self._crashed()

    def end(self, *, force: bool = False) -> None:
        """Ask all of it to end; with `force`, or after the grace time, it is killed."""
        self._writer.write(b"k" if force else b"t")

    async def gone(self) -> None:
        """Wait until nothing is left; `driver.timeout` for what the kernel itself holds on to."""
        try:
            async with asyncio.timeout(END_S):
                was_told = await self.ended()
        except TimeoutError as exc:
            text = f"{self.name} cannot be killed: it hangs in the kernel, or is another account's"
            raise DriverTimeout("driver.timeout", text) from exc
        if not was_told:
            if self.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            raise self._crashed()

    async def ended(self) -> bool:
        """Wait, as long as it takes, for the guardian's end; False when it was killed."""
        word = "."
        while word not in ("gone", ""):
            word, _ = await self._hear()
        return word == "gone"

    def close(self) -> None:
        """Let go; a guardian that still lives ends its command now."""
        self._writer.close()

    async def _hear(self) -> tuple[str, str]:
        """(what, value) of the guardian's next line; empty when it has ended."""
        line = b""
        with contextlib.suppress(ConnectionError):
            line = await self._reader.readline()
        what, _, value = line.decode().strip().partition(" ")
        return what, value

    def _crashed(self) -> DriverError:
        return DriverError("driver.crashed", f"{self.name}: its guardian was killed")


class Guardians:
    """Starts commands; the zygote behind it is started with the first one."""

    def __init__(self) -> None:
        self._starting = asyncio.Lock()
        self._zygote: socket.socket | None = None
        #: asyncio kills what nobody holds
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, launch: Launch, descriptors: tuple[int, int, int]) -> Guarded:
        """Start a command with (stdin, stdout, stderr).

        Raises `driver.not_found`, `driver.denied`, `driver.failed`, `driver.crashed`.
        """
        bounds = launch.bounds
        order = guardian.Order(
            list(launch.argv),
            dict(launch.env),
            bounds.processes,
            bounds.memory_bytes,
            KILL_GRACE_MS / 1_000,
            COMMAND_NICE,
        )
        mine, its = socket.socketpair()
        with its:
            try:
                await self._send((its.fileno(), *descriptors, launch.cwd))
            except BaseException:
                mine.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=mine)
        guarded = Guarded(launch.argv[0], bounds, reader, writer)
        try:
            writer.write(order.pack())
            await guarded.hear_start()
        except BaseException:
            # whoever gave up may forget it when we return, so it must be gone by then
            guarded.end(force=True)
            with contextlib.suppress(DriverError):
                await guarded.gone()
            guarded.close()
            raise
        return guarded

    def close(self) -> None:
        """The zygote ends after its last guardian."""
        if self._zygote is not None:
            self._zygote.close()

    async def _send(self, descriptors: Sequence[int]) -> None:
        async with self._starting:
            try:
                if self._zygote is not None:
                    socket.send_fds(self._zygote, [b"."], descriptors)
                    return
            except OSError:
                # somebody killed it: another one takes over
                self.close()
            self._zygote = await self._begin()
            socket.send_fds(self._zygote, [b"."], descriptors)

    async def _begin(self) -> socket.socket:
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", "-c", _BEGIN, str(Path(guardian.__file__).parent)),
                stdin=its.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env={"LANG": "C.UTF-8"},
                start_new_session=True,
            )
        return mine
