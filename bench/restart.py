"""kill -9 of an orchestrator with a long history: how soon another one answers, and dispatches again.

The history is 10,000 actions of a run that goes on, so that all of it is replayed, and as many more of runs
that have ended as `ended` says. Measured is from the start of the process to the first effect on a node
that the killed one had not decided.
"""

import asyncio
import contextlib
import json
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any

import httpx2

from bench.field import Field, field
from bench.figures import line
from bench.mesh import independent, run_plan
from imlmesh_protocol.iml.digest import plan_digest

HISTORY = 10_000
ENDED = (0, 90_000)
ROUNDS = 5
CHAIN = 200  # effects behind the history, one after the other, of 50 ms each
_NODE = "n0"


def long_plan() -> dict[str, Any]:
    """Much that ends at once, then a chain of effects that leave a mark."""
    rows: list[dict[str, Any]] = [
        {"id": f"d{number}", "module": "fake", "action": "noop"} for number in range(HISTORY)
    ]
    before = [row["id"] for row in rows]
    for number in range(CHAIN):
        params = {"marker": "marks", "delay_ms": 50}
        row = {"id": f"c{number}", "module": "fake", "action": "act", "params": params}
        rows.append({**row, "depends_on": before})
        before = [row["id"]]
    head = {"protocol_version": "2.0", "description": "", "execution_mode": "parallel"}
    return {**head, "actions": rows}


async def _marks(file: Path, more_than: int) -> None:
    """Wait until so many effects have happened, and one more."""
    async with asyncio.timeout(60):
        while not file.exists() or file.read_bytes().count(b"\n") <= more_than:  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.002)


def _decided(place: Field) -> set[str]:
    path = place.home.orchestrator / "lifecycle.db"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store:
        return {row[0] for row in store.execute("SELECT dispatch FROM dispatches")}


async def _answers(api: httpx2.AsyncClient) -> None:
    while True:
        with contextlib.suppress(httpx2.TransportError):
            answer = await api.get("health")
            if answer.is_success:
                return
        await asyncio.sleep(0.005)


async def _restarts(place: Field, ended: int) -> dict[str, Any]:
    settings = f"[plans]\nmax_actions = {2 * HISTORY}\n"
    (place.home.root / "orchestrator.toml").write_text(settings)
    async with place.mesh(1) as shell:
        plan = independent(HISTORY)
        for _ in range(ended // HISTORY):
            await run_plan(shell, plan, plan_digest(plan))
    folder = place.home.node(_NODE)
    file = folder / "files" / "marks"
    transport = httpx2.AsyncHTTPTransport(uds=str(place.home.api_socket))
    answering: list[float] = []
    dispatching: list[float] = []
    async with httpx2.AsyncClient(transport=transport, base_url="http://imlmesh/v1/") as api:
        with place.process("imlmesh_node", folder), contextlib.ExitStack() as control:
            process = control.enter_context(place.orchestrator())
            await _answers(api)
            await _submit(api)
            await _marks(file, 0)
            for _ in range(ROUNDS):
                process.kill()
                process.wait()
                before = _decided(place)
                began_s = time.perf_counter()
                process = control.enter_context(place.orchestrator())
                await _answers(api)
                answering.append(time.perf_counter() - began_s)
                while before.issuperset(file.read_text().split()):  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
                dispatching.append(time.perf_counter() - began_s)
    return line(
        "restart",
        history=HISTORY,
        ended=ended,
        answers_s=round(statistics.median(answering), 2),
        dispatches_s=round(statistics.median(dispatching), 2),
        max_s=round(max(dispatching), 2),
    )


async def _submit(api: httpx2.AsyncClient) -> None:
    """As soon as the node is there."""
    text = json.dumps(long_plan())
    async with asyncio.timeout(30):
        while True:
            found = (await api.get("nodes")).json()["nodes"]
            if any(node["liveness"] == "online" for node in found):
                break
            await asyncio.sleep(0.05)
    answer = await api.post("runs", json={"text": text, "file": None}, timeout=60)
    answer.raise_for_status()


async def _measure() -> list[dict[str, Any]]:
    results = []
    for ended in ENDED:
        async with field() as place:
            results.append(await _restarts(place, ended))
    return results


def run() -> list[dict[str, Any]]:
    return asyncio.run(_measure())
