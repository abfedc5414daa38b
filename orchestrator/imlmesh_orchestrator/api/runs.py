"""Routes about runs: what they are, what they did, and what a person wants of them.

The one rule: whatever is asked of a run names it by its id or a unique beginning. Deliberately
absent: how a run begins; `plans` knows.
"""

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.plans import submitted
from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import body_of, flag_of, number_of, one_of
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.retrying import take_over
from imlmesh_orchestrator.views import logs, runs, stories
from imlmesh_orchestrator.views.export import export_run
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.states import RunState

router = APIRouter()

_LISTED = 50


@router.get("/runs")
async def list_runs(request: Request) -> Response:
    served = served_of(request)
    limit = number_of(request.query_params, "limit") or _LISTED
    before = number_of(request.query_params, "before")
    state = one_of(request.query_params, "state", RunState)
    name_of = served.shell.name_of
    found = await served.ask(lambda db: runs.list_runs(db, name_of, limit, before, state))
    return answer({"schema": "imlmesh.run-list/1", "runs": found})


@router.get("/runs/{run}")
async def show_run(request: Request, run: str) -> Response:
    served = served_of(request)
    effects, name_of = served.effects(), served.shell.name_of
    return answer(await served.ask(lambda db: runs.show_run(db, run, name_of, effects)))


@router.get("/runs/{run}/story")
async def story(request: Request, run: str) -> Response:
    served = served_of(request)
    entries = await served.ask(lambda db: stories.story(db, run, served.shell.name_of))
    return answer({"schema": "imlmesh.story/1", "entries": entries})


@router.get("/runs/{run}/logs")
async def show_logs(request: Request, run: str) -> Response:
    served = served_of(request)
    query = request.query_params
    name = await served.run_id(run)
    units = None
    if flag_of(query, "failed"):
        units = await served.ask(lambda db: logs.failed_units(db, name))
    kept = served.shell.stream.logs(name)
    lines = logs.wanted(kept.lines, query.get("action"), units, number_of(query, "since"))
    found = {"log": kept.name, "lines": lines, "dropped": kept.dropped}
    return answer({"schema": "imlmesh.logs/1", **found})


@router.get("/runs/{run}/export")
async def export(request: Request, run: str) -> Response:
    served = served_of(request)
    effects, name_of = served.effects(), served.shell.name_of
    found = await served.ask(lambda db: export_run(db, run, name_of, effects))
    kept = served.shell.stream.logs(found["run"]["run"])
    return answer({**found, "logs": {"lines": kept.lines, "dropped": kept.dropped}})


@router.post("/runs/{run}/retry")
async def retry(request: Request, run: str) -> Response:
    served = served_of(request)
    failed_only = flag_of(await body_of(request, "failed"), "failed")
    name = await served.run_id(run)
    old = await served.ask(lambda db: take_over(db, name, served.shell.name_of, failed_only))
    served.shell.room.check()
    new, seq = await served.shell.submit_from(
        old.plan,
        old.digest,
        request.state.by,
        old.source,
        priority=old.priority,
        retried=old.retried,
    )
    body = {
        **submitted(new, seq, old.plan, old.digest),
        "of": name,
        "kept": list(old.retried.kept),
        "asks": list(old.retried.again),
    }
    return answer(body, 202, {"location": f"/v1/runs/{new}"})


@router.post("/runs/{run}/cancel")
async def cancel(request: Request, run: str) -> Response:
    served = served_of(request)
    name = await _open_run(served, run)
    state = await served.shell.cancel(name, request.state.by)
    return answer({"schema": "imlmesh.cancelled/1", "run": name, "state": state}, 202)


@router.post("/runs/{run}/pause")
async def pause(request: Request, run: str) -> Response:
    served = served_of(request)
    name = await _open_run(served, run)
    state = await served.shell.pause(name, request.state.by)
    return answer({"schema": "imlmesh.paused/1", "run": name, "state": state}, 202)


@router.post("/runs/{run}/resume")
async def resume(request: Request, run: str) -> Response:
    served = served_of(request)
    name = await _open_run(served, run)
    state = await served.shell.resume(name, request.state.by)
    return answer({"schema": "imlmesh.resumed/1", "run": name, "state": state}, 202)


async def _open_run(served: Served, run: str) -> str:
    """The id of a run that goes on; `run.not_found`, `run.ended`."""
    name = await served.run_id(run)
    ended = await served.ask(lambda db: runs.run_ended(db, name))
    if ended:
        raise InputError("run.ended", f"{name} is {ended}")
    return name
