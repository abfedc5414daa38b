"""The actions of one run as people see them: declared by the plan, standing as the store says.

The one rule: what several nodes do is one action with members, and what undoes it stands with it.
Deliberately absent: questions to the store but for results and approvals.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any

from imlmesh_orchestrator.views.approvals import pending_of_run
from imlmesh_orchestrator.views.standing import Results, Row, Standing
from imlmesh_orchestrator.views.units import Alias
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.iml.plan import Action


class ActionsView:
    """Shows the actions of one run. `effects` are the drivers' own, by module and action."""

    def __init__(
        self,
        database: sqlite3.Connection,
        run: str,
        known: Mapping[str, Standing],
        alias: Alias,
        effects: Mapping[tuple[str, str], str],
    ) -> None:
        self._known = known
        self._alias = alias
        self._effects = effects
        self._asked = pending_of_run(database, run)

    def of(self, action: Action, results: Results) -> dict[str, Any]:
        """One action of the plan."""
        standing = self._known.get(action.id, Standing())
        kept = results.kept_nodes(action.id)
        node = standing.node or (kept[0] if kept and len(kept) == 1 else None)
        last = standing.dispatches[-1] if standing.dispatches else None
        members = list(standing.members.values())
        begun = [one for one in (standing, *members) if one.dispatches]
        planned_at_ms = min((one.dispatches[0]["planned_at_ms"] for one in begun), default=None)
        whole_ms = None
        if members and planned_at_ms is not None and standing.ended_at_ms is not None:
            whole_ms = standing.ended_at_ms - planned_at_ms
        declared = action.effect or self._effects.get((action.module, action.action))
        return {
            "id": action.id,
            "label": action.label,
            "module": action.module,
            "action": action.action,
            "effect": begun[-1].dispatches[-1]["effect"] if begun else declared and str(declared),
            "target": target_text(action),
            "mode": action.target_mode,
            **self._unit(action.id, standing),
            "node": node,
            "node_alias": self._alias(node) if node else None,
            "kept": kept is not None,
            "result": results.of(action.id, standing),
            "planned_at_ms": planned_at_ms,
            "ended_at_ms": standing.ended_at_ms,
            "duration_ms": last["duration_ms"] if last else whole_ms,
            "reasons": standing.reasons,
            "dispatches": [_dispatch(row) for one in begun for row in one.dispatches],
            "members": [
                {
                    **self._placed(f"{action.id}@{node}", node, member),
                    "kept": results.keeps_member(f"{action.id}@{node}", member),
                }
                for node, member in standing.members.items()
            ],
            "compensations": [
                {
                    **self._placed(f"{action.id}~{node}", node, undoing),
                    "action": action.rollback.action if action.rollback else "the driver's undo",
                }
                for node, undoing in standing.undone_by.items()
            ],
        }

    def _unit(self, key: str, standing: Standing) -> dict[str, Any]:
        error = {"code": standing.code, "message": standing.message} if standing.code else None
        return {
            "state": str(standing.state),
            "attempt": len(standing.dispatches),
            "tries": standing.tries,
            "retry_at_ms": standing.retry_at_ms,
            "error": error,
            "approval": self._asked.get(key),
        }

    def _placed(self, key: str, node: str, standing: Standing) -> dict[str, Any]:
        """A member or a compensation, which has its node from the start."""
        last = standing.dispatches[-1] if standing.dispatches else None
        return {
            "key": key,
            "node": node,
            "alias": self._alias(node),
            **self._unit(key, standing),
            "code": standing.code,
            "message": standing.message,
            "duration_ms": last["duration_ms"] if last else None,
        }


def target_text(action: Action) -> str:
    """`any node`, `node pi-1`, `group greenhouse`, `selector cpu >= 2`."""
    for way in ("node", "group", "selector"):
        wanted = getattr(action, f"target_{way}")
        if wanted is not None:
            return f"{way} {wanted}"
    return "any node"


def _dispatch(row: Row) -> dict[str, Any]:
    _, _, node, attempt = split_dispatch(row["dispatch"])
    return {
        "dispatch": row["dispatch"],
        "node": node,
        "attempt": attempt,
        "state": row["state"],
        "planned_at_ms": row["planned_at_ms"],
        "ended_at_ms": row["ended_at_ms"],
        "error": {"code": row["code"], "message": row["message"]} if row["code"] else None,
    }
