"""The last run of a plan's name: what a preview compares with.

The one rule: the plan is the one that was submitted then, and the nodes are those that worked.
"""

import sqlite3
from dataclasses import dataclass

from imlmesh_orchestrator.views.runs import plan_of
from imlmesh_orchestrator.views.standing import standings
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.iml.plan import Plan

_LAST = "SELECT run, digest FROM runs WHERE plan_id = ? ORDER BY counter DESC LIMIT 1"


@dataclass(frozen=True, slots=True)
class LastRun:
    """A run, its plan, and by action id the nodes that were given its work."""

    run: str
    digest: str
    plan: Plan
    nodes: dict[str, frozenset[str]]


def last_run(database: sqlite3.Connection, plan_id: str) -> LastRun | None:
    """The latest run of a plan of this name, ended or not."""
    row = database.execute(_LAST, (plan_id,)).fetchone()
    if row is None:
        return None
    run, digest = row
    nodes = {}
    for name, standing in standings(database, run).items():
        worked = {split_dispatch(each["dispatch"])[2] for each in standing.dispatches}
        nodes[name] = frozenset({str(node) for node in worked} | standing.members.keys())
    return LastRun(run, digest, plan_of(database, digest), nodes)
