"""Routes about the ledger: read it, and go on although it is doubted.

The one rule: nothing here writes an entry; acknowledging is a change like any other, and its entry
follows. Deliberately absent: verifying, which needs no orchestrator and should trust none.
"""

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import body_of, number_of
from imlmesh_orchestrator.api.served import served_of
from imlmesh_orchestrator.views.audit import LISTED, Wanted, list_entries, show_entry
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError

router = APIRouter()


@router.get("/audit")
async def list_ledger(request: Request) -> Response:
    query = request.query_params
    limit = min(number_of(query, "limit") or LISTED, limits.AUDIT_LIST)
    words = {
        name: query.get(name, "")[: limits.NAME_CHARS] for name in ("kind", "actor", "subject")
    }
    wanted = Wanted(number_of(query, "since_ms") or 0, **words, limit=limit)
    entries = await served_of(request).ledger.ask(lambda database: list_entries(database, wanted))
    return answer({"schema": "imlmesh.audit-list/1", "entries": entries})


@router.get("/audit/{n}")
async def show_ledger(request: Request, n: str) -> Response:
    number = number_of({"n": n}, "n") or 0
    return answer(await served_of(request).ledger.ask(lambda db: show_entry(db, number)))


@router.post("/audit/acknowledge")
async def acknowledge(request: Request) -> Response:
    reason = (await body_of(request, "reason")).get("reason")
    if type(reason) is not str or not reason.strip() or len(reason) > limits.LEDGER_REASON_CHARS:
        text = f"reason is 1 to {limits.LEDGER_REASON_CHARS} characters: why you go on"
        raise InputError("usage", text)
    ended = await served_of(request).shell.acknowledge(request.state.by, reason.strip())
    return answer({"schema": "imlmesh.audit-acknowledged/1", "doubts": ended})
