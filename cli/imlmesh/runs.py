"""Runs as tables and pages for people.

The one rule: a unit of work is a row: an action, below it each node of a member-wise one and each
undoing of it. Deliberately absent: asking the API.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.ending import end_lines
from imlmesh.fleet import name_of
from imlmesh.render import Cell, Column, console, duration, mark, write, write_table
from imlmesh.waves import head_line, question_lines, undo_lines, wave_lines

Record = Mapping[str, Any]


def print_runs(runs: Sequence[Record]) -> None:
    """The table of runs; what waits for something first."""
    now_ms = time.time_ns() // 1_000_000
    columns = [
        Column("RUN"),
        Column("PLAN", 2),
        Column("STATE"),
        Column("ACTIONS", 1, right=True),
        Column("TOOK", 3, right=True),
        Column("AGO", 3, right=True),
        Column("BY", 5),
        Column("WAITS FOR", 4),
    ]
    ordered = sorted(runs, key=lambda run: 0 if run["waits_for"] else 1)
    write_table(columns, [_run_row(run, now_ms) for run in ordered])


def _run_row(run: Record, now_ms: int) -> list[Cell]:
    took_ms = (run["ended_at_ms"] or now_ms) - run["submitted_at_ms"]
    return [
        run["run"],
        run["plan_id"] or "-",
        mark(run["state"]),
        f"{run['counts'].get('completed', 0)}/{run['actions']}",
        duration(took_ms),
        duration(now_ms - run["submitted_at_ms"]),
        run["by"],
        ", ".join(run["waits_for"]) or "-",
    ]


def print_run(run: Record) -> None:
    """One run as a page: its waves, questions, units of work, and how it ended."""
    now_ms = time.time_ns() // 1_000_000
    write(head_line(run, now_ms))
    if run["description"]:
        write(run["description"])
    if run["priority"]:
        write(f"priority {run['priority']}")
    for line in [*wave_lines(run, now_ms, {}), *undo_lines(run)]:
        line.truncate(console().width, overflow="ellipsis")
        write(line)
    for line in question_lines(run["approvals"], now_ms):
        write(line)
    write()
    columns = [
        Column("ACTION"),
        Column("STATE"),
        Column("NODE", 1),
        Column("TOOK", 3, right=True),
        Column("ATTEMPT", 5, right=True),
        Column("TARGET", 4),
        Column("WHAT", 6),
        Column("ERROR", 2),
    ]
    write_table(columns, [row for action in run["actions"] for row in _unit_rows(action)])
    if run["ended_at_ms"]:
        for line in end_lines(run):
            write(line)


def _unit_rows(action: Record) -> Iterator[list[Cell]]:
    mode = "" if action["mode"] == "any" else f" ({action['mode']})"
    error = action["error"]
    yield [
        action["id"],
        mark(action["state"]),
        "-" if action["members"] else action["node_alias"] or action["node"] or "-",
        duration(action["duration_ms"]),
        "kept" if action["kept"] else str(action["attempt"]),
        action["target"] + mode,
        f"{action['module']}.{action['action']} ({action['effect']})",
        f"{error['code']}: {error['message']}" if error else "-",
    ]
    for member in action["members"]:
        text = f"{member['code']}: {member['message']}" if member["code"] else "-"
        took = duration(member["duration_ms"])
        attempt = "kept" if member["kept"] else str(member["attempt"])
        name = Text("  one node", style="dim")
        yield [name, mark(member["state"]), name_of(member), took, attempt, "", "", text]
    for undo in action["compensations"]:
        name, code = Text("  undoing it", style="dim"), undo["code"] or "-"
        yield [name, mark(undo["state"]), name_of(undo), "-", "-", "", undo["action"], code]
