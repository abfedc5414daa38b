"""What a plan would do if it was submitted now.

The one rule: it answers with the core's own functions, so it shows what would happen and not what
somebody else thinks would. Pure. Deliberately absent: promises; the fleet changes, and the
fingerprint tells whether anything that matters here did.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from imlmesh_orchestrator.core.gates import reason_for
from imlmesh_orchestrator.core.members import needed
from imlmesh_orchestrator.core.placement import barred, pick
from imlmesh_orchestrator.core.placing import loss_policy
from imlmesh_orchestrator.core.state import NodeRecord, State
from imlmesh_orchestrator.outlook import Answer, Outlook
from imlmesh_orchestrator.submission import Checked
from imlmesh_orchestrator.views.actions import target_text
from imlmesh_orchestrator.views.last_run import LastRun
from imlmesh_protocol import limits
from imlmesh_protocol.iml.plan import Action, Approval, Plan, Retry
from imlmesh_protocol.manifest import PROFILES, ActionSpec
from imlmesh_protocol.states import EFFECT_CARE, Effect, Liveness

_APPROVAL = Approval.model_validate({})
_RETRY = Retry.model_validate({})


def make_preview(
    checked: Checked, outlook: Outlook, fingerprint: str, last: LastRun | None
) -> dict[str, Any]:
    """The answer of `plan preview`; `outlook` is that of `checked`, perhaps of a plan that nobody
    could run."""
    plan = outlook.plan
    described = _Described(outlook)
    shown = {action.id: described.action(action) for action in plan.actions}
    undoing = outlook.run.compensation_only
    planned = [row for name, row in shown.items() if name not in undoing]
    permissions: dict[str, list[str]] = {}
    for row in shown.values():
        permissions.setdefault(row["permission"], []).append(row["action"])
    return {
        "schema": "imlmesh.preview/1",
        "plan_id": plan.plan_id,
        "digest": outlook.digest,
        "fingerprint": fingerprint,
        "placeable": all(described.placeable(a) for a in plan.actions if a.id not in undoing),
        "waves": [[shown[name] for name in wave] for wave in checked.waves],
        "compensations": [
            # it runs on the node that did the work, which nobody knows yet
            {
                **shown[a.id],
                "chosen": None,
                "undoes": [b.id for b in plan.actions if _undone_by(b) == a.id],
            }
            for a in plan.actions
            if a.id in undoing
        ],
        "undoing": _undoing(plan, shown),
        "approvals": sum(row["approval"] is not None for row in planned),
        "permissions": permissions,
        "changes": None if last is None else _changes(outlook, last),
        "errors": [error.as_record() for error in checked.errors],
        "warnings": [warning.as_record() for warning in checked.warnings],
        "memory": _memory(plan),
        "not_before": plan.not_before,
    }


class _Described:
    """The actions of one plan in words and names; what many share is made once."""

    def __init__(self, outlook: Outlook) -> None:
        self._outlook = outlook
        self._nodes: dict[int, list[dict[str, Any]]] = {}

    def action(self, action: Action) -> dict[str, Any]:
        """One action, with everything that a person wants to know before it runs."""
        outlook = self._outlook
        record, answer = outlook.record(action), outlook.answer(action)
        specs = outlook.specs(action.module, action.action)
        effect = action.effect or _most_careful(specs)
        chosen = None if record.member_wise else pick(answer.pool, record)
        undo = next((spec.undo for spec in specs if spec.undo is not None), None)
        return {
            "action": action.id,
            "module": action.module,
            "call": f"{action.module}.{action.action}",
            "effect": str(effect),
            "vouched": any(EFFECT_CARE[effect] < EFFECT_CARE[spec.effect] for spec in specs),
            "impact": max(action.impact or 0.0, *(spec.impact for spec in specs), 0.0),
            "permission": max((s.permission for s in specs), key=PROFILES.index, default=""),
            "mode": action.target_mode,
            "target": target_text(record.action),
            "nodes": self._rows(answer),
            "nodes_needed": max(1, needed(record)) if record.member_wise else None,
            "chosen": chosen.alias if chosen else None,
            "approval": self._approval(action),
            "claims": [*_claims(action, specs), *action.claims],
            "on_node_loss": loss_policy(record, effect),
            "retry": _retry(action, effect),
            "rollback": _undone_by(action) or (undo and f"{action.module}.{undo.action}"),
        }

    def placeable(self, action: Action) -> bool:
        """Whether enough nodes are here that may run it."""
        record, answer = self._outlook.record(action), self._outlook.answer(action)
        if not record.member_wise:
            return bool(answer.pool.eligible)
        state = self._outlook.state
        here = sum(
            node.liveness is Liveness.ONLINE and barred(state, node.node) is None
            for node in answer.able
        )
        return here >= max(1, needed(record))

    def _rows(self, answer: Answer) -> list[dict[str, Any]]:
        rows = self._nodes.get(id(answer))
        if rows is None:
            state = self._outlook.state
            rows = self._nodes[id(answer)] = [_row(state, n, answer) for n in answer.nodes]
        return rows

    def _approval(self, action: Action) -> dict[str, Any] | None:
        outlook = self._outlook
        reason = reason_for(outlook.state, outlook.run, outlook.record(action))
        if reason is None:
            return None
        asked = action.approval or _APPROVAL
        return {
            "why": reason,
            "message": asked.message or f"{action.id} ({action.module}.{action.action})",
            "risk": asked.risk_level,
            "options": ["approve", "deny", *asked.clarification_options],
            "timeout_seconds": asked.timeout_seconds or limits.APPROVAL_MS // 1_000,
            "timeout_behavior": asked.timeout_behavior,
        }


def _row(state: State, node: NodeRecord, answer: Answer) -> dict[str, Any]:
    code = answer.reasons.get(node.node) or barred(state, node.node)
    if code is None and node.liveness is not Liveness.ONLINE:
        code = "node.lost"
    return {
        "node": node.node,
        "alias": node.alias,
        "state": "eligible" if code is None else "refused",
        "reasons": [] if code is None else [code],
        "liveness": str(node.liveness),
    }


def _most_careful(specs: Sequence[ActionSpec]) -> Effect:
    return max((spec.effect for spec in specs), key=EFFECT_CARE.__getitem__, default=Effect.ONCE)


def _claims(action: Action, specs: Sequence[ActionSpec]) -> tuple[str, ...]:
    """Filled in as far as the params are written in the plan."""
    if not specs:
        return ()
    try:
        return specs[0].claims_for(action.params)
    except KeyError:
        return specs[0].claims


def _retry(action: Action, effect: Effect) -> dict[str, Any] | None:
    if action.on_error != "retry" or (action.retry is None and not effect.repeatable):
        return None
    return (action.retry or _RETRY).model_dump(mode="json")


def _undone_by(action: Action) -> str | None:
    return action.rollback.action if action.rollback else None


def _undoing(plan: Plan, shown: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Of what a rollback may reach and the plan names no undoing for: what its driver undoes, and
    what stays as it is."""
    actions = {action.id: action for action in plan.actions}
    ahead = [action.id for action in plan.actions if action.on_error == "rollback"]
    reached = set(ahead)
    while ahead:
        for name in actions[ahead.pop()].depends_on:
            if name not in reached:
                reached.add(name)
                ahead.append(name)
    unnamed = [shown[name] for name in actions if name in reached and not actions[name].rollback]
    return {
        "by_driver": [
            {"action": row["action"], "call": row["rollback"]} for row in unnamed if row["rollback"]
        ],
        "stays": [
            row["action"]
            for row in unnamed
            if not row["rollback"] and row["effect"] != str(Effect.PURE)
        ],
    }


