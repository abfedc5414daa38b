"""A mesh of processes, and a small API that answers as the orchestrator does, from a table."""

import json
import socketserver
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from imlmesh import render
from imlmesh_runtime.paths import ApiAddress, Home, write_api
from orchestrator_mesh import Mesh, opened_mesh


class Api(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers from a table; notes what was asked."""

    daemon_threads = True
    #: an open event stream is no reason to wait
    block_on_close = False

    def __init__(self, path: str) -> None:
        super().__init__(path, Handler)
        self.answers: dict[str, tuple[int, Any]] = {}
        #: answers given once each, in turn; the last is given for ever
        self.turns: dict[str, list[Any]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        #: one entry per connection to /v1/events?run=…
        self.streams: list[str] = []
        self.stream_queries: list[dict[str, list[str]]] = []
        self.stopping = threading.Event()

    def answer(self, key: str, body: Any, status: int = 200) -> None:
        self.answers[key] = (status, body)

    def take_turns(self, key: str, *bodies: Any) -> None:
        self.turns[key] = list(bodies)


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/v1/events":
            self._stream(parse_qs(parts.query))
        else:
            self._answer(f"GET {parts.path}", None)

    def do_POST(self) -> None:
        self._answer(f"POST {self.path}", self._body())

    def do_PUT(self) -> None:
        self._answer(f"PUT {urlsplit(self.path).path}", self._body())

    def do_DELETE(self) -> None:
        self._answer(f"DELETE {urlsplit(self.path).path}", None)

    def _body(self) -> Any:
        length = int(self.headers.get("Content-Length", 0))
        return json.loads(self.rfile.read(length)) if length else None

    def _answer(self, key: str, body: Any) -> None:
        self.server.asked.append((key, self.path, body))
        missing = {"code": "run.not_found", "message": f"no {key}", "hint": "imlmesh run list"}
        turns = self.server.turns.get(key, [])
        if len(turns) > 1:
            self.server.answer(key, turns.pop(0))
        elif turns:
            self.server.answer(key, turns[0])
        status, found = self.server.answers.get(key, (404, missing))
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, query: dict[str, list[str]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.close_connection = True
        if "run" not in query:
            self.server.stopping.wait(30)
            return
        self.server.stream_queries.append(query)
        if self.server.streams:
            self.wfile.write(self.server.streams.pop(0).encode())
        else:
            self.server.stopping.wait(30)

    def address_string(self) -> str:
        return "socket"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""


@pytest.fixture
async def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mesh]:
    """A home and its broker. Where the file of the test names NODES, they and their orchestrator run."""
    async with opened_mesh(tmp_path) as made:
        if nodes := getattr(request.module, "NODES", ()):
            await made.begin(*nodes)
        yield made


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    home = Home(tmp_path / "home")
    home.make()
    server = Api(str(home.api_socket))
    write_api(home, ApiAddress("http://imlmesh", str(home.api_socket)))
    monkeypatch.setenv("IMLMESH_HOME", str(home.root))
    monkeypatch.setenv("NO_COLOR", "1")
    render.console.cache_clear()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()
