"""Ours and a peer in turns, measure by measure; figures and ratios of what they took.

The one rule: a ratio is the median over rounds, each of which met the same machine.
"""

import statistics
import time
from collections.abc import Mapping
from typing import Any, Protocol

from bench.figures import ms
from bench.peers.measures import FLOOD, Measure

ROUNDS = 5
LEAST_ROUNDS = 2
#: on a slow machine no round begins after it, so that three peers end within five minutes
BUDGET_S = 50

#: for each measure the typical seconds of each round
Taken = dict[Measure, list[float]]


class Side(Protocol):
    version: str

    async def measure(self, measure: Measure) -> list[float]:
        """Seconds."""


async def take_turns(ours: Side, theirs: Side) -> tuple[Taken, Taken]:
    """What ours and theirs took, in 2 to 5 rounds; one more before warms both up."""
    taken: tuple[Taken, Taken] = ({m: [] for m in Measure}, {m: [] for m in Measure})
    until_s = time.perf_counter() + BUDGET_S
    for number in range(-1, ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() > until_s:
            break
        for measure in Measure:
            for side, rounds in zip((ours, theirs), taken, strict=True):
                seconds = await side.measure(measure)
                if number >= 0:
                    rounds[measure].append(statistics.median(seconds))
    return taken


def figures(taken: Taken) -> dict[str, float]:
    """Medians over the rounds."""
    typical = {measure: statistics.median(rounds) for measure, rounds in taken.items()}
    return {
        "p50_ms": ms(typical[Measure.TRIPS]),
        "actions_s": round(FLOOD / typical[Measure.FLOOD]),
        "dag_ms": round(typical[Measure.WAVES] * 1_000, 1),
    }


def ratios(ours: Mapping[Measure, list[float]], theirs: Mapping[Measure, list[float]]) -> Any:
    """How many times as quick ours is; below 1 the peer is quicker."""

    def ratio(measure: Measure) -> float:
        pairs = zip(ours[measure], theirs[measure], strict=True)
        return round(statistics.median(theirs_s / ours_s for ours_s, theirs_s in pairs), 2)

    return {
        "rounds": len(ours[Measure.TRIPS]),
        "p50": ratio(Measure.TRIPS),
        "actions_s": ratio(Measure.FLOOD),
        "dag": ratio(Measure.WAVES),
    }
