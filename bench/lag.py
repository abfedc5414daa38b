"""How late the orchestrator's loop gets while every fsync takes 10 ms, as on a worn SD card.

`SlowDatabase` is the twin of that disk: it pauses in the writer thread before each commit ends.
"""

import asyncio
import time
from typing import Any
from unittest import mock

from bench.field import Field, field
from bench.figures import line, ms, percentile
from bench.mesh import one_action, run_plan
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_runtime.sqlite import Database, Work

FSYNC_S = 0.010
LOAD_S = 5.0
IN_FLIGHT = 32
_PAUSE_S = 0.001


class SlowDatabase(Database):
    def _transact(self, work: Work) -> Any:
        result = super()._transact(work)
        time.sleep(FSYNC_S)
        return result


async def _load(shell: Shell, until_s: float) -> int:
    """Runs of one action, one after the other; how many."""
    plan = one_action("once")
    digest = plan_digest(plan)
    count = 0
    while time.perf_counter() < until_s:
        await run_plan(shell, plan, digest)
        count += 1
    return count


async def _lateness(until_s: float) -> list[float]:
    """Seconds that a timer of 1 ms was late, again and again."""
    late = []
    loop = asyncio.get_running_loop()
    while time.perf_counter() < until_s:
        due = loop.time() + _PAUSE_S
        await asyncio.sleep(_PAUSE_S)
        late.append(loop.time() - due)
    return late


async def measure(place: Field) -> dict[str, Any]:
    with mock.patch("imlmesh_orchestrator.main.Database", SlowDatabase):
        async with place.mesh(2) as shell:
            until_s = time.perf_counter() + LOAD_S
            late, counts = await asyncio.gather(
                _lateness(until_s),
                asyncio.gather(*(_load(shell, until_s) for _ in range(IN_FLIGHT))),
            )
    return line(
        "loop_lag",
        fsync_ms=FSYNC_S * 1_000,
        runs=sum(counts),
        p50_ms=ms(percentile(late, 0.5)),
        p99_ms=ms(percentile(late, 0.99)),
    )


async def _run() -> list[dict[str, Any]]:
    async with field() as place:
        return [await measure(place)]


def run() -> list[dict[str, Any]]:
    return asyncio.run(_run())
