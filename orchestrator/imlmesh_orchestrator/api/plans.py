"""Routes about plans: what is wrong with one, what it would do, and running it.

The one rule: a plan is parsed and checked in a thread, and only a plan without errors becomes an
event. Deliberately absent: what is right about a plan; `submission` knows.
"""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import (
    body_of,
    file_of,
    optional_text,
    priority_of,
    text_of,
)
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.fingerprint import basis_of
from imlmesh_orchestrator.preview import make_preview
from imlmesh_orchestrator.submission import check, plan_alone, snapshot
from imlmesh_orchestrator.views.last_run import last_run
from imlmesh_orchestrator.views.stories import first_seq
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.iml.plan import Plan

router = APIRouter()


@router.post("/runs")
async def submit(request: Request) -> Response:
    served = served_of(request)
    body = await body_of(request, "text", "file", "priority", "expect")
    text, file = text_of(body, "text"), file_of(body)
    priority, expected = priority_of(body), optional_text(body, "expect")
    repeated = await _repeated(served, text, file)
    if repeated is not None:
        return repeated
    known = snapshot(served.shell.state)
    checked = await asyncio.to_thread(check, text, file, known, served.config.max_actions)
    request.state.warnings = checked.warnings
    outlook = checked.outlook
    if outlook is None or checked.errors:
        raise InputErrors(checked.errors)
    if expected is not None:
        found = await asyncio.to_thread(basis_of, outlook)
        if found.fingerprint != expected.lower():
            raise InputError("plan.fingerprint", served.previewed.why_not(expected.lower(), found))
    served.shell.room.check()
    plan, digest = outlook.plan, outlook.digest
    reused = plan.nonce is not None and plan.nonce in served.shell.state.nonces
    run, seq = await served.shell.submit_from(
        plan, digest, request.state.by, checked.source, priority=priority
    )
    if reused:
        return await _told_again(served, run, plan, digest)
    warnings = [warning.as_record() for warning in checked.warnings]
    told = {**submitted(run, seq, plan, digest), "warnings": warnings}
    return answer(told, 202, {"location": f"/v1/runs/{run}"})


async def _repeated(served: Served, text: str, file: str | None) -> Response | None:
    """The answer to a submission that already has a run by its nonce, whatever the fleet has become
    meanwhile: whoever asks again because an answer was lost learns what came of it."""
    nonces = served.shell.state.nonces
    if not nonces or "nonce" not in text:
        return None
    found = await asyncio.to_thread(plan_alone, text, file, served.config.max_actions)
    if found is None or found[0].nonce is None:
        return None
    run, digest = nonces.get(found[0].nonce, ("", ""))
    return await _told_again(served, run, *found) if digest == found[1] else None


async def _told_again(served: Served, run: str, plan: Plan, digest: str) -> Response:
    began = await served.ask(lambda db: first_seq(db, run))
    return answer({**submitted(run, began - 1, plan, digest), "reused": True})


def submitted(run: str, seq: int, plan: Plan, digest: str) -> dict[str, Any]:
    """What is said of a run that begins; everything about it comes after `seq`."""
    return {
        "schema": "imlmesh.submitted/1",
        "run": run,
        "seq": seq,
        "plan_id": plan.plan_id,
        "digest": digest,
        "warnings": [],
    }


@router.post("/plans/check")
async def check_plan(request: Request) -> Response:
    served = served_of(request)
    body = await body_of(request, "text", "file")
    text, file = text_of(body, "text"), file_of(body)
    known = snapshot(served.shell.state)
    checked = await asyncio.to_thread(check, text, file, known, served.config.max_actions)
    fit = None if checked.errors else checked.outlook
    return answer(
        {
            "schema": "imlmesh.check/1",
            "plan_id": fit.plan.plan_id if fit else None,
            "digest": fit.digest if fit else None,
            "actions": sum(map(len, checked.waves)),
            "waves": checked.waves,
            "errors": [error.as_record() for error in checked.errors],
            "warnings": [warning.as_record() for warning in checked.warnings],
        }
    )


@router.post("/plans/preview")
async def preview_plan(request: Request) -> Response:
    served = served_of(request)
    body = await body_of(request, "text", "file")
    text, file = text_of(body, "text"), file_of(body)
    known = snapshot(served.shell.state)
    checked = await asyncio.to_thread(check, text, file, known, served.config.max_actions)
    outlook = checked.outlook
    if outlook is None:
        raise InputErrors(checked.errors)
    last = await served.ask(lambda db: last_run(db, outlook.plan.plan_id))
    basis = await asyncio.to_thread(basis_of, outlook)
    served.previewed.add(basis)
    return answer(await asyncio.to_thread(make_preview, checked, outlook, basis.fingerprint, last))
