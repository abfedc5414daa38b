"""Permits as people see them. Looks at the core's state, so it runs on the event loop."""

from typing import Any

from imlmesh_orchestrator.core.permit_state import PermitRecord
from imlmesh_orchestrator.core.state import State
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.permits import Rule, permit_run

_MANY = 20


def find_permit(state: State, name: str) -> PermitRecord:
    """The permit that `name` is, or uniquely begins; `permit.not_found`."""
    if name in state.permits:
        return state.permits[name]
    found = [one for id, one in state.permits.items() if id.startswith(name)] if name else []
    if len(found) != 1:
        many = f": it may be {', '.join(r.permit.id for r in found[:3])}" if found else ""
        raise InputError("permit.not_found", f"no permit {name[:80]!r}{many}")
    return found[0]


def permit_view(state: State, record: PermitRecord) -> dict[str, Any]:
    """A permit; `held` is whether its node says that it has it, null when that is not known; `begun` how
    many runs its node has told of, which may be more than are `reported`."""
    permit = record.permit
    presence = state.presence.get(permit.node)
    held = None if presence is None else permit.id in presence.permits
    told = 0 if presence is None else presence.permits.get(permit.id, 0)
    numbers = sorted(record.reported)
    return {
        "permit": permit.id,
        "state": record.ended or "holds",
        "node": permit.node,
        "alias": state.alias_of(permit.node),
        "plan_id": permit.plan,
        "digest": permit.digest,
        "rule": rule_view(permit.rule),
        "budget": permit.budget,
        "reported": len(numbers),
        "begun": max(told, numbers[-1] if numbers else 0),
        "held": held,
        "from_ms": permit.from_ms,
        "to_ms": permit.to_ms,
        "by": record.by,
        "ended_by": record.ended_by or None,
        "ended_ms": record.ended_ms or None,
    }


def permit_whole(state: State, record: PermitRecord) -> dict[str, Any]:
    """Also what it does, and its latest runs."""
    permit = record.permit
    actions = [
        {
            "id": action.id,
            "module": action.module,
            "action": action.action,
            "effect": str(action.effect),
            "depends_on": list(action.depends_on),
            "on_error": action.on_error,
        }
        for action in permit.actions
    ]
    latest = sorted(record.reported)[-_MANY:]
    runs = [permit_run(permit.id, number) for number in latest]
    return {**permit_view(state, record), "actions": actions, "runs": runs}


def rule_view(rule: Rule) -> dict[str, Any]:
    """`kind` is every or cut_off with `ms`, or on with `source` and `value`."""
    if rule.kind == "on":
        return {"kind": rule.kind, "source": rule.source, "value": rule.value}
    return {"kind": rule.kind, "ms": rule.ms}
