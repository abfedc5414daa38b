"""How chaos is told to people and programs: a line for each trial, then one table or object."""

import asyncio
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from imlmesh.chaos.figures import TIMES, is_whole, spread_text
from imlmesh.chaos.playing import Order, new_seed, play
from imlmesh.chaos.report import machine, page
from imlmesh.chaos.table import NAMES, SCENARIOS, Scenario
from imlmesh.chaos.trial import Measured
from imlmesh.exits import ExitCode
from imlmesh.render import MARKS, Cell, Column, emit, say, write_table
from imlmesh_protocol.errors import InputError

SCHEMA = "imlmesh.chaos/1"


def run_chaos(
    names: Sequence[str],
    runs: int,
    kills: int,
    seconds: float,
    *,
    seed: int | None = None,
    report: Path | None = None,
) -> ExitCode:
    """Play and tell; FAILED when something broke. InputError `name.invalid`, `config.invalid`."""
    chosen = _chosen(names)
    if report is not None:
        _check_writable(report)
    order = Order(chosen, runs, kills, seconds, new_seed() if seed is None else seed)
    facts = {**machine(), **_order(names, order)}
    say(f"breaking a mesh of four nodes; seed {order.seed}, Ctrl-C ends it and leaves nothing")
    try:
        rows, kept = asyncio.run(play(order, _tell))
    except asyncio.CancelledError:
        return ExitCode.INTERRUPTED
    whole = all(map(is_whole, rows))
    record = {"schema": SCHEMA, "whole": whole, "facts": facts, "scenarios": rows}
    if not emit(record, "scenarios"):
        _table(rows)
    if report is not None:
        report.write_text(page(facts, rows), encoding="utf-8")
        say(f"✔ wrote {report}")
    if kept is not None:
        say(f"✖ something broke; everything is kept in {kept}")
    return ExitCode.DONE if whole else ExitCode.FAILED


def _order(names: Sequence[str], order: Order) -> dict[str, Any]:
    """What was asked for, and how to ask for it again."""
    options = (
        f"--runs {order.runs} --kills {order.kills} --seconds {order.seconds:g} --seed {order.seed}"
    )
    return {
        "runs": order.runs,
        "kills": order.kills,
        "seconds": order.seconds,
        "seed": order.seed,
        "again": " ".join(("imlmesh chaos", *names, options)),
    }


def list_scenarios() -> ExitCode:
    """What can be played."""
    scenarios = [
        {"scenario": each.name, "shows": list(each.shows), "text": each.text} for each in SCENARIOS
    ]
    if not emit({"schema": "imlmesh.chaos-list/1", "scenarios": scenarios}, "scenarios"):
        rows: list[list[Cell]] = [[each.name, each.text] for each in SCENARIOS]
        write_table([Column("SCENARIO"), Column("WHAT IS DONE")], rows)
    return ExitCode.DONE


def _chosen(names: Sequence[str]) -> tuple[Scenario, ...]:
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "imlmesh chaos --list"
            raise InputError("name.invalid", f"no scenario {name[:80]!r}", hint=hint)
    return tuple(each for each in SCENARIOS if not names or each.name in names)


def _check_writable(report: Path) -> None:
    try:
        with report.open("ab"):
            pass
    except OSError as exc:
        raise InputError("config.invalid", f"{report}: {exc.strerror}") from exc


def _tell(scenario: Scenario, number: int, of: int, result: Measured) -> None:
    counter = f" {number}/{of}" if of > 1 else ""
    if result.left_out:
        say(Text(f"- {scenario.name}: left out, {result.left_out}", "dim"))
        return
    said = []
    for name, what in zip(TIMES, (scenario.detects, "moved", scenario.recovers), strict=True):
        if seconds := result.all_of(name):
            said.append(f"{what} {max(seconds):.2f} s")
    said += [f"{result.asked} asked"] if result.asked else []
    said += result.notes
    if wrong := [*result.broken, *_named("lost", result.lost), *_named("doubled", result.doubled)]:
        say(Text(f"✖ {scenario.name}{counter}: {'; '.join(wrong)}", "red"))
    else:
        say(f"✔ {scenario.name}{counter}: {', '.join(said) or 'nothing noticed'}")


def _named(what: str, effects: list[str]) -> list[str]:
    return [f"{what}: {', '.join(effects)}"] if effects else []


def _table(rows: list[dict[str, Any]]) -> None:
    columns = [
        Column("RESULT"),
        Column("SCENARIO"),
        Column("N", 1, right=True),
        *(Column(f"{name.upper()} P50/P95/MAX S", 2, right=True) for name in TIMES),
        Column("LOST", right=True),
        Column("DOUBLED", right=True),
        Column("WHY", 1),
    ]
    write_table(columns, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[Cell]:
    if row["left_out"]:
        mark, why = Text("- left out", "dim"), row["left_out"]
    elif not is_whole(row):
        mark, why = _mark("failed", "broken"), "; ".join(row["broken"])
    elif row["late"]:
        mark, why = _mark("suspect", "late"), f"{row['late']} of {row['n']} later than promised"
    else:
        mark, why = _mark("completed", "whole"), ""
    times = [spread_text(row[name]) for name in TIMES]
    return [
        mark,
        row["scenario"],
        str(row["n"]),
        *times,
        str(row["lost"]),
        str(row["doubled"]),
        why,
    ]


def _mark(state: str, word: str) -> Text:
    shape, style = MARKS[state]
    return Text(f"{shape} {word}", style)
