"""Speaks to the orchestrator's HTTP API: over its socket, or over loopback with its token.

The one rule: whatever goes wrong becomes a MeshError with the code that the orchestrator gave, or
`orchestrator.unreachable`; what cannot be sent is an InputError. The events of a run survive a
restart of the orchestrator. Deliberately absent: printing.
"""

import asyncio
import contextlib
import difflib
import json
import math
import os
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx2

from imlmesh.diagnosis import error_of
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, LinkError, MeshError
from imlmesh_runtime.paths import SERVICE_API, SERVICE_HOME, ApiAddress, Home, find_api, find_home

if TYPE_CHECKING:
    from imlmesh.planning import PlanSource

_BASE_URL = "http://imlmesh"
#: no TLS is spoken here: it trusts nobody, where the default would read all CAs for 20 ms each time
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: a stream without pings is dead
_STREAM_SILENCE_S = 3 * limits.EVENT_PING_S
_RETRY_S = 0.5
_POLL_S = 0.1
#: the orchestrator tells a run of 1,000 actions in 40 ms, on a Pi in 0.3 s, and does nothing else then
_LOOK_SHARE = 5
_SENT = "JSON in UTF-8 can be sent: no infinite number, no half of a character"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of the stream; `seq` is None for what is not replayed."""

    kind: str
    seq: int | None
    data: dict[str, Any]

    def as_record(self) -> dict[str, Any]:
        """As it is printed with -o json and jsonl; a change's `kind` says which change."""
        head = {"schema": "imlmesh.event/1", "event": self.kind, "seq": self.seq}
        return {**head, **self.data}


def path_of(kind: str, *names: str) -> str:
    """The path of a thing: `kind` (runs, nodes, …), then its name and what is asked of it.

    InputError `name.invalid` for what no name can be and a path would be read as another one.
    """
    for name in names:
        # of all names only a key of the memory may hold a slash
        wrong = name in ("", ".", "..") or ("/" in name and kind != "memory")
        if wrong or len(name) > limits.NAME_CHARS:
            listed = "node discover" if kind == "joins" else f"{kind.removesuffix('s')} list"
            hint = f"imlmesh {listed}"
            raise InputError("name.invalid", f"{name[:80]!r} is no name", hint=hint)
    return "/".join([kind, *(quote(name, safe="") for name in names)])


