"""Doubts about the ledger: while one is open nothing new starts.

The one rule: a doubt is about one signed head and is raised once; only a person ends it. What runs
goes on, results are taken; what was sent and never accepted may have been done in the history that is
lost, so it is not sent again before that, and then only what may be repeated. Deliberately absent: how
a contradiction is found.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.dispatching import give_up
from imlmesh_orchestrator.core.events import AcknowledgementGiven, SealContradicted
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import DispatchState


def contradicted(turn: Turn, event: SealContradicted) -> None:
    """A head that the ledger should contain and does not."""
    state, head = turn.state, (event.size, event.root)
    known = head in state.doubts or head in state.acknowledged
    if not known and len(state.doubts) < limits.LEDGER_DOUBTS:
        change = c.DoubtRaised(turn.at_ms, turn.cause, event.witness, event.size, event.root)
        turn.change(change)


def acknowledge(turn: Turn, event: AcknowledgementGiven) -> None:
    """Go on; `ledger.undoubted` when nothing stands in the way."""
    if not turn.state.doubts:
        fault = Fault("ledger.undoubted", "nothing contradicts the ledger")
        turn.command(Refuse(event.cause, fault))
        return
    many = len(turn.state.doubts)
    turn.change(c.DoubtsAcknowledged(turn.at_ms, turn.cause, event.by, event.reason))
    fault = Fault("ledger.doubted", "it may have been done in the history that is lost")
    for dispatch in list(turn.state.dispatches.values()):
        if dispatch.state is DispatchState.PLANNED and not dispatch.effect.repeatable:
            give_up(turn, dispatch, fault)
    turn.command(Reply(event.cause, many))
    turn.pools.room()


def refusal(turn: Turn) -> Fault | None:
    """Why no plan is taken, when one is doubted."""
    for (size, _), witness in turn.state.doubts.items():
        text = f"{witness} holds a signed head of {size} ledger entries that ours does not contain"
        return Fault("ledger.doubted", f"read-only: {text}")
    return None
