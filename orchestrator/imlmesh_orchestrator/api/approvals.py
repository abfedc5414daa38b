"""Routes about questions to people.

The one rule: an answer is recorded with who gave it, and the first one counts. Deliberately
absent: what an answer leads to; the core knows.
"""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import body_of, one_of, text_of
from imlmesh_orchestrator.api.served import Served, served_of
from imlmesh_orchestrator.core.asking import GATE
from imlmesh_orchestrator.views import approvals
from imlmesh_orchestrator.views.telling import closed_text
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.states import ApprovalState

router = APIRouter()


@router.get("/approvals")
async def list_approvals(request: Request) -> Response:
    state = one_of(request.query_params, "state", ApprovalState)
    found, more = await served_of(request).ask(lambda db: approvals.list_approvals(db, state))
    return answer({"schema": "imlmesh.approval-list/1", "approvals": found, "more": more})


@router.get("/approvals/{approval}")
async def show_approval(request: Request, approval: str) -> Response:
    return answer(await _shown(served_of(request), approval))


@router.post("/approvals/{approval}/answer")
async def answer_approval(request: Request, approval: str) -> Response:
    served = served_of(request)
    option = text_of(await body_of(request, "option"), "option")
    _refuse_closed(await served.ask(lambda db: approvals.show_approval(db, approval)))
    try:
        await served.shell.answer_approval(approval, option, request.state.by)
    except InputError as exc:
        if exc.code == "approval.closed":
            # somebody else was a moment earlier
            _refuse_closed(await served.ask(lambda db: approvals.show_approval(db, approval)))
        raise
    return answer(await _shown(served, approval))


def _refuse_closed(found: dict[str, Any]) -> None:
    if found["state"] != ApprovalState.PENDING:
        names = ("approval", "state", "option", "by")
        raise InputError("approval.closed", closed_text(*(found[name] for name in names)))


async def _shown(served: Served, approval: str) -> dict[str, Any]:
    found = await served.ask(lambda db: approvals.show_approval(db, approval))
    return {
        **found,
        "four_eyes": served.config.four_eyes and found["kind"] == GATE,
        **approvals.bound_to(served.shell.state, served.shell.env, approval),
    }
