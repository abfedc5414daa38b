"""Nodes and groups as people see them: what is known, how they do now, what is wrong.

The one rule: presence and health are the core's own and volatile; what was before comes from the
kept heartbeats. Looks at the core's state, so it runs on the event loop and must be short.
"""

import sqlite3
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from imlmesh_orchestrator.core.presence import Presence
from imlmesh_orchestrator.core.state import NodeRecord, State
from imlmesh_orchestrator.views.offers import offer_of
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES, InputError
from imlmesh_protocol.states import PRESENT, Admission, DispatchState, Liveness

BEATS_MS = 30 * 60_000
BEATS = 14
_DISK_PERCENT = 90
_HOT_C = 80
_BEATS = """SELECT node, (at_ms - ?1) * ?3 / ?2, count(*) FROM heartbeats
    WHERE at_ms >= ?1 AND at_ms < ?1 + ?2 GROUP BY 1, 2"""
#: how the spool is told, and under which names of its health a node says it
_SPOOL = {
    "records": "spooled_records",
    "dropped_events": "dropped_events",
    "dropped_readings": "dropped_readings",
}
#: nobody waits for it here, and its node may do it all the same
_GIVEN_UP = frozenset({DispatchState.UNKNOWN, DispatchState.SUPERSEDED})
_LAST = "SELECT node, since_ms, reason FROM nodes"
_DECIDED = "SELECT node, since_ms FROM admissions"
_EVIDENCE = """SELECT at_ms, kind, text, verdict FROM evidence WHERE node = ?
    ORDER BY seq DESC LIMIT ?"""


@dataclass(frozen=True, slots=True)
class Beats:
    """Heartbeats of the last half hour by node and 14th part of it, and the parts in which nobody
    listened: what a node did then is not known."""

    counts: Mapping[str, Mapping[int, int]]
    unknown: Set[int]


def since(database: sqlite3.Connection) -> dict[str, tuple[int, str]]:
    """Of each node: since when it is what it is, and why."""
    return {node: (at_ms, reason) for node, at_ms, reason in database.execute(_LAST)}


def decided(database: sqlite3.Connection) -> dict[str, int]:
    """Of each node that is not open: since when it is what it is."""
    return dict(database.execute(_DECIDED).fetchall())


def evidence(database: sqlite3.Connection, node: str) -> list[dict[str, Any]]:
    """The latest of what speaks against a node, and what it led to."""
    rows = database.execute(_EVIDENCE, (node, limits.EVIDENCE_KEPT))
    names = ("at_ms", "kind", "text", "verdict")
    return [dict(zip(names, row, strict=True)) for row in rows]


