"""What must hold of an agent after every event; tests and the simulator ask, the agent does not.

The one rule: each check is a sentence of the design that this core alone can break. What needs
a history (nothing runs twice, nothing before its commit) is checked where the history is.
"""

from imlmesh_node.core.agent import Agent
from imlmesh_protocol.errors import InvariantError


def check(agent: Agent) -> None:
    """Raise `internal.invariant` with the sentence that does not hold."""
    slots, records = agent.slots, agent.state.records
    held = slots.ids()
    unsettled = set(agent.unsettled_ids())
    _hold(len(held) == len(set(held)), "a dispatch waits and runs at once")
    _hold(
        all(id in records and records[id].result is None for id in held),
        "a held dispatch has no row, or has ended",
    )
    _hold(
        all(records[id].started == (id in slots.running) for id in held),
        "the intent of what runs is not recorded",
    )
    _hold(
        all(id in records and records[id].result is not None for id in unsettled),
        "an unsettled dispatch has no result",
    )
    taken = sum(not run.instant for run in slots.running.values())
    _hold(slots.free >= 0, "more runs than there are slots")
    _hold(slots.free + taken == agent.slot_count, "a slot was lost")
    wanted = {claim: id for id, run in slots.running.items() for claim in run.dispatch.claims}
    _hold(slots.claims.held() == wanted, "a claim is not held by the one that runs with it")


def _hold(condition: bool, sentence: str) -> None:
    if not condition:
        raise InvariantError("internal.invariant", sentence)
