"""Who may speak to the API: the user who runs the orchestrator, and root.

The one rule: on the Unix socket the kernel says who asks; on loopback a token does, which only
that user can read. Everybody else gets 403 before a route is looked for; who wants to change
something while the orchestrator ends gets 503.
"""

import hmac
import os
import pwd
import socket
import struct
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from imlmesh_orchestrator.api.problems import problem
from imlmesh_protocol.errors import InputError, MeshError

_QUESTIONS = frozenset({"GET", "HEAD"})
_PEER = struct.Struct("3i")  # struct ucred: pid, uid, gid


class PeerProtocol(H11Protocol):
    """Tells the application which user is at the other end of a Unix socket."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
            self.app_state = {**self.app_state, "uid": _PEER.unpack(raw)[1]}


class Guard:
    """Lets through our own user and root, or who has the token; sets state `by`."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token
        #: told to end: nothing new is taken
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        allowed = self._has_token(scope) if self._token else state.get("uid") in (0, os.geteuid())
        if not allowed:
            refused = InputError("access.denied", "this API belongs to another user")
            await problem(refused)(scope, receive, send)
            return
        if self.stopping and scope["method"] not in _QUESTIONS:
            ending = MeshError("orchestrator.stopping", "the orchestrator was told to end")
            await problem(ending)(scope, receive, send)
            return
        state["by"] = user_name(state.get("uid", os.geteuid()))
        await self._app(scope, receive, send)

    def _has_token(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, f"Bearer {self._token}".encode())


def user_name(uid: int) -> str:
    """What the system calls a user."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
