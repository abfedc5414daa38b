"""What the orchestrator remembers of a permit."""

from dataclasses import dataclass, field

from imlmesh_orchestrator.core.events import Result
from imlmesh_protocol import limits
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.permits import Permit


@dataclass(slots=True)
class PermitRecord:
    """`body` is what is signed, `permit` the same read. `reported` are numbers of runs, `ended` why it holds
    no more, "" while it does."""

    permit: Permit
    body: bytes
    plan: Plan
    by: str
    at_ms: int
    reported: set[int] = field(default_factory=set)
    ended: str = ""
    ended_by: str = ""
    ended_ms: int = 0

    def holds(self, at_ms: int) -> bool:
        """Whether nobody ended it, nor its time did."""
        return not self.ended and self.permit.to_ms > at_ms

    def forgotten(self, at_ms: int) -> bool:
        """Whether its time was over so long ago that the next permit takes its place."""
        return self.permit.to_ms + limits.PERMIT_KEPT_MS < at_ms


@dataclass(slots=True)
class ReportRecord:
    """Volatile: results of a run by permit that is not whole yet, by dispatch, and their bytes."""

    node: str
    results: dict[str, Result] = field(default_factory=dict)
    size: int = 0
