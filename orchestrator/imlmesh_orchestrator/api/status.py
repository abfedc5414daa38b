"""Routes about the whole: health, and the event stream.

The one rule: health is a look at memory, so that it answers when a disk does not. Deliberately
absent: the frames of the stream; `events` makes them.
"""

import os
from collections import Counter
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from imlmesh_orchestrator.api.events import event_stream
from imlmesh_orchestrator.api.problems import answer
from imlmesh_orchestrator.api.requests import number_of
from imlmesh_orchestrator.api.served import served_of
from imlmesh_orchestrator.core.joins import waiting
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.states import Admission, Liveness

router = APIRouter()

_SHUT_OUT = frozenset({Admission.QUARANTINED, Admission.REVOKED})


@router.get("/health")
async def health(request: Request) -> Response:
    served = served_of(request)
    shell, state = served.shell, served.shell.state
    now_ms = shell.clock.now_ms()
    liveness = Counter(
        str(record.liveness)
        for record in state.nodes.values()
        if state.admission_of(record.node) is not Admission.REVOKED
    )
    error = None if shell.link.connected else shell.link.last_error
    return answer(
        {
            "schema": "imlmesh.health/1",
            "version": served.version,
            "mesh": served.mesh,
            "orchestrator": served.orchestrator,
            "epoch": shell.epoch,
            "pid": os.getpid(),
            "started_at_ms": served.started_at_ms,
            "now_ms": now_ms,
            "broker": {
                "connected": shell.link.connected,
                "address": served.broker,
                "error": str(error) if error else None,
            },
            "join": {"endpoints": served.joining.addresses, "waiting": len(waiting(state, now_ms))},
            "store": _store(shell, now_ms),
            "nodes": {str(each): liveness.get(str(each), 0) for each in Liveness},
            "verdicts": _verdicts(shell),
            "outranked": _outranked(shell),
            "ledger": _ledger(shell),
            "admissions": dict(Counter(str(r.admission) for r in state.admissions.values())),
            "access": {"problem": (served.access.problem or None) if served.access else None},
            "runs": {"active": state.active},
            "approvals": {"pending": len(state.approvals)},
            "messages": {
                "refused": dict(shell.stream.refused),
                "refused_at_ms": dict(shell.stream.refused_at_ms),
                "unsent": shell.unsent,
                "faults": shell.link.faults,
            },
            "telemetry": {
                "written": shell.intake.recorder.written,
                "dropped": shell.intake.recorder.dropped,
                "dropped_at_ms": shell.intake.recorder.dropped_at_ms or None,
            },
        }
    )


def _store(shell: Shell, now_ms: int) -> dict[str, Any]:
    """Whether the other files are behind, the disk is low, or a commit waits for it."""
    rows, _ = shell.lifecycle.outflow(now_ms)
    low, waits = shell.room.low(), shell.lifecycle.waits
    return {"behind": shell.mover.behind, "outflow_rows": rows, "low": low, "waits": waits}


def _verdicts(shell: Shell) -> dict[str, Any]:
    """Whether we hear ourselves, and which nodes fell silent together so that nobody is judged."""
    state = shell.state
    silent = sorted(map(shell.name_of, state.freeze.silent)) if state.freeze else []
    return {"hears": state.hears, "frozen": state.freeze is not None, "silent": silent}


def _outranked(shell: Shell) -> list[dict[str, Any]]:
    """Who obeys a higher epoch than ours; of a node that is shut out no word counts."""
    state = shell.state
    return [
        {"node": shell.name_of(node), "epoch": epoch}
        for node, epoch in sorted(shell.outranked.nodes.items())
        if state.admission_of(node) not in _SHUT_OUT
    ]


def _ledger(shell: Shell) -> dict[str, Any]:
    """How long the ledger is, how much of it is sealed and witnessed, and who doubts it."""
    ledger = shell.ledger
    doubts = [
        {"witness": shell.name_of(witness), "size": size}
        for (size, _), witness in shell.state.doubts.items()
    ]
    return {
        "entries": ledger.file.tip.size,
        "sealed": ledger.last.size if ledger.last is not None else 0,
        "sealed_at_ms": ledger.last.at_ms if ledger.last is not None else None,
        "witnesses": len(ledger.witnessed),
        "read_only": bool(doubts),
        "doubts": doubts,
    }


@router.get("/events")
async def events(request: Request) -> Response:
    served = served_of(request)
    shell = served.shell
    name = request.query_params.get("run")
    run = await served.run_id(name) if name else None
    seen = number_of(request.headers, "last-event-id")
    after = seen if seen is not None else number_of(request.query_params, "after")
    subscription = shell.stream.subscribe(run)
    if after is None:
        after = shell.lifecycle.last_seq
    return StreamingResponse(
        event_stream(shell, subscription, after),
        media_type="text/event-stream",
        headers={"cache-control": "no-store"},
    )
