"""The shape of a plan: gates, waves and the order of a sequential run.

The one rule: one gate for each distinct `depends_on` set, so that 100 actions behind the same 100
others cost 100 counts and not 10,000; a parsed plan holds equal sets once, so they are told apart
by identity. What runs only as a compensation is in no wave.
Deliberately absent: what becomes ready; a shape never changes.
"""

import heapq
from collections.abc import Collection, Mapping

from imlmesh_orchestrator.core.state import ActionRecord, Gate
from imlmesh_protocol.iml.compensation import compensation_only
from imlmesh_protocol.iml.plan import Action, Plan


def stand_behind(gates: dict[int, Gate], name: str, depends_on: tuple[str, ...]) -> Gate:
    """The gate that this action waits behind: one of these, which are kept by the identity of their
    `depends_on`, or a new one."""
    gate = gates.get(id(depends_on))
    if gate is None:
        gate = gates[id(depends_on)] = Gate(depends_on)
    gate.members.append(name)
    return gate


def link(gates: Collection[Gate], actions: Mapping[str, ActionRecord]) -> None:
    """Tell gates what they wait for and their wave, and actions which gates they open: mostly one
    for all of a set."""
    before: dict[int, set[int]] = {}
    for gate in gates:
        behind: list[Gate | None] = []
        alone = (gate,)
        names = dict.fromkeys(gate.depends_on)
        for name in names:
            record = actions[name]
            record.opens = (*record.opens, gate) if record.opens else alone
            if not behind or behind[-1] is not record.gate:  # mostly all wait behind one
                behind.append(record.gate)
        gate.remaining = len(names)
        before[id(gate)] = set(map(id, behind))
    _number(gates, before)


def _number(gates: Collection[Gate], before: Mapping[int, set[int]]) -> None:
    """Give each gate its wave. `before` tells by its identity after which others it comes: those that
    its dependencies wait behind."""
    later: dict[int, list[Gate]] = {id(gate): [] for gate in gates}
    missing: dict[int, int] = {}
    for gate in gates:
        missing[id(gate)] = len(before[id(gate)])
        for one in before[id(gate)]:
            later[one].append(gate)
    level = [gate for gate in gates if not gate.depends_on]
    wave = 1
    while level:
        below: list[Gate] = []
        for gate in level:
            gate.wave = wave
            for after in later[id(gate)]:
                missing[id(after)] -= 1
                if not missing[id(after)]:
                    below.append(after)
        level, wave = below, wave + 1


def waves(plan: Plan) -> list[list[str]]:
    """Action ids by wave, each wave in the order of the plan; without what only undoes."""
    gates: dict[int, Gate] = {}
    actions = _in_waves(plan, compensation_only(plan))
    behind = {action.id: stand_behind(gates, action.id, action.depends_on) for action in actions}
    before = {id(gate): {id(behind[name]) for name in gate.depends_on} for gate in gates.values()}
    _number(gates.values(), before)
    result: list[list[str]] = [[] for _ in range(max((g.wave for g in gates.values()), default=0))]
    for name, gate in behind.items():
        result[gate.wave - 1].append(name)
    return result


def _in_waves(plan: Plan, left_out: frozenset[str]) -> list[Action]:
    return [action for action in plan.actions if action.id not in left_out]


def wave_counts(gates: Collection[Gate]) -> list[int]:
    """How many actions each wave has, by its number; 0 is nobody's."""
    counts: list[int] = []
    for gate in gates:
        counts += [0] * (gate.wave + 1 - len(counts))
        counts[gate.wave] += len(gate.members)
    return counts


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
