"""Who waits for whom: ids, dependencies, cycles, and which results are there for an action.

The one rule: works on the plan as written, so that a wrong field elsewhere hides nothing here.
Deliberately absent: waves and order of execution; the scheduler makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.compensation import check_rollbacks
from imlmesh_protocol.iml.fields import name_of
from imlmesh_protocol.iml.findings import Findings


@dataclass(frozen=True, slots=True)
class Graph:
    """The actions by index. A set of indexes is the bits of an int: 500 fit into 63 bytes."""

    index_of: dict[str, int]
    #: index of an action with a rollback → index of the one that undoes it
    undone_by: dict[int, int]
    #: whose results an action may use; None when it waits for a cycle
    usable: list[int | None]

    def usable_when_undone(self, index: int) -> int | None:
        """Whose results the undoing of an action may use: its own and those that it may use."""
        usable = self.usable[index]
        return None if usable is None else usable | 1 << index


def check_graph(actions: Sequence[Any], findings: Findings) -> Graph:
    """Read who waits for whom and who undoes whom; reports all that is wrong with it.

    plan.duplicate_id, plan.self_dependency, plan.unknown_dependency, plan.cycle,
    plan.depends_on_compensation, plan.unknown_rollback, plan.rollback_cycle.
    """
    index_of = _index_of_ids(actions, findings)
    undone_by = check_rollbacks(actions, index_of, findings)
    undoing = set(undone_by.values())
    needs = [_needs(index, actions, index_of, undoing, findings) for index in range(len(actions))]
    order, cycles = _walk(needs)
    for cycle in cycles:
        _report_cycle(actions, needs, cycle, findings)
    graph = Graph(index_of, undone_by, _ancestors(needs, order))
    _add_undone(graph)
    return graph


def _index_of_ids(actions: Sequence[Any], findings: Findings) -> dict[str, int]:
    index_of: dict[str, int] = {}
    for index, action in enumerate(actions):
        name = action.get("id") if isinstance(action, dict) else None
        if not isinstance(name, str):
            continue
        first = index_of.setdefault(name, index)
        if first != index:
            other = findings.line_of(pointer_of("actions", first, "id"))
            message = f'the id "{name}" is already taken ({other})'
            findings.error("plan.duplicate_id", pointer_of("actions", index, "id"), message)
    return index_of


def _needs(
    index: int,
    actions: Sequence[Any],
    index_of: dict[str, int],
    undoing: set[int],
    findings: Findings,
) -> dict[int, int]:
    """Index of each action that this one waits for → which entry of depends_on says so.

    What only undoes others waits for nobody: its own depends_on is read and then left.
    """
    action = actions[index]
    names = action.get("depends_on") if isinstance(action, dict) else None
    needs: dict[int, int] = {}
    for entry, name in enumerate(names if isinstance(names, list) else ()):
        if not isinstance(name, str):
            continue
        pointer = pointer_of("actions", index, "depends_on", entry)
        needed = index_of.get(name)
        if needed is None:
            message = (
                f'{name_of(actions, index)} waits for "{name}", which is no action of this plan'
            )
            near = findings.did_you_mean(name, index_of)
            findings.error("plan.unknown_dependency", pointer, message + near)
        elif name == action.get("id"):
            message = f"{name_of(actions, index)} waits for itself"
            findings.error("plan.self_dependency", pointer, message)
        elif needed in undoing and index not in undoing:
            message = (
                f'{name_of(actions, index)} waits for "{name}", which runs only when another '
                f"action is undone"
            )
            findings.error("plan.depends_on_compensation", pointer, message)
        elif index not in undoing:
            needs.setdefault(needed, entry)
    return needs


def _walk(needs: Sequence[dict[int, int]]) -> tuple[list[int], list[list[int]]]:
    """All actions that are in no cycle and behind none, needed ones first; and cycles.

    Every action that is not in the order is in one of the cycles or behind one.
    """
    order: list[int] = []
    cycles: list[list[int]] = []
    done: set[int] = set()
    ordered: set[int] = set()
    for start in range(len(needs)):
        path: dict[int, None] = {} if start in done else {start: None}
        while path:
            last = next(reversed(path))
            ahead = next((other for other in needs[last] if other not in done), None)
            if ahead is None:
                path.popitem()
                done.add(last)
                if ordered.issuperset(needs[last]):
                    ordered.add(last)
                    order.append(last)
            elif ahead in path:
                walked = list(path)
                cycle = walked[walked.index(ahead) :]
                cycles.append(cycle)
                done.update(cycle)
                path = dict.fromkeys(walked[: -len(cycle)])
            else:
                path[ahead] = None
    return order, cycles


def _report_cycle(
    actions: Sequence[Any], needs: Sequence[dict[int, int]], cycle: list[int], findings: Findings
) -> None:
    turn = cycle.index(min(cycle))
    cycle = cycle[turn:] + cycle[:turn]
    names = " → ".join(actions[index]["id"] for index in (*cycle, cycle[0]))
    entry = needs[cycle[0]][cycle[1]]
    pointer = pointer_of("actions", cycle[0], "depends_on", entry)
    findings.error("plan.cycle", pointer, f"actions wait for each other: {names}")


def _ancestors(needs: Sequence[dict[int, int]], order: Sequence[int]) -> list[int | None]:
    ancestors: list[int | None] = [None] * len(needs)
    for index in order:
        before = 0
        for needed in needs[index]:
            # the order has needed ones first
            before |= (ancestors[needed] or 0) | 1 << needed
        ancestors[index] = before
    return ancestors


def _add_undone(graph: Graph) -> None:
    """What undoes several actions may use what any of them gives; each run fills what it has."""
    given = {index: graph.usable_when_undone(index) for index in graph.undone_by}
    for index, undoing in graph.undone_by.items():
        more, already = given[index], graph.usable[undoing]
        graph.usable[undoing] = None if more is None or already is None else already | more
