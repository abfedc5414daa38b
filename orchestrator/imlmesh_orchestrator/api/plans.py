"""Routes about plans, runs and approvals.

The one rule: a plan is parsed and checked in a thread, and only a plan without errors becomes an
event. Deliberately absent: what is right about a plan; `submission` knows.
"""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import body_of, number_of, optional_text, text_of
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.submission import Checked, check, snapshot
from imlmesh_orchestrator.views import approvals, runs
from imlmesh_protocol.errors import InputError, InputErrors
from imlmesh_protocol.states import ApprovalState, RunState
from imlmesh_runtime.sqlite import check_space

router = APIRouter()

_LISTED = 50


async def _check(request: Request) -> Checked:
    served = served_of(request)
    body = await body_of(request)
    text, file = text_of(body, "text"), optional_text(body, "file")
    known = snapshot(served.shell.state)
    return await asyncio.to_thread(check, text, file, known, served.config.max_actions)


@router.post("/runs")
async def submit(request: Request) -> Response:
    checked = await _check(request)
    request.state.warnings = checked.warnings
    if checked.plan is None:
        raise InputErrors(checked.errors)
    shell = served_of(request).shell
    check_space(served_of(request).output_path)
    run, seq = await shell.submit_from(
        checked.plan, checked.digest, request.state.by, checked.source
    )
    body = {
        "schema": "imlmesh.submitted/1",
        "run": run,
        "seq": seq,
        "plan_id": checked.plan.plan_id,
        "digest": checked.digest,
        "warnings": [warning.as_record() for warning in checked.warnings],
    }
    return answer(body, 202, {"location": f"/v1/runs/{run}"})


@router.post("/plans/check")
async def check_plan(request: Request) -> Response:
    checked = await _check(request)
    return answer(
        {
            "schema": "imlmesh.check/1",
            "plan_id": checked.plan.plan_id if checked.plan else None,
            "digest": checked.digest or None,
            "actions": sum(map(len, checked.waves)),
            "waves": checked.waves,
            "errors": [error.as_record() for error in checked.errors],
            "warnings": [warning.as_record() for warning in checked.warnings],
        }
    )


@router.get("/runs")
async def list_runs(request: Request) -> Response:
    served = served_of(request)
    limit = number_of(request.query_params, "limit") or _LISTED
    before = number_of(request.query_params, "before")
    state = _one_of(request, "state", RunState)
    name_of = served.shell.name_of
    found = await served.ask(lambda db: runs.list_runs(db, name_of, limit, before, state))
    return answer({"schema": "imlmesh.run-list/1", "runs": found})


@router.get("/runs/{run}")
async def show_run(request: Request, run: str) -> Response:
    served = served_of(request)
    effects = {
        (spec.module, spec.action): str(spec.effect)
        for record in served.shell.state.nodes.values()
        for module in record.manifest.modules.values()
        for spec in module.actions.values()
    }
    name_of = served.shell.name_of
    return answer(await served.ask(lambda db: runs.show_run(db, run, name_of, effects)))


@router.get("/runs/{run}/story")
async def story(request: Request, run: str) -> Response:
    served = served_of(request)
    entries = await served.ask(lambda db: runs.story(db, run, served.shell.name_of))
    return answer({"schema": "imlmesh.story/1", "entries": entries})


@router.get("/runs/{run}/logs")
async def logs(request: Request, run: str) -> Response:
    served = served_of(request)
    kept = served.shell.stream.logs(await _run_id(served, run))
    action = request.query_params.get("action")
    lines = [line for line in kept.lines if action in (None, line["action"])]
    return answer({"schema": "imlmesh.logs/1", "lines": lines, "dropped": kept.dropped})


@router.post("/runs/{run}/cancel")
async def cancel(request: Request, run: str) -> Response:
    served = served_of(request)
    name = await _run_id(served, run)
    ended = await served.ask(lambda db: runs.run_ended(db, name))
    if ended:
        raise InputError("run.ended", f"{name} is {ended}")
    state = await served.shell.cancel(name, request.state.by)
    return answer({"schema": "imlmesh.cancelled/1", "run": name, "state": state}, 202)


@router.get("/approvals")
async def list_approvals(request: Request) -> Response:
    state = _one_of(request, "state", ApprovalState)
    found = await served_of(request).ask(lambda db: approvals.list_approvals(db, state))
    return answer({"schema": "imlmesh.approval-list/1", "approvals": found})


@router.get("/approvals/{approval}")
async def show_approval(request: Request, approval: str) -> Response:
    return answer(await served_of(request).ask(lambda db: approvals.show_approval(db, approval)))


@router.post("/approvals/{approval}/answer")
async def answer_approval(request: Request, approval: str) -> Response:
    served = served_of(request)
    option = text_of(await body_of(request), "option")
    found = await served.ask(lambda db: approvals.show_approval(db, approval))
    if found["state"] != ApprovalState.PENDING:
        text = f"{approval} is {found['state']}: {found['by']} chose {found['option']}"
        raise InputError("approval.closed", text)
    await served.shell.answer_approval(approval, option, request.state.by)
    return answer(await served.ask(lambda db: approvals.show_approval(db, approval)))


async def _run_id(served: Served, name: str) -> str:
    return await served.ask(lambda db: runs.find_run(db, name))


def _one_of(request: Request, name: str, states: type[RunState] | type[ApprovalState]) -> str:
    value = request.query_params.get(name, "")
    if value and value not in set(states):
        raise InputError("usage", f"{name} must be one of {', '.join(states)}")
    return value
