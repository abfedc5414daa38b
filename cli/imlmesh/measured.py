"""Telemetry as a table: a line for each metric of each node, with a sparkline.

The one rule: a time without a reading is a gap, never a low bar. Deliberately absent: asking the API.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from imlmesh.render import Column, bars, duration, say, try_line, write_table


def print_series(found: Mapping[str, Any]) -> None:
    """The answer of `GET /v1/telemetry`."""
    if not found["series"]:
        _say_nothing(found["tier"])
        return
    now_ms = time.time_ns() // 1_000_000
    columns = [
        Column("NODE"),
        Column("METRIC"),
        Column("LAST", right=True),
        Column("UNIT", 4),
        Column("AGO", 3, right=True),
        Column("MIN", 2, right=True),
        Column("MEAN", 2, right=True),
        Column("MAX", 2, right=True),
        Column("COUNT", 5, right=True),
        Column("HOW IT WENT", 1),
    ]
    write_table(columns, [_row(series, now_ms) for series in found["series"]])
    span = duration(found["until_ms"] - found["since_ms"])
    say(f"{span} of the tier {found['tier']}" + (", cut: ask for less" * found["truncated"]))


def sparkline(parts: Sequence[float | None]) -> str:
    """Means as bars between the lowest and the highest of them; even ones lie in the middle."""
    known = [part for part in parts if part is not None]
    low, high = min(known), max(known)
    # halves first: the difference of two huge values may be more than a number holds
    span = high / 2 - low / 2
    return bars(
        [None if part is None else (part / 2 - low / 2) / span if span else 0.5 for part in parts]
    )


def number(value: float) -> str:
    """At most six digits, as short as they can be written."""
    return f"{value:.6g}"


def _row(series: Mapping[str, Any], now_ms: int) -> list[str]:
    return [
        str(series["alias"] or series["node"]),
        series["metric"],
        number(series["last"]),
        series["unit"] or "-",
        duration(now_ms - series["last_ms"]),
        number(series["min"]),
        number(series["mean"]),
        number(series["max"]),
        str(series["count"]),
        sparkline(series["parts"]),
    ]


def _say_nothing(tier: str) -> None:
    if tier == "raw":
        say("nothing was measured in that time.   try: " + try_line("telemetry query --since 1d"))
    else:
        say(
            f"no {tier} that is over has a reading.   try: "
            + try_line("telemetry query --tier " + ("raw" if tier == "minute" else "minute"))
        )
