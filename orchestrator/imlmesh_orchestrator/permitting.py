"""From a plan to what a node can do by itself: its actions in order, without IML.

The one rule: whatever the node could not honour alone is refused here, each with its place; nothing is
left out silently. Deliberately absent: signing, and when it runs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from imlmesh_orchestrator.core.placement import why_not
from imlmesh_orchestrator.core.state import NodeRecord
from imlmesh_orchestrator.core.waves import sequence_of
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, Place
from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.document import parse
from imlmesh_protocol.iml.params import effect_of
from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.iml.template import EACH_NODE, ERROR_KEY, Reference, has_templates, pieces
from imlmesh_protocol.permits import ON_ERROR, Filling, Path, PermitAction, put
from imlmesh_protocol.states import Effect

Refuse = Callable[[str, str, str], None]


@dataclass(frozen=True, slots=True)
class Ground:
    """What a plan is compiled for: the node, and the IML_ variables."""

    node: NodeRecord
    env: Mapping[str, str]


def compiled_text(
    text: str, file: str | None, plan: Plan, ground: Ground
) -> tuple[PermitAction, ...]:
    """As `compiled`, of a plan that was read from this text."""
    return compiled(plan, ground, parse(text, file).place)


def compiled(plan: Plan, ground: Ground, place: Callable[[str], Place]) -> tuple[PermitAction, ...]:
    """The actions in an order in which they may be done; InputErrors with all that a node alone cannot
    honour. `place` makes a place of a JSON pointer."""
    errors: list[InputError] = []

    def refuse(code: str, pointer: str, text: str) -> None:
        errors.append(InputError(code, text, place=place(pointer)))

    _check_plan(plan, refuse)
    made: dict[str, PermitAction] = {}
    for index, action in enumerate(plan.actions):
        _check_action(plan, action, pointer_of("actions", index), ground, refuse)
        made[action.id] = _action(action, pointer_of("actions", index), ground, refuse)
    if errors:
        raise InputErrors(errors)
    return tuple(made[name] for name in sequence_of(plan, frozenset()))


def _check_plan(plan: Plan, refuse: Refuse) -> None:
    for name in ("nonce", "not_before", "ttl_seconds"):
        if getattr(plan, name) is not None:
            refuse("permit.unfit", pointer_of(name), f"{name} belongs to one run of a plan")
    if len(plan.actions) > limits.PERMIT_ACTIONS:
        text = f"{len(plan.actions)} actions; a permit has at most {limits.PERMIT_ACTIONS}"
        refuse("permit.too_large", pointer_of("actions"), text)


def _check_action(plan: Plan, action: Action, at: str, ground: Ground, refuse: Refuse) -> None:
    node, name = ground.node, f'action "{action.id}"'
    targets = ("target_group", "target_selector", "fallback_nodes")
    for target in targets:
        if getattr(action, target):
            refuse("permit.target", f"{at}/{target}", f"{name} may go to more than one node")
    if action.target_node not in (None, node.node, node.alias):
        text = f"{name} is for {action.target_node}, the permit for {node.alias}"
        refuse("permit.target", f"{at}/target_node", text)
    if action.target_mode != "any":
        refuse("permit.target", f"{at}/target_mode", f"{name} is done by several nodes")
    if action.on_error not in ON_ERROR:
        text = f"{name} says {action.on_error} for its failure, which needs the orchestrator"
        refuse("permit.on_error", f"{at}/on_error", text)
    if action.rollback is not None:
        text = f"{name} has a rollback: nothing is undone while the node is cut off"
        refuse("permit.on_error", f"{at}/rollback", text)
    for word in ("memory", "perception"):
        if getattr(action, word) is not None:
            refuse("permit.unfit", f"{at}/{word}", f"{name} needs the orchestrator for its {word}")
    version = plan.module_requirements.get(action.module, "")
    code = why_not(node, action.module, action.action, version)
    spec = node.manifest.find(action.module, action.action)
    if code is not None or spec is None:
        text = f"{node.alias} cannot run {action.module}.{action.action}: {code}"
        refuse("permit.node", f"{at}/action", text)
        return
    impact = max(action.impact or 0.0, spec.impact)
    if action.requires_approval or impact > limits.IMPACT_WITHOUT_APPROVAL:
        why = "asks for approval" if action.requires_approval else f"has an impact of {impact:g}"
        refuse("permit.person", at, f"{name} {why}")


def _action(action: Action, at: str, ground: Ground, refuse: Refuse) -> PermitAction:
    params: Any = action.params
    fillings: list[Filling] = []
    for path, text in _texts(params, ()):
        parts: list[str | Path] = []
        for piece in pieces(text):
            part = piece if isinstance(piece, str) else _value(piece, ground)
            if isinstance(part, InputError):
                pointer = at + pointer_of("params", *path)
                refuse(part.code, pointer, f'action "{action.id}": {part.message}')
            else:
                parts.append(part)
        if all(isinstance(part, str) for part in parts):
            params = put(params, path, "".join(map(str, parts)))
        else:
            fillings.append(Filling(path, tuple(parts)))
    spec = ground.node.manifest.find(action.module, action.action)
    return PermitAction(
        action.id,
        action.module,
        action.action,
        params,
        effect_of(action, spec) if spec is not None else Effect.PHYSICAL,
        action.timeout * 1_000,
        tuple(dict.fromkeys(action.depends_on)),
        action.on_error,
        action.on_busy,
        action.claims,
        tuple(fillings),
    )


def _value(reference: Reference, ground: Ground) -> str | Path | InputError:
    """What a template is now, or the way to it in results that are still to come."""
    root, path = reference.root, reference.path
    if root == "node":
        return ground.node.node
    if root == "env":
        found = ground.env.get(path[0])
        return found if found is not None else InputError("template.env", f"no variable {path[0]}")
    if root != "result" or ERROR_KEY in path or EACH_NODE in path:
        text = f"{{{{{'.'.join((root, *path))}}}}} is not there while the node is cut off"
        return InputError("permit.template", text)
    return path


def _texts(value: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Every text that holds a template, with the way to it."""
    if isinstance(value, str):
        if has_templates(value):
            yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _texts(inner, (*path, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _texts(inner, (*path, index))
