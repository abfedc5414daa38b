"""How soon a node that was cut off is there again, with a full spool and a journal of results."""

import asyncio
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any

from bench.field import field, online
from bench.figures import line
from imlmesh_node.core.changes import Change, DispatchTaken, ResultRecord, ResultRecorded
from imlmesh_node.opening import open_journal
from imlmesh_node.spool import Spool
from imlmesh_node.stock import Sort
from imlmesh_protocol.states import Effect
from imlmesh_runtime.clock import MeshClock, boot_ms

RECORDS, ROW, RESULTS, ROUNDS = 100_000, 50, 256, 3
_BACK_MS = 1_800_000


async def fill(folder: Path, node: str) -> None:
    """Leave what a node leaves that was cut off for half an hour."""
    kept = Spool.at(folder / "spool.db", MeshClock(), lambda: None, lambda code, text, count: None)
    since_ms = boot_ms() - _BACK_MS
    for start in range(0, RECORDS, ROW):
        numbers = range(start, start + ROW)
        rows = [(since_ms + 10 * n, "fake", "fake.level", "%", float(n)) for n in numbers]
        kept.keep(Sort.READINGS, rows)
    await kept.close()
    journal, _ = await open_journal(folder / "journal.db", 1)
    changes: list[Change] = []
    for number in range(RESULTS):
        id, digest = f"r-1-abcd/a{number}/{node}/1", b"h" * 32
        changes.append(DispatchTaken(id, digest, Effect.ONCE, 1))
        result = {"value": "x" * 200}
        changes.append(ResultRecorded(ResultRecord(id, digest, "completed", result, None, 1)))
    stored: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    journal.commit(changes, stored.set_result)
    await stored
    await journal.close()


async def _boot() -> list[dict[str, Any]]:
    taken: dict[str, list[float]] = {"ready_s": [], "draining_s": [], "drained_s": []}
    async with field() as place, place.mesh(0) as shell:
        for index in range(ROUNDS):
            name = f"n{index}"
            folder = await place.node(shell, name)
            await fill(folder, name)
            began = time.perf_counter()
            with place.process("imlmesh_node", folder):
                while not shell.is_live(name):  # noqa: ASYNC110 - a poll of 1 ms is the clock
                    await asyncio.sleep(0.001)
                taken["ready_s"].append(time.perf_counter() - began)
                await online(shell, 1)
                for what, left in (("draining_s", RECORDS - 1), ("drained_s", 0)):
                    while _records(folder) > left:  # noqa: ASYNC110 - another process sets no event
                        await asyncio.sleep(0.02)
                    taken[what].append(time.perf_counter() - began)
    medians = {name: round(statistics.median(values), 2) for name, values in taken.items()}
    return [line("spool_boot", records=RECORDS, results=RESULTS, **medians)]


def _records(folder: Path) -> int:
    database = sqlite3.connect(f"file:{folder / 'spool.db'}?mode=ro", uri=True)
    try:
        return int(database.execute("SELECT total(count) FROM records").fetchone()[0])
    finally:
        database.close()


def run() -> list[dict[str, Any]]:
    return asyncio.run(_boot())
