"""Routes about trust: which version nodes hold, and that it has changed.

The one rule: keys are made by whoever has the root key; here they are only taken up.
"""

from fastapi import APIRouter, Request
from starlette.responses import Response

from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.served import Served, served_of

router = APIRouter()


@router.get("/trust")
async def show_trust(request: Request) -> Response:
    return _standing(served_of(request))


@router.post("/trust/reload")
async def reload_trust(request: Request) -> Response:
    served = served_of(request)
    served.trusting.reload()
    return _standing(served)


def _standing(served: Served) -> Response:
    trusting = served.trusting
    told = {
        "version": trusting.version,
        "broker": served.broker,
        "nodes": trusting.standing(),
    }
    return answer({"schema": "imlmesh.trust-standing/1", **told})
