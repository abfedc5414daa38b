"""The shape of a plan: gates, waves and the order of a sequential run.

The one rule: one gate for each distinct `depends_on` set, so that 100 actions behind the same 100
others cost 100 counts and not 10,000; a parsed plan holds equal sets once, so they are told apart
by identity. What runs only as a compensation is in no wave.
Deliberately absent: what becomes ready; a shape never changes.
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from imlmesh_orchestrator.core.state import ActionRecord, Gate
from imlmesh_protocol.iml.compensation import compensation_only
from imlmesh_protocol.iml.plan import Action, Plan


@dataclass(slots=True)
class Shape:
    """All gates; by action id the gates it opens, and its wave from 1.

    Compensation-only actions open nothing and have wave 0.
    """

    gates: list[Gate]
    opens: dict[str, list[Gate]]
    wave: dict[str, int]
    compensation_only: frozenset[str]


def shape_of(plan: Plan) -> Shape:
    """How the actions of this plan wait for each other."""
    left_out = compensation_only(plan)
    gates: dict[int, Gate] = {}
    opens: dict[str, list[Gate]] = {action.id: [] for action in plan.actions}
    for action in _in_waves(plan, left_out):
        depends_on = action.depends_on
        gate = gates.get(id(depends_on))
        if gate is None:
            needed = set(depends_on)
            gate = gates[id(depends_on)] = Gate(len(needed))
            for dependency in needed:
                opens[dependency].append(gate)
        gate.members.append(action.id)
    wave = _depths(gates, opens) | dict.fromkeys(left_out, 0)
    return Shape(list(gates.values()), opens, wave, left_out)


def _in_waves(plan: Plan, left_out: frozenset[str]) -> list[Action]:
    return [action for action in plan.actions if action.id not in left_out]


def _depths(gates: dict[int, Gate], opens: dict[str, list[Gate]]) -> dict[str, int]:
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
    """Action ids by wave, each wave in the order of the plan; without what only undoes."""
    shape = shape_of(plan)
    result: list[list[str]] = [[] for _ in range(max(shape.wave.values(), default=0))]
    for action in _in_waves(plan, shape.compensation_only):
        result[shape.wave[action.id] - 1].append(action.id)
    return result


def sequence_of(plan: Plan, left_out: frozenset[str]) -> list[str]:
    """One action after the other: topological, and where free in the order of the plan."""
    actions = _in_waves(plan, left_out)
    place = {action.id: index for index, action in enumerate(actions)}
    missing = {action.id: len(set(action.depends_on)) for action in actions}
    dependents: dict[str, list[str]] = {action.id: [] for action in actions}
    for action in actions:
        for dependency in set(action.depends_on):
            dependents[dependency].append(action.id)
    ready = [place[name] for name, count in missing.items() if not count]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        name = actions[heapq.heappop(ready)].id
        order.append(name)
        for dependent in dependents[name]:
            missing[dependent] -= 1
            if not missing[dependent]:
                heapq.heappush(ready, place[dependent])
    return order


def descendants(actions: Mapping[str, ActionRecord], record: ActionRecord) -> list[str]:
    """All that waits for this action, however far below, and has not ended; in the plan's order."""
    found: set[str] = set()
    todo = [record]
    while todo:
        for gate in todo.pop().opens:
            for name in gate.members:
                below = actions[name]
                if name not in found and not below.ended:
                    found.add(name)
                    todo.append(below)
    return [name for name in actions if name in found]