def beat_counts(database: sqlite3.Connection, now_ms: int, started_ms: int) -> Beats:
    """A question to output; `started_ms` is when this orchestrator began to listen."""
    found: dict[str, dict[int, int]] = {}
    params = (now_ms - BEATS_MS, BEATS_MS, BEATS)
    for node, part, count in database.execute(_BEATS, params):
        found.setdefault(node, {})[part] = count
    before = range(max(0, BEATS - (now_ms - started_ms) * BEATS // BEATS_MS - 1))
    return Beats(found, set(before) - {part for parts in found.values() for part in parts})


def find_node(state: State, name: str) -> NodeRecord:
    """By alias or id; `node.not_found`."""
    record = state.find_node(name)
    if record is None and state.find_id(name) is not None:
        text = f"{name} was let in and was never here, so nothing is known of it"
        raise InputError("node.not_found", text, hint="on it: imlmesh node run FOLDER")
    if record is None:
        raise InputError("node.not_found", f"no node {name[:80]!r}")
    return record


@dataclass(frozen=True, slots=True)
class Times:
    """Since when each node is what it is, and why; since when it is not open."""

    liveness: Mapping[str, tuple[int, str]]
    admission: Mapping[str, int]


def admission_view(state: State, node: str, since_ms: int | None) -> dict[str, Any]:
    """Whether a node (id) may get work, and who decided that."""
    record = state.admissions.get(node)
    known = state.nodes.get(node)
    told: dict[str, Any] = {"admission": str(state.admission_of(node)), "decision": None}
    if record is not None:
        told["decision"] = {
            "reason": record.reason,
            "by": record.by,
            "since_ms": since_ms or record.changed_ms,
            "until_ms": record.until_ms or None,
            "probation": record.probation,
            "drained": known is None or not live_dispatches(state, known),
        }
    return told


def live_dispatches(state: State, record: NodeRecord) -> int:
    """How many it has of ours, and what it holds beside those by its last beat: runs by permit, and what
    was given up while it was silent."""
    presence = state.presence.get(record.node)
    if presence is None or record.liveness not in PRESENT:
        return len(record.live)
    held = [name for name in presence.held or () if name not in record.live]
    return len(record.live) + sum(_goes_on(state, name) for name in held)


def _goes_on(state: State, dispatch: str) -> bool:
    """Whether a node may still be at it, when its last beat says so; what ended since then it is not."""
    record = state.dispatches.get(dispatch)
    return record is None or record.state in _GIVEN_UP


def node_view(
    state: State, record: NodeRecord, beats: Beats, times: Times, now_ms: int
) -> dict[str, Any]:
    """One node as the API tells it, without its actions."""
    presence = state.presence.get(record.node)
    health = dict(presence.health) if presence else {}
    since_ms, reason = times.liveness.get(record.node, (None, None))
    expected = BEATS_MS / BEATS / record.heartbeat_ms
    parts = beats.counts.get(record.node, {})
    shares = [round(min(1.0, parts.get(part, 0) / expected), 2) for part in range(BEATS)]
    return {
        "node": record.node,
        "alias": record.alias,
        "groups": [name for name, nodes in sorted(state.groups.items()) if record.node in nodes],
        "labels": dict(record.labels),
        "liveness": str(record.liveness),
        "reason": reason,
        **admission_view(state, record.node, times.admission.get(record.node)),
        "last_heard_ms": presence.last_heard_ms if presence else None,
        "since_ms": since_ms,
        "beats": [None if i in beats.unknown else share for i, share in enumerate(shares)],
        "health": health,
        "facts": dict(record.facts),
        "profile": record.profile,
        "version": record.facts.get("version"),
        "live_dispatches": live_dispatches(state, record),
        "modules": sorted(record.manifest.modules),
        "escalation": _escalation(record),
        "spool": {name: int(health.get(told) or 0) for name, told in _SPOOL.items()},
        "problems": [*_why_suspect(record, presence, now_ms), *_problems(record, health, now_ms)],
    }


def actions_view(record: NodeRecord) -> list[dict[str, Any]]:
    """What the node offers."""
    return [
        offer_of(spec)
        for _, module in sorted(record.manifest.modules.items())
        for _, spec in sorted(module.actions.items())
    ]


def groups_view(state: State) -> list[dict[str, Any]]:
    """All groups with their nodes."""
    return [
        {
            "group": name,
            "nodes": [
                {
                    "node": node,
                    "alias": state.alias_of(node),
                    "liveness": _liveness(state, node),
                }
                for node in nodes
            ],
        }
        for name, nodes in sorted(state.groups.items())
    ]


def never_here(state: State) -> list[str]:
    """What people call the nodes that were let in, not removed, and never came."""
    return sorted(
        record.alias
        for node, record in state.enrolled.items()
        if node not in state.nodes and state.admission_of(node) is not Admission.REVOKED
    )


def _liveness(state: State, node: str) -> str:
    """Who was let in and has not come yet is offline."""
    record = state.nodes.get(node)
    return str(Liveness.OFFLINE if record is None else record.liveness)


def _escalation(record: NodeRecord) -> dict[str, Any] | None:
    """What the node asked a person about last, however long ago."""
    fault = record.escalation
    if fault is None:
        return None
    hint = CODES[fault.code].hint
    told = {"code": fault.code, "message": fault.message, "hint": hint}
    return told | {"at_ms": record.escalated_ms}


def _why_suspect(record: NodeRecord, presence: Presence | None, now_ms: int) -> list[str]:
    """Why a node that is there gets nothing new."""
    if presence is None or record.liveness is Liveness.ONLINE:
        return []
    found = ["hears none of our answers"] if presence.deaf else []
    if presence.held_until_ms > now_ms:
        rest_s = -(-(presence.held_until_ms - now_ms) // 1_000)
        found.append(f"comes and goes: held down for {rest_s} s more")
    return found


def _problems(record: NodeRecord, health: Mapping[str, Any], now_ms: int) -> list[str]:
    found = []
    if record.escalation is not None and now_ms - record.escalated_ms < limits.ESCALATED_MS:
        found.append(f"asks for a person: {record.escalation.message}")
    if (health.get("disk_percent") or 0) >= _DISK_PERCENT:
        found.append(f"disk {health['disk_percent']:.0f} % full")
    if (health.get("temperature_c") or 0) >= _HOT_C:
        found.append(f"hot, {health['temperature_c']:.0f} °C")
    for name in ("events", "readings"):
        if lost := health.get(f"dropped_{name}"):
            found.append(f"dropped {lost:.0f} {name} while it was cut off")
    if record.full:
        found.append("holds as many dispatches as it may")
    return found
