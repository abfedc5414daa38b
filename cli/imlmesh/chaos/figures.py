"""What many trials of one scenario come to: percentiles, sums, and whether a promise was kept.

The one rule: what broke is told apart from what was late. Deliberately absent: printing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from imlmesh.chaos.table import Scenario
from imlmesh.chaos.trial import Measured

TIMES = ("detection", "reroute", "recovery")


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds of `n` measurements."""

    n: int
    p50_ms: int
    p95_ms: int
    max_ms: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Spread | None":
        """None of nothing."""
        if not seconds:
            return None
        ordered = sorted(round(value * 1_000) for value in seconds)
        p50_ms, p95_ms = (ordered[ceil(len(ordered) * part) - 1] for part in (0.5, 0.95))
        return cls(len(ordered), p50_ms, p95_ms, ordered[-1])

    def record(self) -> dict[str, int]:
        return {"n": self.n, "p50_ms": self.p50_ms, "p95_ms": self.p95_ms, "max_ms": self.max_ms}


def summary(scenario: Scenario, trials: Sequence[Measured]) -> dict[str, Any]:
    """One row: the scenario, how often it was done, times, effects, what broke and what was late."""
    done = [trial for trial in trials if not trial.left_out]
    row: dict[str, Any] = {
        "scenario": scenario.name,
        "shows": list(scenario.shows),
        "n": sum(trial.times for trial in done),
        "left_out": next((trial.left_out for trial in trials if trial.left_out), None),
    }
    late = 0
    for name in TIMES:
        seconds = [each for trial in done for each in trial.all_of(name)]
        spread, promised_s = Spread.of(seconds), getattr(scenario, f"{name}_s")
        row[name] = spread and spread.record()
        row[f"{name}_promised_ms"] = promised_s and round(promised_s * 1_000)
        late += sum(1 for each in seconds if promised_s is not None and each > promised_s)
    row |= {
        "late": late,
        "lost": sum(len(trial.lost) for trial in done),
        "doubled": sum(len(trial.doubled) for trial in done),
        "asked": sum(trial.asked for trial in done),
        "broken": [text for trial in done for text in trial.broken],
        "notes": [text for trial in done for text in trial.notes],
    }
    return row


def is_whole(row: dict[str, Any]) -> bool:
    """Whether nothing was lost, doubled or broken."""
    return not (row["lost"] or row["doubled"] or row["broken"])


def spread_text(spread: dict[str, int] | None) -> str:
    """`0.12 / 0.15 / 0.16`, seconds; `-` for None."""
    if spread is None:
        return "-"
    return " / ".join(f"{spread[name] / 1_000:.2f}" for name in ("p50_ms", "p95_ms", "max_ms"))
