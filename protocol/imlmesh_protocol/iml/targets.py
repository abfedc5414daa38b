"""Where an action wants to run, against the fleet: node, group, selector, one node or several.

The one rule: a name that nobody has is an error here, before anything is sent; a known node that
is away is not. Deliberately absent: choosing a node.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from imlmesh_protocol.errors import InputError
from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.plan import Action
from imlmesh_protocol.iml.selector import parse_selector

_TARGETS = ("target_node", "target_group", "target_selector")


@dataclass(frozen=True, slots=True)
class Fleet:
    """The nodes by alias and by id → id, and the node ids of each group."""

    nodes: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def check_targets(index: int, action: Action, fleet: Fleet | None, findings: Findings) -> None:
    """plan.targets, plan.target_mode, plan.quorum, plan.fallback, selector.syntax; with a fleet place.*."""
    set_targets = [name for name in _TARGETS if getattr(action, name) is not None]
    if len(set_targets) > 1:
        message = f'action "{action.id}" has {" and ".join(set_targets)}'
        findings.error("plan.targets", pointer_of("actions", index, set_targets[1]), message)
    if action.target_selector is not None:
        _check_selector(index, action.target_selector, findings)
    _check_mode(index, action, findings)
    _check_quorum(index, action, fleet, findings)
    if action.fallback_nodes and action.target_node is None:
        message = f'action "{action.id}" has fallback_nodes but no target_node'
        findings.error("plan.fallback", pointer_of("actions", index, "fallback_nodes"), message)
    if fleet is None:
        return
    if action.target_node is not None:
        _check_node(
            action.target_node, pointer_of("actions", index, "target_node"), fleet, findings
        )
    for entry, name in enumerate(action.fallback_nodes):
        _check_node(name, pointer_of("actions", index, "fallback_nodes", entry), fleet, findings)
    if action.target_group is not None:
        _check_group(index, action.target_group, fleet, findings)


def _check_selector(index: int, selector: str, findings: Findings) -> None:
    try:
        parse_selector(selector)
    except InputError as exc:
        findings.error(exc.code, pointer_of("actions", index, "target_selector"), exc.message)


def _check_mode(index: int, action: Action, findings: Findings) -> None:
    if action.quorum != "all" and action.target_mode == "any":
        message = f'action "{action.id}": a quorum is for target_mode all and rolling'
        findings.error("plan.target_mode", pointer_of("actions", index, "quorum"), message)
    if action.rolling is not None and action.target_mode != "rolling":
        message = f'action "{action.id}": "rolling" is for target_mode rolling'
        findings.error("plan.target_mode", pointer_of("actions", index, "rolling"), message)


def _check_quorum(index: int, action: Action, fleet: Fleet | None, findings: Findings) -> None:
    if action.quorum == "all" or action.target_mode == "any":
        return
    if action.target_node is not None:
        count, what = 1, "one node is meant"
    elif fleet is not None and action.target_group is not None:
        count = len(fleet.groups.get(action.target_group, ()))
        what = f'the group "{action.target_group}" has {count}'
    else:
        return
    if action.quorum > count > 0:
        message = f'action "{action.id}": a quorum of {action.quorum} nodes, but {what}'
        findings.error("plan.quorum", pointer_of("actions", index, "quorum"), message)


def _check_node(name: str, pointer: str, fleet: Fleet, findings: Findings) -> None:
    if name not in fleet.nodes:
        near = findings.did_you_mean(name, fleet.nodes)
        findings.error("place.unknown_node", pointer, f'there is no node "{name}"{near}')


def _check_group(index: int, group: str, fleet: Fleet, findings: Findings) -> None:
    pointer = pointer_of("actions", index, "target_group")
    if group not in fleet.groups:
        near = findings.did_you_mean(group, fleet.groups)
        findings.error("place.no_group", pointer, f'there is no group "{group}"{near}')
    elif not fleet.groups[group]:
        findings.error("place.empty_group", pointer, f'the group "{group}" has no nodes')
