"""The proxy of `imlmesh chaos` fails as networks do: what passes, what is held, what is broken."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from imlmesh.chaos.proxy import Mode, Proxy, opened_proxy

WITHIN_S = 10
#: how long nothing is listened to before it counts as nothing
QUIET_S = 0.1


@dataclass
class Ends:
    """Both ends of one connection through a proxy."""

    proxy: Proxy
    here: asyncio.StreamReader
    out: asyncio.StreamWriter
    there: asyncio.StreamReader
    back: asyncio.StreamWriter

    async def up(self, data: bytes) -> None:
        self.out.write(data)
        await self.out.drain()

    async def down(self, data: bytes) -> None:
        self.back.write(data)
        await self.back.drain()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    accepted: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda *pair: accepted.put_nowait(pair), "127.0.0.1", 0)
    async with (
        asyncio.timeout(WITHIN_S),
        server,
        opened_proxy(server.sockets[0].getsockname()[1]) as proxy,
    ):
        here, out = await asyncio.open_connection("127.0.0.1", proxy.port)
        there, back = await accepted.get()
        yield Ends(proxy, here, out, there, back)
        for writer in (out, back):
            writer.close()


async def is_quiet(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(QUIET_S):
            await reader.readexactly(1)
    except TimeoutError:
        return True
    return False


async def is_broken(reader: asyncio.StreamReader) -> bool:
    """Whether it ends, at once and with nothing more to read."""
    with contextlib.suppress(ConnectionError):
        return await reader.read(1) == b""
    return True


async def test_both_ways_pass_and_an_end_is_an_end(ends: Ends) -> None:
    await ends.up(b"question")
    assert await ends.there.readexactly(8) == b"question"
    await ends.down(b"answer")
    ends.back.write_eof()
    # the last bytes come before the end
    assert await ends.here.read() == b"answer"


@pytest.mark.parametrize(
    ("mode", "up", "down"),
    [(Mode.SILENT, False, False), (Mode.UP_ONLY, True, False), (Mode.DOWN_ONLY, False, True)],
)
async def test_a_closed_way_holds_its_bytes_until_it_opens(
    ends: Ends, mode: Mode, up: bool, down: bool
) -> None:
    ends.proxy.mode = mode
    await ends.up(b"u")
    await ends.down(b"d")
    assert await is_quiet(ends.there) is not up
    assert await is_quiet(ends.here) is not down
    ends.proxy.mode = Mode.PASS
    await ends.up(b"U")
    await ends.down(b"D")
    assert await ends.there.readexactly(1 if up else 2) == (b"U" if up else b"uU")
    assert await ends.here.readexactly(1 if down else 2) == (b"D" if down else b"dD")


async def test_the_end_of_a_connection_does_not_pass_a_silent_network(ends: Ends) -> None:
    ends.proxy.mode = Mode.SILENT
    ends.out.transport.abort()
    assert await is_quiet(ends.there)
    ends.proxy.mode = Mode.PASS
    assert await is_broken(ends.there)


async def test_a_cut_breaks_what_there_is_and_refuses_what_comes(ends: Ends) -> None:
    ends.proxy.mode = Mode.CUT
    assert await is_broken(ends.here)
    assert await is_broken(ends.there)
    reader, writer = await asyncio.open_connection("127.0.0.1", ends.proxy.port)
    assert await is_broken(reader)
    writer.close()


async def test_a_stream_breaks_after_so_many_bytes(ends: Ends) -> None:
    ends.proxy.break_after(5)
    await ends.up(b"0123456789")
    # a reset may overtake what was read before it, never the other way round
    with contextlib.suppress(ConnectionError):
        assert b"01234".startswith(await ends.there.read(10))
    assert await is_broken(ends.there)
    assert await is_broken(ends.here)
    assert ends.proxy.torn.is_set()


async def test_a_break_that_did_not_happen_yet_is_over_when_the_network_is_mended(
    ends: Ends,
) -> None:
    ends.proxy.break_after(5)
    await ends.up(b"012")
    assert await ends.there.readexactly(3) == b"012"
    ends.proxy.mode = Mode.PASS
    await ends.up(b"3456789")
    await ends.down(b"answer")
    assert await ends.there.readexactly(7) == b"3456789"
    assert await ends.here.readexactly(6) == b"answer"
    assert not ends.proxy.torn.is_set()


async def test_the_next_break_is_waited_for_anew(ends: Ends) -> None:
    ends.proxy.break_after(1)
    await ends.up(b"01")
    await ends.proxy.torn.wait()
    ends.proxy.break_after(1)
    assert not ends.proxy.torn.is_set()


async def test_a_delay_delays_and_keeps_the_order(ends: Ends) -> None:
    ends.proxy.delay_s = 0.2
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    for data in (b"one", b"two"):
        await ends.up(data)
    assert await ends.there.readexactly(6) == b"onetwo"
    assert loop.time() - began_s >= 0.2


async def test_without_a_broker_a_connection_ends(unused_tcp_port: int) -> None:
    async with asyncio.timeout(WITHIN_S), opened_proxy(unused_tcp_port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        assert await is_broken(reader)
        writer.close()
