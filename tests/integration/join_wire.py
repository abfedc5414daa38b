"""A wire between a node that joins and its mesh, at which something can be ended at a chosen moment."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

Act = Callable[[], Awaitable[None]]


class Wire:
    """Carries connections to `target`. At the one numbered `at` (from 1), before its request is
    carried to the mesh, or when the mesh has `answered`, `act` is done and the wire breaks.

    In TLS 1.3 a client speaks twice, at first to say hello: what comes back after the second time is
    the answer.
    """

    def __init__(self, target: tuple[str, int], at: int, *, answered: bool, act: Act) -> None:
        self._target = target
        self._at = at
        self._answered = answered
        self._act = act
        self._count = 0
        self.broke = False
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def __aexit__(self, *_exc: object) -> None:
        assert self._server is not None
        self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._count += 1
        breaks = self._count == self._at
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection(*self._target)
            spoken = 0

            async def forth() -> None:
                nonlocal spoken
                while data := await reader.read(65_536):
                    spoken += 1
                    if breaks and spoken == 2 and not self._answered:
                        await self._break()
                        return
                    back.write(data)
                back.close()

            carrying = asyncio.create_task(forth())
            while data := await there.read(65_536):
                if breaks and spoken >= 2:
                    await self._break()
                    break
                writer.write(data)
            carrying.cancel()
            back.close()
        writer.close()

    async def _break(self) -> None:
        if not self.broke:
            self.broke = True
            await self._act()
