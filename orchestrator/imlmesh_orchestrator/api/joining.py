"""Routes about joining: tokens, nodes that wait for a person, the open door.

The one rule: a token's text is in one answer and nowhere else. Deliberately absent: what nodes
themselves ask; they are at the join endpoint.
"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import body_of, count_of, optional_text, texts_of
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.joins import waiting
from imlmesh_orchestrator.views.joining import door_view, enrolled_view, join_view, token_view
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.manifest import PROFILES

router = APIRouter()


@router.get("/tokens")
async def list_tokens(request: Request) -> Response:
    shell = served_of(request).shell
    now_ms = shell.clock.now_ms()
    found = [token_view(record, now_ms) for record in shell.state.tokens.values()]
    return answer({"schema": "imlmesh.token-list/1", "tokens": found})


@router.post("/tokens")
async def create_token(request: Request) -> Response:
    served = served_of(request)
    body = await body_of(request, "uses", "ttl_ms", "groups", "profile")
    uses = count_of(body, "uses", 1, limits.TOKEN_USES)
    ttl_ms = count_of(body, "ttl_ms", limits.TOKEN_MS, limits.TOKEN_LONGEST_MS)
    named = dict.fromkeys(texts_of({"groups": [], **body}, "groups"))
    groups = tuple(check_name("group", each) for each in named)
    if len(groups) > limits.TOKEN_GROUPS:
        raise InputError("usage", f"a token carries at most {limits.TOKEN_GROUPS} groups")
    profile = _profile(body) or "local_worker"
    token = served.joining.new_token()
    by = request.state.by

    def asked(at_ms: int, cause: str) -> e.Event:
        return e.TokenAsked(at_ms, cause, token.id, token.key, uses, profile, groups, ttl_ms, by)

    await served.shell.ask(asked)
    text = token.text
    told = {**_token(served, token.id), "text": text, "line": f"imlmesh node join {text}"}
    return answer({"schema": "imlmesh.token/1", **told}, status=201)


@router.delete("/tokens/{name}")
async def revoke_token(request: Request, name: str) -> Response:
    served = served_of(request)
    by = request.state.by
    await served.shell.ask(lambda at_ms, cause: e.TokenRevokeAsked(at_ms, cause, name, by))
    return answer({"schema": "imlmesh.token/1", **_token(served, name)})


@router.get("/joins")
async def list_joins(request: Request) -> Response:
    shell = served_of(request).shell
    now_ms = shell.clock.now_ms()
    found = [join_view(record) for record in waiting(shell.state, now_ms)]
    told = {
        "schema": "imlmesh.join-list/1",
        "nodes": found,
        **door_view(shell.state, now_ms),
        "enrolled": [enrolled_view(record) for record in shell.state.enrolled.values()],
        "now_ms": now_ms,
    }
    return answer(told)


@router.put("/joins")
async def open_door(request: Request) -> Response:
    shell = served_of(request).shell
    for_ms = count_of(await body_of(request, "for_ms"), "for_ms", 0, limits.JOIN_OPEN_MS, least=0)
    by = request.state.by
    await shell.ask(lambda at_ms, cause: e.JoinWindowAsked(at_ms, cause, for_ms, by))
    now_ms = shell.clock.now_ms()
    door = door_view(shell.state, now_ms)
    return answer({"schema": "imlmesh.door/1", **door, "now_ms": now_ms})


@router.post("/joins/{name}/approve")
async def approve_join(request: Request, name: str) -> Response:
    served = served_of(request)
    body = await body_of(request, "profile", "replaces")
    profile, replaces = _profile(body), optional_text(body, "replaces") or ""
    by = request.state.by

    def answered(at_ms: int, cause: str) -> e.Event:
        return e.JoinAnswered(at_ms, cause, name, True, profile, replaces, by)

    node, code = await served.shell.ask(answered)
    record = served.shell.state.enrolled[node]
    told = {**enrolled_view(record), "code": code or None}
    return answer({"schema": "imlmesh.approved/1", **told})


@router.post("/joins/{name}/ignore")
async def ignore_join(request: Request, name: str) -> Response:
    shell = served_of(request).shell
    by = request.state.by
    node, code = await shell.ask(
        lambda at_ms, cause: e.JoinAnswered(at_ms, cause, name, False, "", "", by)
    )
    return answer({"schema": "imlmesh.ignored/1", "node": node, "code": code or None})


def _token(served: Served, name: str) -> dict[str, Any]:
    shell = served.shell
    return token_view(shell.state.tokens[name], shell.clock.now_ms())


def _profile(body: dict[str, Any]) -> str:
    profile = optional_text(body, "profile") or ""
    if profile and profile not in PROFILES:
        text = f"profile must be one of {', '.join(PROFILES)}"
        raise InputError("config.invalid", text)
    return profile
