"""Changes about permits become state; see `apply`."""

from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_orchestrator.core.permit_state import PermitRecord
from imlmesh_orchestrator.core.state import State
from imlmesh_protocol.wire.permits import granted_permit


def _granted(state: State, change: p.PermitGranted) -> None:
    for old in [name for name, one in state.permits.items() if one.forgotten(change.at_ms)]:
        del state.permits[old]
    permit = granted_permit(change.body)
    state.permit_counter = change.counter
    state.permits[change.permit] = PermitRecord(
        permit, change.body, change.plan, change.by, change.at_ms
    )


def _ended(state: State, change: p.PermitEnded) -> None:
    record = state.permits[change.permit]
    record.ended, record.ended_by, record.ended_ms = change.why, change.by, change.at_ms


def _reported(state: State, change: p.PermitRunReported) -> None:
    state.permits[change.permit].reported.add(change.number)


APPLY: dict[type[c.Change], Callable[[State, Any], None]] = {
    p.PermitGranted: _granted,
    p.PermitEnded: _ended,
    p.PermitRunReported: _reported,
}
