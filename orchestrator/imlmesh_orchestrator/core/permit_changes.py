"""Changes about permits: granted, ended, and each run that a node reported.

The one rule: as of `changes`, of which these are a part: plain values, one row each. What happened in a
reported run are the changes of that run.
"""

from dataclasses import dataclass

from imlmesh_orchestrator.core.changes import Change
from imlmesh_protocol.iml.plan import Plan

#: why a permit holds no more
WITHDRAWN, EXPIRED, REVOKED, JOURNAL_LOST = "withdrawn", "expired", "node revoked", "journal lost"


@dataclass(slots=True)
class PermitGranted(Change):
    """A node may run this plan by itself while it is cut off; `body` is what is signed, as
    `wire.permits` packs it."""

    permit: str
    counter: int
    node: str
    plan: Plan
    digest: str
    body: bytes
    budget: int
    to_ms: int
    by: str


@dataclass(slots=True)
class PermitEnded(Change):
    """It holds no more; `why` is one of the words of this module, `by` a person or imlmesh."""

    permit: str
    node: str
    why: str
    by: str


@dataclass(slots=True)
class PermitRunReported(Change):
    """The node has run it the `number`-th time; `of` is the run that tells of it."""

    permit: str
    node: str
    number: int
    of: str
