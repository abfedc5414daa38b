"""Routes about permits: what nodes may do by themselves while they are cut off.

The one rule: a plan is checked as a submission is, and then for what a node alone can honour; only then
it becomes an event.
"""

import asyncio
import math
import secrets
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import body_of, count_of, file_of, is_text, text_of
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.core import permit_events as pe
from imlmesh_orchestrator.permitting import Ground, compiled_text
from imlmesh_orchestrator.submission import check, snapshot
from imlmesh_orchestrator.views.permits import find_permit, permit_view, permit_whole
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.permits import CUT_OFF, EVERY, ON, Rule

router = APIRouter()
_VALUE_CHARS = 80  # a pin tells 0 or 1, a sensor a short word


@router.get("/permits")
async def list_permits(request: Request) -> Response:
    state = served_of(request).shell.state
    found = [permit_view(state, record) for record in state.permits.values()]
    return answer({"schema": "imlmesh.permit-list/1", "permits": found})


@router.get("/permits/{name}")
async def show_permit(request: Request, name: str) -> Response:
    state = served_of(request).shell.state
    told = permit_whole(state, find_permit(state, name))
    return answer({"schema": "imlmesh.permit/1", **told})


@router.post("/permits")
async def grant_permit(request: Request) -> Response:
    served = served_of(request)
    body = await body_of(request, "text", "file", "node", "rule", "budget", "for_ms")
    text, file, name = text_of(body, "text"), file_of(body), text_of(body, "node")
    rule = _rule(body.get("rule"))
    budget = count_of(body, "budget", limits.PERMIT_BUDGET_USUAL, limits.PERMIT_BUDGET)
    for_ms = count_of(body, "for_ms", limits.PERMIT_MS, limits.PERMIT_LONGEST_MS)
    shell = served.shell
    shell.room.check()
    node = shell.state.find_node(name)
    if node is None:
        raise InputError("node.not_found", f"no node {name[:80]!r} was ever here")
    known = snapshot(shell.state)
    checked = await asyncio.to_thread(check, text, file, known, served.config.max_actions)
    request.state.warnings = checked.warnings
    outlook = checked.outlook
    if outlook is None or checked.errors:
        raise InputErrors(checked.errors)
    plan, digest = outlook.plan, outlook.digest
    ground = Ground(node, shell.env)
    actions = await asyncio.to_thread(compiled_text, text, file, plan, ground)
    by, mesh = request.state.by, served.mesh

    def asked(at_ms: int, cause: str) -> pe.PermitAsked:
        what = (secrets.randbits(64), mesh, node.node, plan, digest, actions)
        return pe.PermitAsked(at_ms, cause, *what, rule, budget, for_ms, by)

    permit = await shell.ask(asked)
    warnings = [warning.as_record() for warning in checked.warnings]
    told = {**_whole(served, permit), "warnings": warnings}
    return answer(told, 201, {"location": f"/v1/permits/{permit}"})


@router.delete("/permits/{name}")
async def withdraw_permit(request: Request, name: str) -> Response:
    served = served_of(request)
    permit = find_permit(served.shell.state, name).permit.id
    by = request.state.by
    await served.shell.ask(lambda at_ms, cause: pe.PermitWithdrawAsked(at_ms, cause, permit, by))
    return answer(_whole(served, permit))


def _whole(served: Served, permit: str) -> dict[str, Any]:
    state = served.shell.state
    return {"schema": "imlmesh.permit/1", **permit_whole(state, state.permits[permit])}


def _rule(value: Any) -> Rule:
    """`permit.rule` for what is none."""
    rule = value if isinstance(value, dict) else {}
    kind = rule.get("kind")
    if kind == ON:
        source, wanted = rule.get("source"), rule.get("value")
        if not isinstance(source, str) or not NAME.fullmatch(source):
            raise InputError("permit.rule", f"no source has the name {str(source)[:80]!r}")
        if not _is_wanted(wanted):
            raise InputError("permit.rule", "a value is a number or a short text")
        return Rule(ON, source=source, value=wanted)
    least = limits.PERMIT_EVERY_MS if kind == EVERY else 0
    ms = rule.get("ms")
    if kind not in (EVERY, CUT_OFF) or type(ms) is not int:
        raise InputError(
            "permit.rule", "a rule is {kind: every or cut_off, ms} or {kind: on, source}"
        )
    if not least <= ms <= limits.PERMIT_LONGEST_MS:
        raise InputError("permit.rule", f"from {least / 1_000:g} s to 30 days, and not {ms} ms")
    return Rule(kind, ms)


def _is_wanted(value: Any) -> bool:
    """Whether a source can tell it and a message hold it; Python's JSON knows NaN and endless numbers."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= limits.COUNT_MAX
    return value is None or (is_text(value) and len(value) <= _VALUE_CHARS)
