"""What is said of dispatches when an agent ends: this one, or the one before it.

The one rule: of what may have had an effect nothing is claimed. Pure functions for `agent`.
"""

from collections.abc import Container, Iterable

from imlmesh_node.core.changes import ResultRecord
from imlmesh_node.core.commands import SendReject, interrupted
from imlmesh_node.core.events import Arrival
from imlmesh_node.core.state import JournalRecord
from imlmesh_protocol.errors import Fault


def cut_short(record: JournalRecord) -> ResultRecord:
    """How a dispatch ended that an earlier agent left open."""
    if record.started:
        text = "the machine or its agent restarted while it ran"
        outcome, fault = interrupted(record.effect, text)
    else:
        outcome = "failed"
        fault = Fault("action.not_started", "the agent restarted before it started")
    return ResultRecord(record.dispatch, record.hash, outcome, None, fault, 0)


def given_back(arrivals: Iterable[Arrival], known: Container[str]) -> list[SendReject]:
    """Others may do at once what an agent that ends will not; empty when all of it is known."""
    fault = Fault("node.stopping", "the node is shutting down")
    new = tuple((one.dispatch.id, fault) for one in arrivals if one.dispatch.id not in known)
    return [SendReject(new)] if new else []
