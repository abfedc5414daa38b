"""Plays scenarios on one mesh after the other, tells each at once, and leaves nothing running.

The one rule: a scenario begins when everything is as it was at the beginning. What goes wrong in one is
that one's result. Deliberately absent: how results are printed.
"""

import asyncio
import contextlib
import random
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imlmesh.chaos import ends
from imlmesh.chaos.field import Field, opened_field
from imlmesh.chaos.figures import is_whole, summary
from imlmesh.chaos.table import RANDOM, Scenario
from imlmesh.chaos.trial import Measured, Trial
from imlmesh_protocol.errors import MeshError

#: scenario, which time of how many, what came of it
Told = Callable[[Scenario, int, int, Measured], None]


@dataclass(frozen=True, slots=True)
class Order:
    """What is played: each scenario `runs` times, but so many random `kills`, and the CPU busy for
    `seconds`. `seed` draws their instants."""

    scenarios: tuple[Scenario, ...]
    runs: int
    kills: int
    seconds: float
    seed: int


async def play(order: Order, told: Told) -> tuple[list[dict[str, Any]], Path | None]:
    """A row for each scenario; the folder of the mesh, kept when something broke.

    MeshError when the mesh cannot be started at all. Ended by SIGTERM as by Ctrl-C: cleaned up, then
    cancelled.
    """
    playing = asyncio.current_task()
    if playing is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, playing.cancel)
    folder = Path(tempfile.mkdtemp(prefix="imlmesh-chaos-"))
    kept = False
    try:
        async with opened_field(folder) as place:
            rows = [
                summary(each, await _play(order, each, place, told)) for each in order.scenarios
            ]
        kept = not all(map(is_whole, rows))
    except MeshError:
        kept = True
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return rows, folder if kept else None


def new_seed() -> int:
    """For who wants to do the same again."""
    return secrets.randbelow(1 << 32)


async def _play(order: Order, scenario: Scenario, place: Field, told: Told) -> list[Measured]:
    found = []
    rounds = _rounds(order.kills) if scenario.name == RANDOM else [0] * order.runs
    dice = random.Random(order.seed)  # noqa: S311 - no secret
    for number, kills in enumerate(rounds):
        async with _trial(place, scenario, order.seconds) as trial:
            if scenario.name == RANDOM:
                # every other round spares the nodes: then nothing may end otherwise
                await ends.random_kills(trial, kills, dice, nodes=number % 2 == 1)
            elif scenario.play is not None:
                await scenario.play(trial)
        told(scenario, number + 1, len(rounds), trial.result)
        found.append(trial.result)
        if trial.result.left_out:
            break
    return found


@contextlib.asynccontextmanager
async def _trial(place: Field, scenario: Scenario, busy_s: float) -> AsyncIterator[Trial]:
    await place.settle()
    trial = Trial(place, person=scenario.person, busy_s=busy_s)
    try:
        try:
            yield trial
        except (MeshError, TimeoutError) as exc:
            trial.must(False, f"{type(exc).__name__}: {exc}")
        await place.mend()
        await trial.judge()
    finally:
        await trial.close()


def _rounds(kills: int) -> list[int]:
    whole, rest = divmod(kills, ends.KILLS_A_ROUND)
    return [ends.KILLS_A_ROUND] * whole + ([rest] if rest else [])
