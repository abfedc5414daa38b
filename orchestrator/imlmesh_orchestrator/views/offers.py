"""The actions that the fleet offers, from the manifests of its nodes.

The one rule: an action is one entry with all nodes that have it; where their drivers differ, the
entry is the most careful one's. Deliberately absent: whether a node is here.
"""

from collections.abc import Sequence
from typing import Any

from imlmesh_orchestrator.core.state import NodeRecord
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.manifest import ActionSpec
from imlmesh_protocol.states import EFFECT_CARE


def list_offers(nodes: Sequence[NodeRecord], module: str | None) -> list[dict[str, Any]]:
    """All actions, or those of one module, by name."""
    found: dict[tuple[str, str], list[tuple[NodeRecord, ActionSpec]]] = {}
    for node in nodes:
        for name, offered in node.manifest.modules.items():
            if module in (None, name):
                for action, spec in offered.actions.items():
                    found.setdefault((name, action), []).append((node, spec))
    return [_offer(offers) for _, offers in sorted(found.items())]


def show_offer(nodes: Sequence[NodeRecord], module: str, action: str) -> dict[str, Any]:
    """One action; `module.unknown`, `action.unknown`."""
    offers = [(n, spec) for n in nodes if (spec := n.manifest.find(module, action)) is not None]
    if offers:
        return {"schema": "imlmesh.action/1", **_offer(offers)}
    if any(module in node.manifest.modules for node in nodes):
        raise InputError("action.unknown", f"module {module} has no action {action[:80]!r}")
    raise InputError("module.unknown", f"no node offers a module {module[:80]!r}")


def offer_of(spec: ActionSpec) -> dict[str, Any]:
    """What one driver says of one action."""
    undo = spec.undo
    return {
        "module": spec.module,
        "action": spec.action,
        "description": spec.description,
        "params": dict(spec.params),
        "returns": list(spec.returns),
        "effect": str(spec.effect),
        "permission": spec.permission,
        "impact": spec.impact,
        "claims": list(spec.claims),
        "vouch": spec.vouch,
        "undo": {"action": undo.action, "params": dict(undo.params)} if undo else None,
    }


def _offer(offers: Sequence[tuple[NodeRecord, ActionSpec]]) -> dict[str, Any]:
    spec = max((spec for _, spec in offers), key=lambda spec: EFFECT_CARE[spec.effect])
    return {**offer_of(spec), "nodes": sorted(node.alias for node, _ in offers)}