def _memory(plan: Plan) -> dict[str, list[str]]:
    used = [action.memory for action in plan.actions if action.memory is not None]
    reads = {key for memory in used for key in memory.read_keys}
    writes = {memory.write_key for memory in used if memory.write_key is not None}
    return {"reads": sorted(reads), "writes": sorted(writes)}


def _changes(outlook: Outlook, last: LastRun) -> dict[str, Any]:
    """What is different from the last run of a plan of this name."""
    before = {action.id: action for action in last.plan.actions}
    after = {action.id: action for action in outlook.plan.actions}
    both = [name for name in after if name in before]
    changed: list[dict[str, Any]] = []
    if last.digest != outlook.digest:
        changed += _fields("(plan)", last.plan, outlook.plan, {"actions", "plan_id"})
        for name in both:
            changed += _fields(name, before[name], after[name], {"id"})
    return {
        "last_run": last.run,
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": changed,
        "nodes_changed": [name for name in both if _nodes_changed(outlook, after[name], last)],
    }


def _fields(
    name: str, before: Plan | Action, after: Plan | Action, left_out: set[str]
) -> list[dict[str, Any]]:
    if before == after:
        return []
    old = before.model_dump(mode="json", exclude=left_out)
    new = after.model_dump(mode="json", exclude=left_out)
    return [
        {"action": name, "field": field, "before": old[field], "after": new[field]}
        for field in new
        if old[field] != new[field]
    ]


def _nodes_changed(outlook: Outlook, action: Action, last: LastRun) -> bool:
    """Whether a node that worked then may not now; for member-wise actions whether any differs."""
    worked = last.nodes.get(action.id, frozenset())
    answer = outlook.answer(action)
    if outlook.record(action).member_wise:
        return bool(worked) and worked != {node.node for node in answer.nodes}
    return not worked <= {node.node for node in answer.able}
