"""How much lifecycle.db grows by an action, and what is left of that when its run ended long ago.

The one rule: real runs over a real mesh, each way 10,000 actions of `fake.noop`; counted are the pages in use.
"""

import asyncio
from pathlib import Path
from typing import Any

from bench.field import Field, field
from bench.figures import line
from bench.mesh import independent, one_action, run_plan
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.store.compaction import Compaction
from imlmesh_orchestrator.store.lifecycle import Lifecycle, replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import FileReader
from imlmesh_orchestrator.store.rollups import used_bytes
from imlmesh_protocol import limits
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.sqlite import Database

ACTIONS = 10_000
SIZES = (1, 500)  # actions of a run
_AT_ONCE = 50


async def _runs(shell: Shell, size: int) -> None:
    plan = one_action("pure") if size == 1 else independent(size)
    digest, count = plan_digest(plan), ACTIONS // size
    for first in range(0, count, _AT_ONCE):
        some = range(first, min(first + _AT_ONCE, count))
        await asyncio.gather(*(run_plan(shell, plan, digest) for _ in some))


async def _compacted(path: Path) -> tuple[int, int]:
    """Bytes in use before and after the compaction of all."""
    store, reader = Database(path, migrations("lifecycle"), inline=True), FileReader(path)
    lifecycle = Lifecycle(store, (await reader.ask(replay)).marks)
    # all of it was copied; the next commit of a mesh that goes on would say so
    await lifecycle.rewrite(lambda database: database.execute("DELETE FROM outflow") and None)
    before = await reader.ask(used_bytes)
    marks = (await reader.ask(replay)).marks
    clock = ManualClock(marks.at_ms + limits.COMPACT_AFTER_MS + 1)
    compaction = Compaction(lifecycle, reader, clock, lambda: marks.seq)
    while await compaction.once():
        pass
    after = await reader.ask(used_bytes)
    reader.close()
    await store.close()
    return before, after


async def _growth(place: Field, size: int) -> dict[str, Any]:
    async with place.mesh(1) as shell:
        await _runs(shell, size)
    before, after = await _compacted(place.home.orchestrator / "lifecycle.db")
    return line(
        "growth",
        actions=ACTIONS,
        actions_of_a_run=size,
        bytes_per_action=before // ACTIONS,
        bytes_per_action_compacted=after // ACTIONS,
    )


async def _measure(size: int) -> dict[str, Any]:
    async with field() as place:
        return await _growth(place, size)


def run() -> list[dict[str, Any]]:
    return [asyncio.run(_measure(size)) for size in SIZES]
