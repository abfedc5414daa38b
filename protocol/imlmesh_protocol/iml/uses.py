"""What templates of a plan take: results that are there by then, memory that is read, nodes' parts.

The one rule: a template that could never be filled is refused here, with the place of its text.
Works on the plan as written. Deliberately absent: which fields a result will have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.ids import NAME
from imlmesh_protocol.iml import template
from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.compensation import rollback_of
from imlmesh_protocol.iml.fields import name_of
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.graph import Graph
from imlmesh_protocol.iml.params import Catalogue
from imlmesh_protocol.iml.targets import Fleet
from imlmesh_protocol.iml.template import EACH_NODE, ERROR_KEY, Reference
from imlmesh_protocol.iml.unsupported import TEMPLATE_ROOTS


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a template is checked against."""

    actions: Sequence[Any]
    graph: Graph
    catalogue: Catalogue
    fleet: Fleet | None
    findings: Findings


def check_templates(
    actions: Sequence[Any],
    graph: Graph,
    catalogue: Catalogue,
    fleet: Fleet | None,
    findings: Findings,
) -> None:
    """template.* and plan.unsupported, of `params` and `rollback.params`."""
    plan = _Plan(actions, graph, catalogue, fleet, findings)
    for index, action in enumerate(actions):
        if not isinstance(action, dict):
            continue
        pointer = pointer_of("actions", index)
        _check_params(plan, index, action.get("params"), pointer + "/params", graph.usable[index])
        _check_params(
            plan,
            index,
            rollback_of(action).get("params"),
            pointer + "/rollback/params",
            graph.usable_when_undone(index),
        )


def _check_params(plan: _Plan, index: int, params: Any, base: str, usable: int | None) -> None:
    subject = name_of(plan.actions, index)
    found, flaws = template.scan(params)
    for flaw in flaws:
        plan.findings.error(flaw.code, base + flaw.pointer, f"{subject}: {flaw.message}")
    for reference in found:
        problem = _problem(plan, index, reference, usable)
        if problem is not None:
            code, message = problem
            plan.findings.error(code, base + reference.pointer, f"{subject} {message}")


def _problem(
    plan: _Plan, index: int, reference: Reference, usable: int | None
) -> tuple[str, str] | None:
    name = reference.path[0]
    if reference.root in TEMPLATE_ROOTS:
        return "plan.unsupported", f"uses {{{{{reference.root}…}}}}, which this version cannot fill"
    if reference.root == "memory":
        keys = _read_keys(plan.actions[index])
        if name not in keys:
            near = plan.findings.did_you_mean(name, keys)
            return "template.memory_key", f'uses "{name}" of the memory but does not read it{near}'
    if reference.root != "result":
        return None
    source = plan.graph.index_of.get(name)
    if source is None:
        near = plan.findings.did_you_mean(name, plan.graph.index_of)
        message = f'uses the result of "{name}", which is no action of this plan{near}'
        return "template.not_ancestor", message
    if usable is not None and not usable >> source & 1:
        return "template.not_ancestor", f'uses the result of "{name}" but does not wait for it'
    return _node_problem(plan, plan.actions[source], reference.path)


def _read_keys(action: Mapping[str, Any]) -> list[str]:
    memory = action.get("memory")
    keys = memory.get("read_keys") if isinstance(memory, dict) else None
    return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []


def _node_problem(
    plan: _Plan, source: Mapping[str, Any], path: tuple[str, ...]
) -> tuple[str, str] | None:
    """Of several nodes' results a template names one node, or all with *; of one node's neither."""
    written = f"{{{{result.{'.'.join(path)}}}}}"
    several = source.get("target_mode") in ("all", "rolling")
    if not several and EACH_NODE in path:
        return "template.wildcard", f'uses {written}, but "{path[0]}" runs on one node'
    if not several or len(path) == 1 or path[1] in (EACH_NODE, ERROR_KEY):
        return None
    why = _no_member(path[1], source, plan)
    if why is None:
        return None
    return "template.member", f'uses {written}, but "{path[0]}" runs on several nodes and {why}'


def _no_member(name: str, source: Mapping[str, Any], plan: _Plan) -> str | None:
    """Why a name is none of the nodes of an action; offline only what can never be one is refused."""
    fleet = plan.fleet
    if fleet is None:
        specs = plan.catalogue.specs(str(source.get("module")), str(source.get("action")))
        if any(name in spec.returns for spec in specs):
            return f'"{name}" is a field'
        return None if NAME.fullmatch(name) else f'"{name}" cannot be one'
    if name not in fleet.nodes:
        return f'there is no node "{name}"{plan.findings.did_you_mean(name, fleet.nodes)}'
    node, group, target = fleet.nodes[name], source.get("target_group"), source.get("target_node")
    if isinstance(group, str) and node not in fleet.groups.get(group, (node,)):
        return f'"{name}" is not in the group "{group}"'
    if isinstance(target, str) and fleet.nodes.get(target, node) != node:
        return f'"{name}" is not "{target}"'
    return None
