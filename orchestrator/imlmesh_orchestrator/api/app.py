"""The application: routes of version 1, and errors as answers.

The one rule: nothing of it is on the path of an action.
"""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from imlmesh_orchestrator.api import (
    approvals,
    audit,
    fleet,
    joining,
    memory,
    permits,
    plans,
    runs,
    status,
    telemetry,
    trust,
)
from imlmesh_orchestrator.api.problems import log, problem
from imlmesh_orchestrator.api.served import Served
from imlmesh_protocol.errors import InputError, MeshError


def make_app(served: Served) -> FastAPI:
    """The application that answers from `served`."""
    app = FastAPI(
        title="imlmesh",
        version=served.version,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.served = served
    people = (status, plans, runs, permits, approvals, memory)
    for part in (*people, joining, fleet, telemetry, audit, trust):
        app.include_router(part.router, prefix="/v1")
    app.add_exception_handler(MeshError, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _broken)
    return app


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, MeshError)  # noqa: S101 - registered for it alone
    return problem(error, getattr(request.state, "warnings", ()))


def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    path = request.url.path[:80]
    text = f"{path} does not take {request.method}" if error.status_code == 405 else f"no {path}"
    refused = InputError("usage", text, hint="GET /openapi.json lists what there is")
    return problem(refused, status=error.status_code, headers=error.headers)


def _broken(request: Request, error: Exception) -> Response:
    log.exception("%s %s", request.method, request.url.path, exc_info=error)
    return problem(MeshError("internal", f"{type(error).__name__}, see the log"))
