"""Results as they arrive, of dispatches and of runs by permit.

The one rule: each counts once; all that were understood are settled.
"""

from imlmesh_orchestrator.core import dispatching, permits
from imlmesh_orchestrator.core.commands import SendAck
from imlmesh_orchestrator.core.events import ResultsArrived
from imlmesh_orchestrator.core.turn import Turn


def take_results(turn: Turn, event: ResultsArrived) -> None:
    """Take each, and answer with those that its node may forget."""
    settled: list[str] = []
    for result in event.results:
        if result.dispatch.startswith("p-"):
            known = permits.take(turn, event.node, result)
            if known is not None:
                settled += known
            elif dispatching.take_forgotten(turn, event.node, result):
                settled.append(result.dispatch)
        elif dispatching.take(turn, event.node, result):
            settled.append(result.dispatch)
    if settled:
        turn.command(SendAck(event.node, None, tuple(settled)))
    turn.pools.room_for(len(event.results))
