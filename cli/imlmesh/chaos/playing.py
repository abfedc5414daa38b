"""Plays scenarios on one mesh after the other, tells each at once, and leaves nothing running.

The one rule: a scenario begins when everything is as it was at the beginning. What goes wrong in one is
that one's result, whatever it is; the results so far are told when the mesh cannot be made whole again.
Deliberately absent: how results are printed.
"""

import asyncio
import random
import secrets
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imlmesh.chaos import ends
from imlmesh.chaos.ending import end_at_a_signal
from imlmesh.chaos.field import Field, opened_field
from imlmesh.chaos.figures import is_whole, summary
from imlmesh.chaos.table import RANDOM, Scenario
from imlmesh.chaos.trial import Measured, Trial

#: scenario, which time of how many, what came of it
Told = Callable[[Scenario, int, int, Measured], None]


#: for how long the CPU is busy after the first time, at most
BUSY_AGAIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is played: each scenario `runs` times, but so many random `kills`, and the CPU busy for
    `seconds`, after the first time for `BUSY_AGAIN_S` at most. `seed` draws all that is random."""

    scenarios: tuple[Scenario, ...]
    runs: int
    kills: int
    seconds: float
    seed: int


async def play(order: Order, told: Told) -> tuple[list[dict[str, Any]], Path | None]:
    """A row for each scenario, of those so far when the mesh cannot be made whole again; the folder of
    the mesh, kept unless all is whole or the play was ended.

    MeshError when the mesh cannot be started at all. Ended by SIGTERM or Ctrl-C: cleaned up, then
    cancelled.
    """
    playing = asyncio.current_task()
    if playing is not None:
        end_at_a_signal(playing.cancel)
    folder = Path(tempfile.mkdtemp(prefix="imlmesh-chaos-"))
    kept = True
    try:
        async with opened_field(folder) as place:
            rows = await _rows(order, place, told)
        kept = not all(map(is_whole, rows))
    except asyncio.CancelledError:
        kept = False
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return rows, folder if kept else None


def new_seed() -> int:
    """For who wants to do the same again."""
    return secrets.randbelow(1 << 32)


async def _rows(order: Order, place: Field, told: Told) -> list[dict[str, Any]]:
    rows = []
    for scenario in order.scenarios:
        results = await _play(order, scenario, place, told)
        rows.append(summary(scenario, results))
        if not results[-1].played:
            break
    return rows


async def _play(order: Order, scenario: Scenario, place: Field, told: Told) -> list[Measured]:
    """What came of each time; the last is not `played` when the mesh cannot be made whole for it."""
    found: list[Measured] = []
    rounds = _rounds(order.kills) if scenario.name == RANDOM else [0] * order.runs
    dice = random.Random(order.seed)  # noqa: S311 - no secret
    for number, kills in enumerate(rounds):

        async def act(trial: Trial, number: int = number, kills: int = kills) -> None:
            if scenario.name == RANDOM:
                # every other round spares the nodes: then nothing may end otherwise
                await ends.random_kills(trial, kills, nodes=number % 2 == 1)
            elif scenario.play is not None:
                await scenario.play(trial)

        try:
            await place.settle()
        except Exception as exc:
            why = f"the mesh is not whole again, nothing more was played: {_reason(exc)}"
            result = Measured(played=False, broken=[why])
        else:
            # the first time shows what lasts, the others that it is so again
            busy_s = min(order.seconds, BUSY_AGAIN_S) if number else order.seconds
            result = await _tried(Trial(place, dice, person=scenario.person, busy_s=busy_s), act)
        told(scenario, number + 1, len(rounds), result)
        found.append(result)
        if result.left_out or not result.played:
            break
    return found


async def _tried(trial: Trial, act: Callable[[Trial], Awaitable[None]]) -> Measured:
    """Its result, with what failed in it, expected or not."""
    try:
        try:
            await act(trial)
        except Exception as exc:
            trial.must(False, _reason(exc))
        try:
            await trial.field.mend()
            await trial.judge()
        except Exception as exc:
            trial.must(False, f"it could not be judged: {_reason(exc)}")
    finally:
        await trial.close()
    return trial.result


def _reason(exc: Exception) -> str:
    # of a command that failed, what it said
    said = str(getattr(exc, "stderr", None) or "").strip()
    return " ".join(filter(None, (f"{type(exc).__name__}: {exc}", said)))


def _rounds(kills: int) -> list[int]:
    whole, rest = divmod(kills, ends.KILLS_A_ROUND)
    return [ends.KILLS_A_ROUND] * whole + ([rest] if rest else [])