class Client:
    """The API of one orchestrator. Every call raises MeshError.

    `service` is where a system's service says its address, for homes that have none themselves.
    """

    def __init__(self, home: Home, address: ApiAddress, service: Path | None = None) -> None:
        self.home = home
        self._service = service
        self._http = httpx2.Client(
            base_url=_url(address),
            headers=_headers(address),
            timeout=limits.CLIENT_ANSWER_S,
            transport=httpx2.HTTPTransport(verify=_NO_TLS, uds=address.socket),
            trust_env=False,
        )

    @classmethod
    def connect(cls, home: str | Path | None = None) -> Self:
        """The orchestrator of `home`, else of $IMLMESH_HOME, of the service, of the user's data."""
        found = find_home(home, os.environ)
        named = home or os.environ.get("IMLMESH_HOME")
        is_elsewhere = named and found.root != SERVICE_HOME
        service = None if is_elsewhere else SERVICE_API
        return cls(found, find_api(found, service=service), service)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """GET /v1/`path`."""
        return self._call("GET", path, params=params)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """POST `body` to /v1/`path`."""
        return self._call("POST", path, json=body)

    def put(self, path: str, body: Mapping[str, Any], **params: Any) -> dict[str, Any]:
        """PUT `body` to /v1/`path`."""
        return self._call("PUT", path, json=body, params=params)

    def delete(self, path: str, **params: Any) -> dict[str, Any]:
        """DELETE /v1/`path`."""
        return self._call("DELETE", path, params=params)

    def submit(self, plan: "PlanSource") -> dict[str, Any]:
        """Start a run of a plan and return at once: run (its id), plan_id, digest, warnings.

        `plan` is an `imlmesh.Plan`, a checked model, or the path of a file.
        """
        return self.post("runs", _submission_of(plan))

    def check(self, plan: "PlanSource") -> dict[str, Any]:
        """What is wrong with a plan on this mesh, as `imlmesh plan check --mesh -o json` prints."""
        return self.post("plans/check", _submission_of(plan))

    def run(self, plan: "PlanSource", *, timeout_s: float | None = None) -> dict[str, Any]:
        """Submit a plan and wait; the run, as `imlmesh run show -o json` prints it.

        `state` says how it ended; when the time is over first, the run goes on.
        """
        return self.wait(self.submit(plan)["run"], timeout_s=timeout_s)

    def wait(self, run: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """The run when it has ended, or as it is when the time is over."""
        end_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            began_s = time.monotonic()
            found = self.get(path_of("runs", run))
            now_s = time.monotonic()
            if found["ended_at_ms"] is not None or now_s >= end_s:
                return found
            # a loop of events of our own would not run within one of the caller's
            time.sleep(min(look_pause_s(_POLL_S, now_s - began_s), end_s - now_s))

    def stream(self, path: str, **params: Any) -> Iterator[bytes]:
        """GET /v1/`path` piece by piece, as it comes."""
        try:
            with self._http.stream("GET", f"/v1/{path}", params=_given(params)) as response:
                if response.is_error:
                    response.read()
                    raise self._problem(response)
                yield from response.iter_bytes()
        except httpx2.HTTPError as exc:
            raise _unreachable(self.home, exc) from exc

    def close(self) -> None:
        """End the connection."""
        self._http.close()

    def _call(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, json: Any = None
    ) -> dict[str, Any]:
        if self._http.is_closed:
            raise LinkError("orchestrator.unreachable", "this client was closed")
        try:
            request = self._http.build_request(
                method, f"/v1/{path}", params=_given(params or {}), json=json
            )
        except (TypeError, ValueError, RecursionError, httpx2.InvalidURL) as exc:
            raise InputError("usage", f"this cannot be sent: {exc}", hint=_SENT) from exc
        try:
            response = self._http.send(request)
        except httpx2.HTTPError as exc:
            raise _unreachable(self.home, exc) from exc
        if response.is_error:
            raise self._problem(response)
        found: dict[str, Any] = response.json()
        return found

    def _problem(self, response: httpx2.Response) -> MeshError:
        try:
            problem = response.json()
        except ValueError:
            problem = {}
        if not problem.get("code"):
            text = f"the orchestrator answered {response.status_code}"
            return MeshError("internal", text)
        records = problem.get("errors") or [problem]
        errors = [self._with_nearest(error_of(record)) for record in records]
        several = InputErrors(errors)
        several.warnings = tuple(problem.get("warnings") or ())  # type: ignore[attr-defined]
        return several

    def _with_nearest(self, error: MeshError) -> MeshError:
        """Name the nearest node when a node is not known."""
        if error.code not in ("node.not_found", "place.unknown_node"):
            return error
        if "did you mean" in error.message or "never here" in error.message:
            return error
        nodes = self.get("nodes")["nodes"]
        names = sorted({name for node in nodes for name in (node["alias"], node["node"])})
        words = [word.strip("\"'.,;:") for word in error.message.split()]
        near = next((n for w in words if (n := difflib.get_close_matches(w, names, n=1))), None)
        if near:
            error.hint = f"did you mean {near[0]!r}? {error.hint}"
        return error

    async def events(
        self, *, run: str | None = None, after: int | None = None
    ) -> AsyncGenerator[ServerEvent]:
        """The stream of events, resumed where it broke; ends with the run when `run` is given.

        `open` comes first, and again after each break: from then on nothing is missed.
        LinkError `orchestrator.unreachable` when the orchestrator stays away for CLIENT_RECONNECT_S.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_without_late_wakeups)
        last = after
        silent_since_s = loop.time()
        while True:
            try:
                # closed here, while there is a loop: whoever reads may leave at any event
                async with contextlib.aclosing(self._stream(run, last)) as stream:
                    async for event in stream:
                        if event.kind != "open":
                            silent_since_s = loop.time()
                        last = event.seq if event.seq is not None else last
                        yield event
                        if event.kind == "end":
                            return
            except (httpx2.HTTPError, LinkError) as exc:
                if loop.time() - silent_since_s > limits.CLIENT_RECONNECT_S:
                    raise _unreachable(self.home, exc) from exc
            await asyncio.sleep(_RETRY_S)

    async def _stream(self, run: str | None, after: int | None) -> AsyncGenerator[ServerEvent]:
        # A restarted orchestrator may listen elsewhere.
        address = find_api(self.home, service=self._service)
        params = _given({"run": run, "after": after})
        async with (
            httpx2.AsyncClient(
                base_url=_url(address),
                headers=_headers(address),
                timeout=httpx2.Timeout(limits.CLIENT_ANSWER_S, read=_STREAM_SILENCE_S),
                transport=httpx2.AsyncHTTPTransport(verify=_NO_TLS, uds=address.socket),
                trust_env=False,
            ) as http,
            http.stream("GET", "/v1/events", params=params) as response,
        ):
            if response.is_error:
                await response.aread()
                raise self._problem(response)
            yield ServerEvent("open", None, {})
            async for event in _server_events(response.aiter_lines()):
                yield event


def look_pause_s(least_s: float, took_s: float) -> float:
    """How long to wait after a look that took so long: whoever looks again and again takes a fifth of
    the orchestrator's time at most, together with others who do."""
    return max(least_s, (_LOOK_SHARE - 1) * took_s)


def _submission_of(plan: "PlanSource") -> dict[str, Any]:
    # pydantic and the models take 0.2 s to import, and most calls are not about plans
    from imlmesh.planning import submission_of

    return submission_of(plan)


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


async def _server_events(lines: AsyncIterator[str]) -> AsyncIterator[ServerEvent]:
    """Parse `text/event-stream`: fields until an empty line; lines that begin with : are pings."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields:
            seq = fields.get("id")
            data = json.loads(fields["data"])
            yield ServerEvent(fields.get("event", "message"), int(seq) if seq else None, data)
        fields = {}


def _without_late_wakeups(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Silence what anyio lets happen when a read ends in the turn in which its data came."""
    if not isinstance(context.get("exception"), asyncio.InvalidStateError):
        loop.default_exception_handler(context)


def _url(address: ApiAddress) -> str:
    return _BASE_URL if address.socket else address.url


def _headers(address: ApiAddress) -> dict[str, str]:
    if not address.token_file:
        return {}
    try:
        token = Path(address.token_file).read_text().strip()
    except OSError as exc:
        raise MeshError("access.denied", f"{address.token_file}: {exc.strerror}") from exc
    return {"Authorization": f"Bearer {token}"}


def _unreachable(home: Home, exc: Exception) -> LinkError:
    why = "did not answer" if isinstance(exc, httpx2.TimeoutException) else "is not running"
    return LinkError("orchestrator.unreachable", f"the orchestrator of {home.root} {why}")
