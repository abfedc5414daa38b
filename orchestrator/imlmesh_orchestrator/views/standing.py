"""How each unit of work of a run stands, told by the projections.

The one rule: the state of a unit is told by its last dispatch or by its own row, whichever is
later; an action that has neither is pending, and one that several nodes do runs as soon as one
of its members has. Deliberately absent: the plan.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import decode
from imlmesh_orchestrator.store.compacted import ChangesOf
from imlmesh_orchestrator.views.units import split_unit
from imlmesh_protocol import limits
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.states import ACTION_ENDED, ActionState, DispatchState

Row = Mapping[str, Any]

# ids of dispatches begin with "<run>/", and "0" is the character after "/"
_DISPATCHES = """SELECT * FROM dispatches
    WHERE dispatch > :run || '/' AND dispatch < :run || '0' ORDER BY planned_seq"""
_UNITS = "SELECT * FROM actions WHERE run = :run ORDER BY seq"
_NOT_ENDED = frozenset({ActionState.PENDING, ActionState.WAITING})
_REPORTED = frozenset({DispatchState.FAILED, DispatchState.TIMED_OUT})
TRUNCATED = {"truncated": True}


@dataclass(slots=True)
class Standing:
    """What the projections say of one unit; `members` and `undone_by` are those of an action."""

    state: str = ActionState.PENDING
    seq: int = 0
    dispatches: list[Row] = field(default_factory=list)
    result_seq: int | None = None
    ended_at_ms: int | None = None
    code: str | None = None
    message: str | None = None
    reasons: dict[str, str] | None = None
    retry_at_ms: int | None = None
    members: dict[str, "Standing"] = field(default_factory=dict)
    undone_by: dict[str, "Standing"] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ACTION_ENDED

    @property
    def node(self) -> str | None:
        """Where it was last sent; None while it looks for a node."""
        if not self.dispatches or self.state == ActionState.WAITING:
            return None
        return split_dispatch(self.dispatches[-1]["dispatch"])[2]

    @property
    def tries(self) -> int:
        """Failures that a node reported, and the try that runs or completed."""
        reported = sum(row["state"] in _REPORTED for row in self.dispatches)
        return reported + (self.state in (ActionState.RUNNING, ActionState.COMPLETED))


def rows_of(
    database: sqlite3.Connection, sql: str, params: Iterable[Any] | Mapping[str, Any]
) -> list[Row]:
    """The rows of an answer by the names of their columns."""
    cursor = database.execute(sql, params)  # type: ignore[arg-type]
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def standings(database: sqlite3.Connection, run: str) -> dict[str, Standing]:
    """By action id, members and compensations within; what is pending may be missing."""
    units: dict[str, Standing] = {}
    for row in rows_of(database, _DISPATCHES, {"run": run}):
        key = row["unit"] or split_dispatch(row["dispatch"])[1]
        _take_dispatch(units.setdefault(key, Standing()), row)
    for row in rows_of(database, _UNITS, {"run": run}):
        _take_row(units.setdefault(row["action"], Standing()), row)
    actions: dict[str, Standing] = {}
    for key, standing in units.items():
        name, sign, node = split_unit(key)
        if node is None:
            actions.setdefault(name, standing)
    for key, standing in units.items():
        name, sign, node = split_unit(key)
        if node is not None:
            owner = actions.setdefault(name, Standing())
            (owner.members if sign == "@" else owner.undone_by)[node] = standing
    for standing in actions.values():
        if standing.state in _NOT_ENDED and _member_seq(standing) > standing.seq:
            standing.state = ActionState.RUNNING
    return actions


def units_of(known: Mapping[str, Standing]) -> Iterator[tuple[str, Standing]]:
    """Every unit with its key: each action, its members, its compensations."""
    for name, standing in known.items():
        yield name, standing
        for node, member in standing.members.items():
            yield f"{name}@{node}", member
        for node, undoing in standing.undone_by.items():
            yield f"{name}~{node}", undoing


def _take_dispatch(standing: Standing, row: Row) -> None:
    standing.dispatches.append(row)
    seq = row["result_seq"] or row["planned_seq"]
    if seq > standing.seq:
        standing.seq = seq
        standing.state = row["action_state"] or ActionState.RUNNING
        standing.ended_at_ms = row["ended_at_ms"] if row["action_state"] else None
        standing.code, standing.message = row["code"], row["message"]
        standing.result_seq = row["result_seq"] if row["action_state"] else None


def _take_row(standing: Standing, row: Row) -> None:
    if row["seq"] <= standing.seq:
        return
    standing.seq, standing.state = row["seq"], row["state"]
    if row["state"] != ActionState.ROLLED_BACK:
        standing.result_seq = None  # what was undone keeps the result that it had
    standing.code, standing.message = row["code"], row["message"]
    standing.ended_at_ms = row["at_ms"] if standing.ended else None
    standing.reasons = msgpack.unpackb(row["reasons"]) if row["reasons"] else None
    standing.retry_at_ms = row["retry_at_ms"]


def _member_seq(standing: Standing) -> int:
    """Of the last change that gave a member of the action to its node; 0 when none did."""
    planned = (member.dispatches[-1:] for member in standing.members.values())
    return max((row["planned_seq"] for rows in planned for row in rows), default=0)


_HAS_RESULT = (ActionState.COMPLETED, ActionState.ROLLED_BACK)


class Results:
    """Results of one run. `whole` ones are never cut; others end at the limit of answers."""

    def __init__(
        self,
        database: sqlite3.Connection,
        run: str,
        retried: c.RunRetried | None,
        *,
        whole: bool,
    ) -> None:
        self._changes = ChangesOf(database, run)
        self._kept = retried.kept if retried is not None else {}
        self._whole = whole

    def of(self, action: str, standing: Standing) -> Any:
        """The result of an action, {node: result} of one that several nodes did; None without."""
        if not standing.dispatches and not standing.members and action in self._kept:
            return self._fit(self._kept[action][1])
        if not standing.members:
            return self._read(standing.result_seq)
        if not standing.ended:
            return None
        found: dict[str, Any] = {}
        for node, member in standing.members.items():
            if member.state in _HAS_RESULT:
                found[node] = self.of_member(f"{action}@{node}", member)
        return self._fit(found)

    def of_member(self, key: str, member: Standing) -> Any:
        """The result of what one node did, here or in the run that this one retries."""
        if self.keeps_member(key, member):
            return self._fit(self._kept[key][1])
        return self._read(member.result_seq)

    def keeps_member(self, key: str, member: Standing) -> bool:
        """Whether what one node did before was enough."""
        return not member.dispatches and key in self._kept

    def kept_nodes(self, action: str) -> list[str] | None:
        """Where an action that was not repeated completed in the run before; None for others."""
        return list(self._kept[action][0]) if action in self._kept else None

    def kept_members(self, action: str) -> list[str]:
        """The nodes of which a part of the action is not repeated."""
        units = [split_unit(key) for key in self._kept]
        return [node for name, _, node in units if name == action and node is not None]

    def _read(self, seq: int | None) -> Any:
        if seq is None:
            return None
        row = self._changes.at(seq)
        if not self._whole and len(row[6]) > limits.API_RESULT_BYTES:
            return TRUNCATED
        change = decode(*row[1:])
        return change.result if isinstance(change, c.ResultTaken) else None

    def _fit(self, result: Any) -> Any:
        fits = self._whole or len(msgpack.packb(result)) <= limits.API_RESULT_BYTES
        return result if fits else TRUNCATED


def retried_of(database: sqlite3.Connection, run: str, seq: int | None) -> c.RunRetried | None:
    """What a run took over from the run that it retries; None when it retries none."""
    if seq is None:
        return None
    change = decode(*ChangesOf(database, run).at(seq)[1:])
    assert isinstance(change, c.RunRetried)  # noqa: S101 - the projection wrote its seq
    return change
