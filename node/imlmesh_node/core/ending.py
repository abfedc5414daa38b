"""What is said of dispatches that come when an agent ends. Pure, for `agent`."""

from collections.abc import Container, Iterable

from imlmesh_node.core.commands import SendReject
from imlmesh_node.core.events import Arrival
from imlmesh_protocol.errors import Fault


def given_back(arrivals: Iterable[Arrival], known: Container[str]) -> list[SendReject]:
    """Others may do at once what an agent that ends will not; empty when all of it is known."""
    fault = Fault("node.stopping", "the node is shutting down")
    new = tuple((one.dispatch.id, fault) for one in arrivals if one.dispatch.id not in known)
    return [SendReject(new)] if new else []
