"""One command under way: its process group, its output streams, and its certain end.

The one rule: when `end_group` returns, nothing of the group is left. Reading never gets ahead of
what is taken, so a flood of output waits in the pipe and costs no memory.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imlmesh_drivers.base import Call, clip
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import (
    COMMAND_OUTPUT_BYTES,
    KILL_GRACE_MS,
    LOG_LINE_BYTES,
    OUTPUT_BYTES,
)

_CHUNK_BYTES = 64 * 1024


class Stream:
    """One output stream: lines go to the log, the first bytes are kept, all are counted."""

    def __init__(self, name: str, call: Call) -> None:
        self.name = name
        self.size = 0
        self._call = call
        self._kept = bytearray()
        self._line = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes; `driver.failed` when the command prints without end."""
        self.size += len(data)
        if self.size > COMMAND_OUTPUT_BYTES:
            raise DriverError(
                "driver.failed", f"{self.name} is longer than {COMMAND_OUTPUT_BYTES} bytes"
            )
        self._kept += data[: OUTPUT_BYTES - len(self._kept)]
        if self._call.full:
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._log(line)
        while len(self._line) > LOG_LINE_BYTES:
            self._log(self._line[:LOG_LINE_BYTES])
            self._line = self._line[LOG_LINE_BYTES:]

    def end(self) -> None:
        """The stream ended: a last line without its end counts too."""
        if self._line:
            self._log(self._line)

    @property
    def text(self) -> str:
        return clip(self._kept.decode(errors="replace"), OUTPUT_BYTES)

    def _log(self, line: bytes) -> None:
        self._call.log(line.rstrip(b"\r").decode(errors="replace"), self.name)


@dataclass(frozen=True, slots=True)
class Running:
    """A started command and the read ends of its stdout and stderr."""

    process: asyncio.subprocess.Process
    readers: tuple[asyncio.StreamReader, ...]
    transports: tuple[asyncio.ReadTransport, ...]

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group, if anything is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


async def spawn(
    argv: Sequence[str], cwd: str, env: Mapping[str, str], stdin: str | None
) -> Running:
    """Start a command as the leader of a session of its own; without `stdin` it reads nothing.

    The pipes are ours and not asyncio's, whose `wait` would wait for whoever holds them open.
    """
    loop = asyncio.get_running_loop()
    readers, transports = [], []
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        write_ends = []
        for _ in range(2):
            read_end, write_end = os.pipe()
            theirs.callback(os.close, write_end)
            write_ends.append(write_end)
            reader = asyncio.StreamReader(limit=_CHUNK_BYTES)
            transport, _protocol = await loop.connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),  # type: ignore[misc]
                os.fdopen(read_end, "rb", buffering=0),
            )
            ours.callback(transport.close)
            readers.append(reader)
            transports.append(transport)
        source = asyncio.subprocess.DEVNULL
        if stdin is not None:
            # a file in memory needs nobody to feed it
            source = os.memfd_create("stdin")
            theirs.callback(os.close, source)
            os.write(source, stdin.encode())
            os.lseek(source, 0, os.SEEK_SET)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=source,
            stdout=write_ends[0],
            stderr=write_ends[1],
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
        ours.pop_all()
    return Running(process, tuple(readers), tuple(transports))


async def _pump(reader: asyncio.StreamReader, stream: Stream) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        stream.feed(data)
    stream.end()


async def follow(running: Running, streams: Sequence[Stream]) -> int:
    """Read all output until the command ends; its return code, negative for a signal.

    Raises `driver.failed` as soon as one stream is too long.
    """
    pumps: asyncio.Future[Any] = asyncio.gather(
        *(_pump(reader, stream) for reader, stream in zip(running.readers, streams, strict=True))
    )
    ended: asyncio.Future[Any] = asyncio.ensure_future(running.process.wait())
    try:
        await asyncio.wait({pumps, ended}, return_when=asyncio.FIRST_COMPLETED)
        if pumps.done():
            pumps.result()
        code: int = await ended
        # what the command left behind would hold the pipes open
        running.signal(signal.SIGKILL)
        done, _ = await asyncio.wait({pumps}, timeout=KILL_GRACE_MS / 1000)
        if done:
            pumps.result()
        return code
    finally:
        pumps.cancel()
        ended.cancel()


async def end_group(running: Running) -> None:
    """Close the pipes and end the whole group: SIGTERM, and SIGKILL after the grace time."""
    for transport in running.transports:
        transport.close()
    try:
        if running.process.returncode is None:
            running.signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_GRACE_MS / 1000):
                    await running.process.wait()
    finally:
        running.signal(signal.SIGKILL)
    await running.process.wait()
