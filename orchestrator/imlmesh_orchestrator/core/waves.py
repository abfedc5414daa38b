"""The shape of a plan: gates, waves and the order of a sequential run.

The one rule: one gate for each distinct `depends_on` set, so that 100 actions behind the same 100
others cost 100 counts and not 10,000. Deliberately absent: states; a shape never changes.
"""

import heapq

from imlmesh_orchestrator.core.state import Gate
from imlmesh_protocol.iml.plan import Plan


def gates_of(plan: Plan) -> tuple[list[Gate], dict[str, list[Gate]], dict[str, int]]:
    """All gates, the gates that each action opens, and the wave (from 1) of each action."""
    gates: dict[tuple[str, ...], Gate] = {}
    opens: dict[str, list[Gate]] = {action.id: [] for action in plan.actions}
    for action in plan.actions:
        gate = gates.get(action.depends_on)
        if gate is None:
            needed = set(action.depends_on)
            gate = gates[action.depends_on] = Gate(len(needed))
            for dependency in needed:
                opens[dependency].append(gate)
        gate.members.append(action.id)
    return list(gates.values()), opens, _depths(gates, opens)


def _depths(gates: dict[tuple[str, ...], Gate], opens: dict[str, list[Gate]]) -> dict[str, int]:
    counts = {id(gate): gate.remaining for gate in gates.values()}
    level = [member for gate in gates.values() if not gate.remaining for member in gate.members]
    depth: dict[str, int] = {}
    wave = 1
    while level:
        below: list[str] = []
        for action in level:
            depth[action] = wave
            for gate in opens[action]:
                counts[id(gate)] -= 1
                if not counts[id(gate)]:
                    below.extend(gate.members)
        level, wave = below, wave + 1
    return depth


def waves(plan: Plan) -> list[list[str]]:
    """Action ids by wave, each wave in the order of the plan."""
    depth = gates_of(plan)[2]
    result: list[list[str]] = [[] for _ in range(max(depth.values(), default=0))]
    for action in plan.actions:
        result[depth[action.id] - 1].append(action.id)
    return result


def sequence_of(plan: Plan) -> list[str]:
    """One action after the other: topological, and where free in the order of the plan."""
    place = {action.id: index for index, action in enumerate(plan.actions)}
    missing = {action.id: len(set(action.depends_on)) for action in plan.actions}
    dependents: dict[str, list[str]] = {action.id: [] for action in plan.actions}
    for action in plan.actions:
        for dependency in set(action.depends_on):
            dependents[dependency].append(action.id)
    ready = [place[name] for name, count in missing.items() if not count]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = plan.actions[heapq.heappop(ready)].id
        order.append(name)
        for dependent in dependents[name]:
            missing[dependent] -= 1
            if not missing[dependent]:
                heapq.heappush(ready, place[dependent])
    return order
