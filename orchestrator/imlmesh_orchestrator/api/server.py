"""Serves the application with uvicorn inside our event loop.

The one rule: a Unix socket that only our user may open; loopback with a token where the socket's
path would be too long. run/api.json says which, and is there only while we answer.
"""

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Iterator

import uvicorn

from imlmesh_orchestrator.api.app import make_app
from imlmesh_orchestrator.api.guard import Guard, PeerProtocol
from imlmesh_orchestrator.api.served import Served
from imlmesh_protocol.errors import InputError
from imlmesh_runtime.files import write_private
from imlmesh_runtime.paths import Home

_BACKLOG = 128
_DATE_S = 1.0  # a date has no smaller parts
_GOODBYE_S = 1  # open streams get this long after the last answer


class _Server(uvicorn.Server):
    """Signals belong to the process, not to its API; and it sleeps until it is told to end, where the
    library looks ten times a second whether it was."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    def end(self) -> None:
        """Take nothing more, and end when the last answers are given."""
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        # a tick renews the date of the answers
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DATE_S):
                    await self._told.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Api:
    """The API of one orchestrator, from `start` to `close`."""

    def __init__(self, home: Home, served: Served) -> None:
        self._home = home
        self._served = served
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._guard: Guard | None = None

    async def start(self) -> None:
        """Listen, then say where; InputError `config.invalid` when that is not possible."""
        home = self._home
        token = None if home.socket_fits() else secrets.token_urlsafe(32)
        try:
            listening = _unix(home) if token is None else _loopback()
        except OSError as exc:
            raise InputError("config.invalid", f"{home.api_socket}: {exc.strerror}") from exc
        app = self._guard = Guard(make_app(self._served), token)
        config = uvicorn.Config(
            app,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=_GOODBYE_S,
        )
        self._server = _Server(config)
        loop = asyncio.get_running_loop()
        self._serving = loop.create_task(self._server.serve(sockets=[listening]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
            await asyncio.sleep(0)
        self._write_address(listening, token)

    def refuse_new(self) -> None:
        """From now on questions are answered, and whatever would change something is not taken."""
        if self._guard is not None:
            self._guard.stopping = True

    async def close(self) -> None:
        """Take nothing more, and be no longer found."""
        for path in (self._home.api_json, self._home.api_token, self._home.api_socket):
            path.unlink(missing_ok=True)
        if self._server is not None and self._serving is not None:
            self._server.end()
            await asyncio.wait([self._serving])

    def _write_address(self, listening: socket.socket, token: str | None) -> None:
        home = self._home
        url = None
        if token is not None:
            write_private(home.api_token, token.encode())
            address, port = listening.getsockname()
            url = f"http://{address}:{port}"
        record = {
            "schema": "imlmesh.api/1",
            "socket": str(home.api_socket) if token is None else None,
            "url": url,
            "token_file": None if token is None else str(home.api_token),
            "pid": os.getpid(),
        }
        write_private(home.api_json, json.dumps(record).encode())


def _unix(home: Home) -> socket.socket:
    home.api_socket.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listening.bind(str(home.api_socket))
    finally:
        os.umask(mask)
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening


def _loopback() -> socket.socket:
    # asyncio sets TCP_NODELAY where the protocol is told: without it events of a stream wait for each other
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening
