"""Warnings for what a plan says and nothing will come of: its author expected something else.

The one rule: a warning here stops nothing, for the plan runs as it is written. Deliberately
absent: what cannot run; those are errors of the other checks.
"""

import builtins
from functools import cache

from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES
from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.compensation import compensation_only
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.params import Catalogue, effect_of
from imlmesh_protocol.iml.plan import Action, Plan
from imlmesh_protocol.iml.template import has_templates

#: texts of an action in which somebody may expect that a template is filled
_TEXTS = ("label", "target_node", "target_group", "target_selector")
#: of an action that runs only to undo another: it runs when and where that one did
_UNREAD = (
    *("depends_on", "rollback", "target_node", "target_group", "target_selector"),
    *("target_mode", "fallback_nodes"),
)


def warn_of_no_effect(plan: Plan, catalogue: Catalogue, findings: Findings) -> None:
    """plan.no_effect, each at its field."""
    if plan.barrier and plan.execution_mode == "sequential":
        findings.warning("plan.no_effect", "/barrier", "a sequential run has no waves to hold")
    modules = {action.module for action in plan.actions}
    for module in plan.module_requirements:
        if module not in modules:
            message = f'no action of this plan uses the module "{module}"'
            pointer = pointer_of("module_requirements", module)
            findings.warning("plan.no_effect", pointer, message, key=True)
    undoing = compensation_only(plan)
    for index, action in enumerate(plan.actions):
        reasons = _retry(action, catalogue) | _approval(action, catalogue) | _templates(action)
        reasons |= _undoing(action) if action.id in undoing else _several_nodes(action)
        for field, why in reasons.items():
            pointer = pointer_of("actions", index, *field.split("."))
            findings.warning("plan.no_effect", pointer, f'action "{action.id}": {why}')


def _retry(action: Action, catalogue: Catalogue) -> dict[str, str]:
    """Field → why nothing comes of it; so do the next four."""
    if action.on_error != "retry":
        return {"retry": 'counts with "on_error: retry" alone'} if action.retry else {}
    if action.retry is None:
        specs = catalogue.specs(action.module, action.action)
        effects = [effect_of(action, spec) for spec in specs[:1]]
        if any(not effect.repeatable for effect in effects):
            return {"on_error": f'{effects[0]} work is tried again only with a "retry" of its own'}
        return {}
    return {
        f"retry.retry_on.{entry}": f'no error is a "{name}"'
        for entry, name in enumerate(action.retry.retry_on)
        if name not in _error_names()
    }


def _approval(action: Action, catalogue: Catalogue) -> dict[str, str]:
    if action.approval is None:
        return {}
    specs = catalogue.specs(action.module, action.action)
    impact = max(action.impact or 0.0, *(spec.impact for spec in specs), 0.0)
    if action.requires_approval or not specs or impact > limits.IMPACT_WITHOUT_APPROVAL:
        return {}
    why = f'nobody is asked without "requires_approval" and with an impact of {impact}'
    return {"approval": why}


def _templates(action: Action) -> dict[str, str]:
    texts = {name: getattr(action, name) for name in _TEXTS}
    if action.approval is not None:
        texts["approval.message"] = action.approval.message
        for entry, option in enumerate(action.approval.clarification_options):
            texts[f"approval.clarification_options.{entry}"] = option
    why = "templates are filled in params alone, so this stays as it is written"
    return {field: why for field, text in texts.items() if text and has_templates(text)}


def _undoing(action: Action) -> dict[str, str]:
    return {
        field: "what runs only to undo another action does not read it"
        for field in _UNREAD
        if getattr(action, field) != Action.model_fields[field].default
    }


def _several_nodes(action: Action) -> dict[str, str]:
    if action.target_mode == "any":
        return {}
    found = {}
    if action.fallback_nodes:
        found["fallback_nodes"] = f'with "target_mode: {action.target_mode}" no node stands in'
    if action.on_node_loss == "reroute":
        found["on_node_loss"] = f'with "target_mode: {action.target_mode}" no work moves'
    return found


@cache
def _error_names() -> frozenset[str]:
    """What `retry_on` can match: the builtin classes of all codes, and their bases."""
    classes = [getattr(builtins, code.builtin) for code in CODES.values()]
    return frozenset(base.__name__ for found in classes for base in found.__mro__)
