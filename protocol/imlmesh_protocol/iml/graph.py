"""Who waits for whom: ids, dependencies, cycles, and whose results a template may use.

The one rule: works on the plan as written, so that a wrong field elsewhere hides nothing here.
Deliberately absent: waves and order of execution; the scheduler makes them.
"""

from collections.abc import Sequence
from typing import Any

from imlmesh_protocol.iml import template
from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.fields import name_of
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.unsupported import TEMPLATE_ROOTS


def check_graph(actions: Sequence[Any], findings: Findings) -> None:
    """plan.duplicate_id, plan.self_dependency, plan.unknown_dependency, plan.cycle, template.*."""
    index_of = _index_of_ids(actions, findings)
    needs = [_needs(index, actions, index_of, findings) for index in range(len(actions))]
    order, cycles = _walk(needs)
    for cycle in cycles:
        _report_cycle(actions, needs, cycle, findings)
    in_order = set(order)
    ancestors = _ancestors(needs, order)
    _add_compensations(actions, index_of, ancestors)
    for index, action in enumerate(actions):
        if isinstance(action, dict):
            usable = ancestors[index] if index in in_order else None
            _check_templates(index, actions, index_of, usable, findings)


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
    index: int, actions: Sequence[Any], index_of: dict[str, int], findings: Findings
) -> dict[int, int]:
    """Index of each action that this one waits for → which entry of depends_on says so."""
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
        else:
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


def _ancestors(needs: Sequence[dict[int, int]], order: Sequence[int]) -> list[int]:
    """Per action a set of the indexes before it, as bits: 500 actions fit into 63 bytes each."""
    ancestors = [0] * len(needs)
    for index in order:
        for needed in needs[index]:
            ancestors[index] |= ancestors[needed] | 1 << needed
    return ancestors


def _add_compensations(
    actions: Sequence[Any], index_of: dict[str, int], ancestors: list[int]
) -> None:
    """What undoes X may use the results of X and of X's ancestors."""
    before = list(ancestors)
    for index, action in enumerate(actions):
        rollback = action.get("rollback") if isinstance(action, dict) else None
        name = rollback.get("action") if isinstance(rollback, dict) else None
        if isinstance(name, str) and name in index_of:
            ancestors[index_of[name]] |= before[index] | 1 << index


def _check_templates(
    index: int,
    actions: Sequence[Any],
    index_of: dict[str, int],
    usable: int | None,
    findings: Findings,
) -> None:
    """Every template of one action; `usable` is None when it waits for a cycle."""
    subject = name_of(actions, index)
    base = pointer_of("actions", index, "params")
    found, flaws = template.scan(actions[index].get("params"))
    for flaw in flaws:
        findings.error(flaw.code, base + flaw.pointer, f"{subject}: {flaw.message}")
    for reference in found:
        pointer = base + reference.pointer
        if reference.root in TEMPLATE_ROOTS:
            message = f"{subject}: {{{{{reference.root}…}}}} is not filled by this version"
            findings.error("plan.unsupported", pointer, message)
        if reference.root != "result":
            continue
        name = reference.path[0]
        source = index_of.get(name)
        if source is None:
            near = findings.did_you_mean(name, index_of)
            message = (
                f'{subject} uses the result of "{name}", which is no action of this plan{near}'
            )
            findings.error("template.not_ancestor", pointer, message)
        elif usable is not None and not usable >> source & 1:
            message = f'{subject} uses the result of "{name}" but does not wait for it'
            findings.error("template.not_ancestor", pointer, message)
