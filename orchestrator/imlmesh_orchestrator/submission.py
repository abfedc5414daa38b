"""A plan's text against the fleet: what is wrong with it, and what it will become.

The one rule: `plan check` and a submission answer the same, and a plan that no known node could
ever run is refused before anything is stored. Deliberately absent: deciding where it runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from imlmesh_orchestrator.core.placement import why_not
from imlmesh_orchestrator.core.state import NodeRecord, State
from imlmesh_orchestrator.core.waves import waves
from imlmesh_orchestrator.store.projections import Source
from imlmesh_protocol.errors import InputError, InputErrors, MeshError
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_protocol.iml.document import Document, parse
from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.iml.selector import parse_selector
from imlmesh_protocol.iml.validate import Fleet, validate
from imlmesh_protocol.manifest import Manifest

_NAMED_NODES = 5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fleet at one moment, for a thread to look at."""

    nodes: tuple[NodeRecord, ...]
    fleet: Fleet

    def manifests(self) -> list[Manifest]:
        """Those of all nodes, without repeats."""
        found: list[Manifest] = []
        for node in self.nodes:
            if node.manifest not in found:
                found.append(node.manifest)
        return found


@dataclass(frozen=True, slots=True)
class Checked:
    """What a plan's text came to; `plan` is None when there are errors."""

    plan: Plan | None
    digest: str
    errors: list[MeshError]
    warnings: list[MeshError]
    waves: list[list[str]]
    source: Source


def snapshot(state: State) -> Snapshot:
    """All known nodes, and the names that plans may use."""
    nodes = tuple(state.nodes.values())
    names = {node.alias: node.node for node in nodes} | {node.node: node.node for node in nodes}
    return Snapshot(nodes, Fleet(names, dict(state.groups)))


def check(text: str, file: str | None, known: Snapshot, max_actions: int) -> Checked:
    """Everything that is wrong at once; never raises for a bad plan. Takes long: use a thread."""
    try:
        document = parse(text, file)
    except InputErrors as exc:
        return Checked(None, "", list(exc.errors), [], [], Source(file, {}))
    except InputError as exc:
        return Checked(None, "", [exc], [], [], Source(file, {}))
    report = validate(document, known.manifests(), fleet=known.fleet, max_actions=max_actions)
    if report.plan is None:
        return Checked(None, "", report.errors, report.warnings, [], Source(file, {}))
    plan = report.plan
    warnings = [*report.warnings, *_unknown_names(plan, document, known)]
    homeless = [
        error
        for index, action in enumerate(plan.actions)
        if (error := _homeless(index, action, document, known)) is not None
    ]
    return Checked(
        None if homeless else plan,
        plan_digest(plan),
        homeless,
        warnings,
        waves(plan),
        Source(file, _places(plan, document)),
    )


def _places(plan: Plan, document: Document) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for index, action in enumerate(plan.actions):
        place = document.place(f"/actions/{index}")
        if place.line is not None and place.column is not None:
            found[action.id] = (place.line, place.column)
    return found


def _unknown_names(plan: Plan, document: Document, known: Snapshot) -> list[MeshError]:
    """`selector.name` for each name that no node has as a label or fact: it makes nothing true."""
    have = {name for node in known.nodes for name in node.names}
    return [
        InputError(
            "selector.name",
            f'no node has a label or fact "{name}", so that part of the selector is false',
            place=document.place(f"/actions/{index}/target_selector"),
        )
        for index, action in enumerate(plan.actions)
        if action.target_selector is not None
        for name in sorted(parse_selector(action.target_selector).names - have)
    ]


def _homeless(index: int, action: Action, document: Document, known: Snapshot) -> MeshError | None:
    """`place.no_node` when no known node could ever run the action, with each node's reason."""
    wanted = _wanted(action, known)
    reasons: dict[str, str] = {}
    for node in wanted:
        code = why_not(node, action.module, action.action)
        if code is None:
            return None
        reasons[node.alias] = code
    told = [f"{alias}: {code}" for alias, code in list(reasons.items())[:_NAMED_NODES]]
    if len(reasons) > _NAMED_NODES:
        told.append(f"and {len(reasons) - _NAMED_NODES} more")
    if told:
        why = f"none of {len(reasons)} nodes may run it: {'; '.join(told)}"
    else:
        why = "no node matches its target"
    message = f'action "{action.id}" cannot be placed: {why}'
    return InputError("place.no_node", message, place=document.place(f"/actions/{index}"))


def _wanted(action: Action, known: Snapshot) -> Sequence[NodeRecord]:
    if action.target_node is not None:
        node_id = known.fleet.nodes.get(action.target_node)
        return [node for node in known.nodes if node.node == node_id]
    if action.target_group is not None:
        members = known.fleet.groups.get(action.target_group, ())
        return [node for node in known.nodes if node.node in members]
    if action.target_selector is not None:
        selector = parse_selector(action.target_selector)
        return [node for node in known.nodes if selector.matches(node.names)]
    return known.nodes
