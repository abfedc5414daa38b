"""What an agent says of dispatches: that it has them, will not do them, how they ended. Pure."""

from collections.abc import Container, Iterable, Sequence

from imlmesh_node.core.changes import ResultRecord
from imlmesh_node.core.commands import SendAccept, SendComplete, SendReject, left_over
from imlmesh_node.core.events import Arrival
from imlmesh_node.core.permits import permit_of_dispatch
from imlmesh_node.core.state import JournalRecord
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import Effect


def given_back(
    arrivals: Iterable[Arrival], known: Container[str], doubts: bool
) -> list[SendReject]:
    """Others may do at once what an agent that ends will not; empty when all of it is known. With `doubts`
    it may have been done before: nothing is said of what may not be repeated."""
    fault = Fault("node.stopping", "the node is shutting down")
    new = [one.dispatch for one in arrivals if one.dispatch.id not in known]
    pairs = tuple((one.id, fault) for one in new if one.effect.repeatable or not doubts)
    return [SendReject(pairs)] if pairs else []


def accept_of(records: Sequence[JournalRecord]) -> SendAccept:
    """They are in the journal; of some the driver has started."""
    return SendAccept(
        tuple((record.dispatch, record.hash) for record in records),
        tuple(record.dispatch for record in records if record.started),
    )


def complete_of(effect: Effect, result: ResultRecord) -> SendComplete:
    """How one dispatch ended. What a permit began is counted by the journal, so that has to hold it first."""
    early = effect.repeatable and not permit_of_dispatch(result.dispatch)
    return SendComplete((result,), early=early)


def cut_short(record: JournalRecord) -> ResultRecord:
    """The result of what an earlier agent held and said no end of: what is known of it."""
    outcome, fault = left_over(record.effect, started=record.started)
    return ResultRecord(record.dispatch, record.hash, outcome, None, fault, 0)
