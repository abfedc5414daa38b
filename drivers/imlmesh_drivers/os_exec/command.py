"""One command under way: its output streams, and its certain end.

The one rule: reading never gets ahead of what is taken, so a flood of output waits in the pipe and
costs no memory. Deliberately absent: processes; a guardian sees to those (see guarded.py).
"""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from imlmesh_drivers.call import Call, clip
from imlmesh_drivers.os_exec.guarded import Guarded, Guardians, Launch
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

    guarded: Guarded
    readers: tuple[asyncio.StreamReader, ...]
    transports: tuple[asyncio.ReadTransport, ...]


@contextlib.contextmanager
def source_of(stdin: str | None) -> Iterator[int]:
    """A descriptor to read `stdin` from; it is empty when that is None."""
    if stdin is None:
        source = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    else:
        # a file in memory needs nobody to feed it
        source = os.memfd_create("stdin")
    try:
        if stdin is not None:
            os.write(source, stdin.encode())
            os.lseek(source, 0, os.SEEK_SET)
        yield source
    finally:
        os.close(source)


async def spawn(guardians: Guardians, launch: Launch, stdin: str | None) -> Running:
    """Start a command; without `stdin` it reads nothing.

    The pipes are ours and not asyncio's, which would wait for whoever holds them open.
    """
    loop = asyncio.get_running_loop()
    readers, transports, write_ends = [], [], []
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
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
        source = theirs.enter_context(source_of(stdin))
        guarded = await guardians.start(launch, (source, write_ends[0], write_ends[1]))
        ours.pop_all()
    return Running(guarded, tuple(readers), tuple(transports))


async def _pump(reader: asyncio.StreamReader, stream: Stream) -> None:
    while data := await reader.read(_CHUNK_BYTES):
        stream.feed(data)
    stream.end()


async def follow(running: Running, streams: Sequence[Stream]) -> int:
    """Read all output until the command ends; its return code, negative for a signal.

    Raises `driver.failed` as soon as one stream is too long or a bound is broken.
    """
    pumps: asyncio.Future[Any] = asyncio.gather(
        *(_pump(reader, stream) for reader, stream in zip(running.readers, streams, strict=True))
    )
    # when it is given up, nobody asks how the reading ended
    pumps.add_done_callback(lambda read: read.cancelled() or read.exception())
    ended: asyncio.Future[int] = asyncio.ensure_future(running.guarded.hear_end())
    try:
        await asyncio.wait({pumps, ended}, return_when=asyncio.FIRST_COMPLETED)
        if pumps.done():
            pumps.result()
        code = await ended
        # what the command left behind, and its guardian kills now, holds the pipes open
        done, _ = await asyncio.wait({pumps}, timeout=KILL_GRACE_MS / 1000)
        if done:
            pumps.result()
        return code
    finally:
        pumps.cancel()
        ended.cancel()
        # others listen to the same lines after this
        await asyncio.wait({pumps, ended})


async def _discard(reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
    """Let a command that ends say its last words; a flood is cut off."""
    left = COMMAND_OUTPUT_BYTES
    while left > 0 and (data := await reader.read(_CHUNK_BYTES)):
        left -= len(data)
    transport.close()


async def end(running: Running) -> None:
    """Wait until nothing of the command is left; ask it to end if it still runs."""
    # who writes into a closed pipe is killed by that, before it could tidy up
    listening = [
        asyncio.create_task(_discard(reader, transport))
        for reader, transport in zip(running.readers, running.transports, strict=True)
    ]
    try:
        running.guarded.end()
        await running.guarded.gone()
    finally:
        for last_words in listening:
            last_words.cancel()
        for transport in running.transports:
            transport.close()
        running.guarded.close()
