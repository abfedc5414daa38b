"""Routes about nodes, groups, and the actions that nodes offer.

The one rule: names that people use become node ids here; the core hears ids alone. Deliberately
absent: who may join from elsewhere; who speaks here is the mesh's owner.
"""

import asyncio
from base64 import b64encode

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.answering import Newcomer
from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import (
    body_of,
    bytes_of,
    labels_of,
    one_of,
    optional_text,
    span_ms_of,
    text_of,
    texts_of,
)
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.core.events import GrantAsked
from imlmesh_orchestrator.views.nodes import (
    actions_view,
    admission_view,
    evidence,
    find_node,
    groups_view,
    never_here,
    node_view,
)
from imlmesh_orchestrator.views.offers import list_offers, show_offer
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, MeshError
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.states import NOT_BELIEVED, Admission

router = APIRouter()


@router.get("/nodes")
async def list_nodes(request: Request) -> Response:
    served = served_of(request)
    beats, times = await served.beats(), await served.times()
    state, now_ms = served.shell.state, served.shell.clock.now_ms()
    found = [node_view(state, record, beats, times, now_ms) for record in state.nodes.values()]
    found.sort(key=lambda node: str(node["alias"]))
    told = {"schema": "imlmesh.node-list/1", "nodes": found, "never_here": never_here(state)}
    return answer(told)


@router.post("/nodes")
async def enrol_node(request: Request) -> Response:
    served = served_of(request)
    body = await body_of(request, "node", "alias", "identity", "profile", "request")
    node = text_of(body, "node")
    identity = bytes_of(body, "identity")
    alias = optional_text(body, "alias") or node
    newcomer = Newcomer(node, alias, identity, text_of(body, "profile"))
    asked = text_of(body, "request").encode()
    papers = await served.enrolling.let_in(newcomer, asked, request.state.by)
    names = {"mesh": served.mesh, "orchestrator": served.orchestrator}
    told = {name: b64encode(data).decode() for name, data in papers.items()}
    return answer({"schema": "imlmesh.papers/1", **names, "papers": told}, status=201)


@router.get("/nodes/{name}")
async def show_node(request: Request, name: str) -> Response:
    return await _node(served_of(request), name)


@router.post("/nodes/{name}/labels")
async def label_node(request: Request, name: str) -> Response:
    served = served_of(request)
    labels = labels_of(await body_of(request, "labels"))
    record = find_node(served.shell.state, name)
    await served.shell.set_labels(record.node, labels)
    return await _node(served, name)


@router.post("/nodes/{name}/admission")
async def decide(request: Request, name: str) -> Response:
    """Answers when it is stored and, where the broker has a part in it, enforced there or not."""
    served = served_of(request)
    body = await body_of(request, "admission", "reason", "for_ms")
    wanted = one_of({"admission": text_of(body, "admission")}, "admission", Admission)
    reason = text_of(body, "reason").strip()
    if not 0 < len(reason) <= limits.REASON_CHARS or not wanted:
        raise InputError("usage", f"a reason has from 1 to {limits.REASON_CHARS} characters")
    for_ms = span_ms_of(body, "for_ms", limits.ADMISSION_MS)
    shell = served.shell
    node = shell.state.find_id(name)
    if node is None:
        raise InputError("node.not_found", f"no node {name[:80]!r}")
    before = shell.state.admission_of(node)
    await shell.set_admission(node, Admission(wanted), reason, request.state.by, for_ms)
    told = {"node": node, "alias": shell.alias(node), "before": str(before)}
    told |= admission_view(shell.state, node, (await served.times()).admission.get(node))
    broker = None
    if served.access is not None and {before, Admission(wanted)} & NOT_BELIEVED:
        if before is Admission.REVOKED:
            served.access.renew(node)
        broker = (await served.access.enforced(node)).as_record()
    return answer({"schema": "imlmesh.admission/1", **told, "broker": broker})


@router.post("/silence")
async def explain_silence(request: Request) -> Response:
    reason = text_of(await body_of(request, "reason"), "reason").strip()
    if not 0 < len(reason) <= limits.REASON_CHARS:
        raise InputError("usage", f"a reason has from 1 to {limits.REASON_CHARS} characters")
    gone = await served_of(request).shell.explain_silence(request.state.by, reason)
    return answer({"schema": "imlmesh.silence/1", "nodes": gone})


@router.post("/nodes/{name}/profile")
async def grant_profile(request: Request, name: str) -> Response:
    """What a node may do at most, whatever its own policy allows."""
    served = served_of(request)
    profile = text_of(await body_of(request, "profile"), "profile")
    if profile not in PROFILES:
        raise InputError("config.invalid", f"profile must be one of {', '.join(PROFILES)}")
    node = served.shell.state.find_id(name)
    if node is None:
        raise InputError("node.not_found", f"no node {name[:80]!r}")
    by = request.state.by
    await served.shell.ask(lambda at_ms, cause: GrantAsked(at_ms, cause, node, profile, by))
    told = {"node": node, "alias": served.shell.alias(node), "granted": profile}
    return answer({"schema": "imlmesh.granted/1", **told})


@router.get("/groups")
async def list_groups(request: Request) -> Response:
    state = served_of(request).shell.state
    return answer({"schema": "imlmesh.group-list/1", "groups": groups_view(state)})


@router.put("/groups/{group}")
async def set_group(request: Request, group: str) -> Response:
    served = served_of(request)
    check_name("group", group)
    wanted = texts_of(await body_of(request, "nodes"), "nodes")
    found: dict[str, None] = {}
    errors: list[MeshError] = []
    for name in wanted:
        node = served.shell.state.find_id(name)
        if node is None:
            errors.append(InputError("place.unknown_node", f'there is no node "{name[:80]}"'))
        else:
            found[node] = None
    if errors:
        raise InputErrors(errors)
    await served.shell.set_group(group, tuple(found))
    return answer({"schema": "imlmesh.group/1", "group": group, "nodes": list(found)})


@router.get("/actions")
async def list_actions(request: Request) -> Response:
    nodes = list(served_of(request).shell.state.nodes.values())
    found = await asyncio.to_thread(list_offers, nodes, request.query_params.get("module"))
    return answer({"schema": "imlmesh.action-list/1", "actions": found})


@router.get("/actions/{module}/{action}")
async def show_action(request: Request, module: str, action: str) -> Response:
    nodes = list(served_of(request).shell.state.nodes.values())
    return answer(show_offer(nodes, module, action))


async def _node(served: Served, name: str) -> Response:
    beats, times = await served.beats(), await served.times()
    record = find_node(served.shell.state, name)
    found = await served.ask(lambda database: evidence(database, record.node))
    body = {
        "schema": "imlmesh.node/1",
        **node_view(served.shell.state, record, beats, times, served.shell.clock.now_ms()),
        "evidence": found,
        "refused": served.shell.stream.refused_of(record.node),
        "actions": actions_view(record),
    }
    return answer(body)
