"""Records as the API answers them, for tests of the command line. What a test does not say is quiet."""

from typing import Any

START_MS = 1_700_000_000_000


def action(name: str = "look", state: str = "completed", **fields: Any) -> dict[str, Any]:
    """One action of a run."""
    begun = state not in ("pending", "skipped")
    ended = state in ("completed", "failed", "cancelled", "rolled_back")
    found = {
        "id": name,
        "label": None,
        "module": "os_exec",
        "action": "get_system_info",
        "state": state,
        "wave": 1,
        "mode": "any",
        "target": "any node",
        "effect": "pure",
        "node": "n-1" if begun else None,
        "node_alias": "pi" if begun else None,
        "attempt": 1,
        "tries": 1,
        "retry_at_ms": None,
        "approval": None,
        "kept": False,
        "error": None,
        "result": None,
        "planned_at_ms": START_MS if begun else None,
        "ended_at_ms": START_MS + 3_100 if ended else None,
        "duration_ms": 900 if ended else None,
        "reasons": None,
        "line": None,
        "column": None,
        "dispatches": [],
        "members": [],
        "compensations": [],
    }
    return {**found, **fields}


def placed(node: str, state: str, code: str | None = None, **fields: Any) -> dict[str, Any]:
    """A member or a compensation: `code` says why it failed."""
    found = {
        "key": f"x@{node}",
        "node": node,
        "alias": node,
        "state": state,
        "attempt": 1,
        "kept": False,
        "code": code,
        "message": f"{node} says why" if code else None,
        "duration_ms": 900,
        "action": "close",
    }
    return {**found, **fields}


def approval(name: str = "a-3", kind: str = "gate", **fields: Any) -> dict[str, Any]:
    """One question, as `approval show` gets it."""
    options = ["approve", "deny"] if kind == "gate" else ["rerun", "done", "fail"]
    found = {
        "schema": "imlmesh.approval/1",
        "approval": name,
        "kind": kind,
        "run": "r-1-abcd",
        "unit": "valve",
        "action": "valve",
        "node": None,
        "message": "Opens the main valve",
        "options": options,
        "on_expiry": options[-1],
        "expires_at_ms": START_MS + 900_000,
        "state": "pending",
        "option": None,
        "by": None,
        "asked_at_ms": START_MS,
        "risk": "high" if kind == "gate" else None,
        "digest": "d" * 64,
        "params": {"pin": 17, "value": 1},
        "nodes": ["pi-garden"],
        "four_eyes": False,
    }
    return {**found, **fields}


def run(*waves: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    """One run of these waves of actions."""
    actions = [action for wave in waves for action in wave]
    counts: dict[str, int] = {}
    for each in actions:
        counts[each["state"]] = counts.get(each["state"], 0) + 1
    found = {
        "schema": "imlmesh.run/1",
        "run": "r-7-abcd",
        "plan_id": "evening",
        "description": "",
        "state": "running",
        "waits_for": [],
        "unconfirmed": False,
        "compensation_pending": False,
        "by": "me",
        "priority": 0,
        "of": None,
        "starts_at_ms": None,
        "submitted_at_ms": START_MS,
        "ended_at_ms": None,
        "counts": counts,
        "file": "evening.yaml",
        "digest": "d" * 64,
        "error": None,
        "waves": [[action["id"] for action in wave] for wave in waves],
        "seq": 3,
        "actions": actions,
        "approvals": [],
    }
    return {**found, **fields}


def health(now_ms: int = START_MS, **fields: Any) -> dict[str, Any]:
    """What `GET /v1/health` answers."""
    found = {
        "schema": "imlmesh.health/1",
        "version": "0.1.0",
        "mesh": "home",
        "orchestrator": "o",
        "epoch": 3,
        "pid": 7,
        "started_at_ms": now_ms - 7_200_000,
        "now_ms": now_ms,
        "broker": {"connected": True, "address": "127.0.0.1:8883", "error": None},
        "store": {"behind": False, "outflow_rows": 0, "low": False, "waits": False},
        "nodes": {"online": 1, "suspect": 0, "lost": 0, "offline": 0},
        "verdicts": {"hears": True, "frozen": False, "silent": []},
        "outranked": [],
        "ledger": {
            "entries": 12,
            "sealed": 12,
            "sealed_at_ms": now_ms - 60_000,
            "witnesses": 1,
            "read_only": False,
            "doubts": [],
        },
        "admissions": {},
        "access": {"problem": None},
        "join": {"endpoints": ["127.0.0.1:8766"], "waiting": 0},
        "runs": {"active": 0},
        "approvals": {"pending": 0},
        "messages": {"refused": {}, "refused_at_ms": {}},
        "telemetry": {"written": 7, "dropped": 0, "dropped_at_ms": None},
    }
    return {**found, **fields}


def series(metric: str = "iot.soil", **fields: Any) -> dict[str, Any]:
    """What was measured of one metric, as `GET /v1/telemetry` tells it."""
    parts: list[float | None] = [None] * 12 + [10.0 + number for number in range(12)]
    found = {
        "node": "pi-1",
        "alias": "pi-garden",
        "metric": metric,
        "unit": "%",
        "count": 120,
        "min": 9.25,
        "max": 21.0,
        "mean": 15.5,
        "last": 21.0,
        "last_ms": START_MS - 4_000,
        "parts": parts,
    }
    return {**found, **fields}


def node(name: str, liveness: str = "online", **fields: Any) -> dict[str, Any]:
    """One node; what was decided of it is `admission` and `decision`."""
    found = {
        "node": name,
        "alias": name,
        "groups": ["garden"],
        "labels": {},
        "liveness": liveness,
        "reason": None,
        "admission": "open",
        "decision": None,
        "last_heard_ms": START_MS,
        "since_ms": START_MS,
        "beats": [1.0] * 14,
        "health": {"cpu_percent": 12.0, "disk_percent": 38.0, "temperature_c": None},
        "facts": {"os": "linux"},
        "profile": "local_worker",
        "version": "0.1.0",
        "live_dispatches": 0,
        "escalation": None,
        "spool": {"records": 0, "dropped_events": 0, "dropped_readings": 0},
        "modules": ["os_exec"],
        "problems": [],
    }
    return {**found, **fields}


def decision(reason: str = "it smells", **fields: Any) -> dict[str, Any]:
    """What a person decided of a node, until somebody changes it."""
    found = {
        "reason": reason,
        "by": "eve",
        "since_ms": START_MS,
        "until_ms": None,
        "probation": False,
        "drained": True,
    }
    return {**found, **fields}
