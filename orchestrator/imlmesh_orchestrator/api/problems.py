"""Errors as HTTP answers: application/problem+json with the code.

The one rule: one table from codes to status; a traceback never leaves the process.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from imlmesh_orchestrator.views.plain import to_json
from imlmesh_protocol.errors import CODES, InputErrors, MeshError

log = logging.getLogger(__name__)

_STATUS = {
    "access.denied": 403,
    "approval.closed": 409,
    "node.admission": 409,
    "approval.superseded": 409,
    "approval.four_eyes": 403,
    "plan.fingerprint": 409,
    "plan.nonce_reused": 409,
    "verdicts.not_frozen": 409,
    "run.ended": 409,
    "run.not_ended": 409,
    "run.retried": 409,
    "run.not_paused": 409,
    "run.ambiguous": 409,
    "run.too_many": 503,
    "message.too_large": 413,
    "internal": 500,
    "internal.invariant": 500,
}
_NOT_FOUND = frozenset(
    {f"{noun}.not_found" for noun in ("run", "node", "approval", "memory", "token", "join")}
)


def status_of(code: str) -> int:
    """The HTTP status that fits a code."""
    if code in _STATUS:
        return _STATUS[code]
    if code in _NOT_FOUND:
        return 404
    return 422 if CODES[code].blame == "input" else 503


def problem(
    error: MeshError,
    warnings: Sequence[MeshError] = (),
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer to a request that cannot be met; `status` when HTTP has said it already."""
    errors = error.errors if isinstance(error, InputErrors) else (error,)
    status = status or status_of(error.code)
    body: dict[str, Any] = {
        "type": f"urn:imlmesh:error:{error.code}",
        "title": error.code,
        "status": status,
        **error.as_record(),
        "errors": [each.as_record() for each in errors],
        "warnings": [each.as_record() for each in warnings],
    }
    return Response(to_json(body), status, headers, media_type="application/problem+json")


def answer(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A plain dict as JSON."""
    return Response(to_json(body), status, headers, media_type="application/json")
