"""A plan's text against the fleet: what is wrong with it, and what it will become.

The one rule: `plan check` and a submission answer the same, and a plan that no known node could
ever run is refused before anything is stored. Deliberately absent: deciding where it runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.core.waves import waves
from imlmesh_orchestrator.outlook import Outlook
from imlmesh_orchestrator.store.projections import Source
from imlmesh_protocol.errors import InputError, InputErrors, MeshError
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_protocol.iml.document import Document, parse
from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.iml.selector import parse_selector
from imlmesh_protocol.iml.validate import Fleet, validate
from imlmesh_protocol.limits import lease_ms_of
from imlmesh_protocol.manifest import Manifest

_NAMED_NODES = 5


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The fleet at one moment, for a thread to look at. `state` holds nodes and groups alone."""

    state: State
    fleet: Fleet

    def manifests(self) -> list[Manifest]:
        """Those of all nodes, without repeats."""
        found: dict[int, Manifest] = {id(n.manifest): n.manifest for n in self.state.nodes.values()}
        distinct: list[Manifest] = []
        for manifest in found.values():
            if manifest not in distinct:
                distinct.append(manifest)
        return distinct


@dataclass(frozen=True, slots=True)
class Checked:
    """What a plan's text came to. `outlook` is None when it is no plan; with errors it must not run."""

    outlook: Outlook | None
    errors: list[MeshError]
    warnings: list[MeshError]
    waves: list[list[str]]
    source: Source


def snapshot(state: State) -> Snapshot:
    """All known nodes, and the names that plans may use."""
    nodes, aliases, groups = dict(state.nodes), dict(state.aliases), dict(state.groups)
    names = {**{node: node for node in nodes}, **aliases}
    fleet = Fleet(names, groups)
    return Snapshot(
        State(
            nodes=nodes,
            aliases=aliases,
            groups=groups,
            risky=dict(state.risky),
            admissions=dict(state.admissions),
        ),
        fleet,
    )


def check(text: str, file: str | None, known: Snapshot, max_actions: int) -> Checked:
    """Everything that is wrong at once; never raises for a bad plan. Takes long: use a thread."""
    try:
        document = parse(text, file)
    except InputErrors as exc:
        return Checked(None, list(exc.errors), [], [], Source(file, {}))
    except InputError as exc:
        return Checked(None, [exc], [], [], Source(file, {}))
    report = validate(document, known.manifests(), fleet=known.fleet, max_actions=max_actions)
    if report.plan is None:
        return Checked(None, report.errors, report.warnings, [], Source(file, {}))
    plan = report.plan
    warnings = [
        *report.warnings,
        *_unknown_names(plan, document, known),
        *_short_leases(plan, document, known),
    ]
    outlook = Outlook(plan, plan_digest(plan), known.state)
    homeless = [
        error
        for index, action in enumerate(plan.actions)
        if (error := _homeless(index, action, document, outlook)) is not None
    ]
    source = Source(file, _places(plan, document))
    return Checked(outlook, homeless, warnings, waves(plan), source)


def plan_alone(text: str, file: str | None, max_actions: int) -> tuple[Plan, str] | None:
    """The plan and its digest, whatever the fleet of now could do with it; None when it is none."""
    try:
        document = parse(text, file)
    except (InputError, InputErrors):
        return None
    plan = validate(document, [], max_actions=max_actions).plan
    return None if plan is None else (plan, plan_digest(plan))


def _places(plan: Plan, document: Document) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for index, action in enumerate(plan.actions):
        place = document.place(f"/actions/{index}")
        if place.line is not None and place.column is not None:
            found[action.id] = (place.line, place.column)
    return found


def _unknown_names(plan: Plan, document: Document, known: Snapshot) -> list[MeshError]:
    """`selector.name` for each name that no node has as a label or fact: it makes nothing true."""
    have = {name for node in known.state.nodes.values() for name in node.names}
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


def _short_leases(plan: Plan, document: Document, known: Snapshot) -> Iterator[MeshError]:
    """`plan.no_effect` for each lease that no node could renew in time."""
    slowest = max(known.state.nodes.values(), key=lambda node: node.heartbeat_ms, default=None)
    if slowest is None:
        return
    for index, action in enumerate(plan.actions):
        wanted = action.lease_seconds
        given_ms = lease_ms_of(wanted, slowest.heartbeat_ms, slowest.lost_ms)
        if wanted is not None and wanted * 1_000 < given_ms:
            message = (
                f'action "{action.id}": a lease is at least two heartbeats of its node, '
                f"so up to {given_ms // 1_000} s and not {wanted}"
            )
            place = document.place(f"/actions/{index}/lease_seconds")
            yield InputError("plan.no_effect", message, place=place)


def _homeless(index: int, action: Action, document: Document, outlook: Outlook) -> MeshError | None:
    """`place.no_node` when no known node could ever run the action, with each node's reason."""
    answer = outlook.answer(action)
    if len(answer.reasons) < len(answer.nodes):
        return None
    named = [(node.alias, answer.reasons[node.node]) for node in answer.nodes[:_NAMED_NODES]]
    told = [f"{alias}: {code}" for alias, code in named]
    if len(answer.nodes) > _NAMED_NODES:
        told.append(f"and {len(answer.nodes) - _NAMED_NODES} more")
    if told:
        why = f"none of {len(answer.nodes)} nodes may run it: {'; '.join(told)}"
    else:
        why = "no node matches its target"
    message = f'action "{action.id}" cannot be placed: {why}'
    return InputError("place.no_node", message, place=document.place(f"/actions/{index}"))
