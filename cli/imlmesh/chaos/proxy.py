"""A TCP proxy that stands for the network between one client and its broker, and can fail as networks do.

The one rule: what a network would deliver late is delivered late: a way that is closed holds its bytes,
in order, as TCP does, and gives them on when it opens. Deliberately absent: what the bytes mean.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from enum import StrEnum

_CHUNK_BYTES = 64 * 1024
_LOOPBACK = "127.0.0.1"


class Mode(StrEnum):
    """What passes. A silent partition lets nothing through and ends no connection."""

    PASS = "pass"  # noqa: S105 - no password
    CUT = "cut"
    SILENT = "silent"
    UP_ONLY = "up-only"
    DOWN_ONLY = "down-only"


_UP = frozenset({Mode.PASS, Mode.UP_ONLY})
_DOWN = frozenset({Mode.PASS, Mode.DOWN_ONLY})


class Proxy:
    """Listens on `port`, passes bytes to `target_port` of this machine, until told otherwise."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self._target_port = target_port
        self._mode = Mode.PASS
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._up.set()
        self._down.set()
        #: whether what `break_after` asked for has happened
        self.torn = asyncio.Event()
        self._left: int | None = None
        self._pumps: set[asyncio.Future[None]] = set()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        """From now on; what `break_after` asked for and did not happen yet, does not any more. CUT ends
        what there is and refuses what comes; what was under way is lost."""
        self._mode = mode
        self._left = None
        for way, passing in ((self._up, _UP), (self._down, _DOWN)):
            if mode in passing:
                way.set()
            else:
                way.clear()
        if mode is Mode.CUT:
            self._break()

    def break_after(self, size: int) -> None:
        """Pass so many bytes more, in both directions together, then reset every connection and set `torn`."""
        self.torn.clear()
        self._left = size

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        if self._is_cut():
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection(_LOOPBACK, self._target_port)
        except OSError:
            writer.transport.abort()
            return
        pumps = {
            asyncio.ensure_future(self._pump(reader, back, self._up)),
            asyncio.ensure_future(self._pump(there, writer, self._down)),
        }
        self._pumps |= pumps
        if self._is_cut():
            # meanwhile
            self._break()
        try:
            await asyncio.wait(pumps)
        finally:
            self._pumps -= pumps
            for each in (writer, back):
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: asyncio.Event
    ) -> None:
        """All bytes of one direction, then how it ended; neither passes where the way is closed."""
        try:
            while data := await reader.read(_CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await way.wait()
                left = self._left
                if left is not None:
                    data = data[:left]
                    self._left = left - len(data)
                # whatever is switched while it is written: what was cut short must not go on
                is_torn = self._left == 0
                writer.write(data)
                await writer.drain()
                if is_torn:
                    self._left = None
                    self.torn.set()
                    self._break()
            await way.wait()
            writer.write_eof()
        except OSError:
            await way.wait()
            writer.transport.abort()

    def _is_cut(self) -> bool:
        return self._mode is Mode.CUT

    def _break(self) -> None:
        for pump in self._pumps:
            pump.cancel()


@contextlib.asynccontextmanager
async def opened_proxy(
    target_port: int, listener: socket.socket | None = None
) -> AsyncIterator[Proxy]:
    """A proxy to a port of this machine, on a free port of loopback or on `listener`."""
    proxy = Proxy(target_port)
    listener = listener or socket.create_server((_LOOPBACK, 0))
    server = await asyncio.start_server(proxy.serve, sock=listener)
    proxy.port = listener.getsockname()[1]
    try:
        yield proxy
    finally:
        proxy.mode = Mode.CUT
        server.close()
