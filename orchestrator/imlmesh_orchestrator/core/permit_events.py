"""What people ask about permits; see `events`."""

from dataclasses import dataclass

from imlmesh_orchestrator.core.events import Event
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.permits import PermitAction, Rule


@dataclass(slots=True)
class PermitAsked(Event):
    """A person wants a node (id) to run a plan by itself while it is cut off: at most `budget` times in
    the next `for_ms`. `actions` is what the plan came to on that node; `dice` 64 random bits."""

    dice: int
    mesh: str
    node: str
    plan: Plan
    digest: str
    actions: tuple[PermitAction, ...]
    rule: Rule
    budget: int
    for_ms: int
    by: str


@dataclass(slots=True)
class PermitWithdrawAsked(Event):
    permit: str
    by: str
