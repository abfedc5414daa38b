"""Round trips over both brokers with mTLS, throughput and a wide DAG over Mosquitto, durable and signed.

Rounds of the raw pair and of the mesh take turns, so that both meet the same machine.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

from bench.core import layered
from bench.field import Field, field
from bench.figures import line, ms, percentile, spread
from imlmesh_broker import Embedded
from imlmesh_orchestrator.core.changes import RunEnded
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.store.lifecycle import Numbered
from imlmesh_protocol.iml.digest import plan_digest
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import RunState
from imlmesh_runtime.sqlite import open_file, transact

ROUNDS = 5
TRIPS = 1_000
BLOCK = 25
WARM_UP_BLOCKS = 4
FLOOD = 10_000
EFFECTS = ("once", "pure")


def one_action(effect: str) -> Plan:
    action = {"id": "a", "module": "fake", "action": "noop", "effect": effect}
    return _plan([action])


def independent(actions: int) -> Plan:
    return _plan([{"id": f"a{i}", "module": "fake", "action": "noop"} for i in range(actions)])


def _plan(actions: list[dict[str, Any]]) -> Plan:
    return Plan.model_validate(
        {
            "protocol_version": "2.0",
            "description": "",
            "execution_mode": "parallel",
            "actions": actions,
        }
    )


class Stopwatch:
    """When the ends of runs were stored."""

    def __init__(self, shell: Shell) -> None:
        self.ended_s: dict[str, float] = {}
        shell.lifecycle.watch(self._committed)

    def _committed(self, numbered: Sequence[Numbered]) -> None:
        now_s = time.perf_counter()
        for _, change in numbered:
            if type(change) is RunEnded:
                self.ended_s[change.run] = now_s


async def run_plan(shell: Shell, plan: Plan, digest: str, watch: Stopwatch | None = None) -> float:
    """Seconds from handing the plan to the engine to the stored change that ends the run."""
    began = time.perf_counter()
    run = await shell.submit(plan, digest, "bench")
    state = await shell.when_ended(run)
    if state is not RunState.COMPLETED:
        raise RuntimeError(f"{run} is {state}")
    return (watch.ended_s.pop(run) if watch else time.perf_counter()) - began


async def round_trips(place: Field, broker: str) -> list[dict[str, Any]]:
    """Blocks of the raw pair and of each effect take turns of some 0.1 s, so that all of them meet
    the same machine; ratios are the median over blocks."""
    taken: dict[str, list[float]] = {effect: [] for effect in ("raw", *EFFECTS)}
    ratios: dict[str, list[float]] = {effect: [] for effect in EFFECTS}
    plans = {effect: one_action(effect) for effect in EFFECTS}
    digests = {effect: plan_digest(plan) for effect, plan in plans.items()}
    disk = open_file(place.home.root / "disk.db", ["CREATE TABLE row (id INTEGER PRIMARY KEY)"])
    commits: list[float] = []
    async with place.raw() as pair, place.mesh(1, serve=True) as shell:
        watch = Stopwatch(shell)
        for number in range(-WARM_UP_BLOCKS, TRIPS // BLOCK):
            found = {"raw": await pair.round_trips(BLOCK)}
            for effect, plan in plans.items():
                found[effect] = [
                    await run_plan(shell, plan, digests[effect], watch) for _ in range(BLOCK)
                ]
            if number >= 0:
                commits += [_commit(disk) for _ in range(BLOCK)]
                for effect, seconds in found.items():
                    taken[effect] += seconds
                floor = statistics.median(found["raw"])
                for effect in EFFECTS:
                    ratios[effect].append(statistics.median(found[effect]) / floor)
        http_ms = await _http_trip(place, shell)
    disk.close()
    return [
        line(
            "round_trip",
            broker=broker,
            effect=effect,
            **spread(taken[effect]),
            raw_p50_ms=ms(percentile(taken["raw"], 0.5)),
            raw_p99_ms=ms(percentile(taken["raw"], 0.99)),
            p99_ratio=round(percentile(taken[effect], 0.99) / percentile(taken["raw"], 0.99), 2),
            commit_p50_ms=ms(percentile(commits, 0.5)),
            ratio=round(statistics.median(ratios[effect]), 2),
            http_p50_ms=round(http_ms, 3),
        )
        for effect in EFFECTS
    ]


def _commit(disk: Any) -> float:
    """Seconds of one durable commit of one row, nothing else."""
    began = time.perf_counter()
    transact(disk, lambda database: database.execute("INSERT INTO row DEFAULT VALUES"))
    return time.perf_counter() - began


async def _http_trip(place: Field, shell: Shell) -> float:
    """Milliseconds (p50 of 100) from POST /v1/runs of a pure action to its end."""
    import httpx2

    text = one_action("pure").model_dump_json(exclude_unset=True)
    transport = httpx2.AsyncHTTPTransport(uds=str(place.home.api_socket))
    taken = []
    async with httpx2.AsyncClient(transport=transport, base_url="http://imlmesh") as client:
        for _ in range(100):
            began = time.perf_counter()
            answer = await client.post("/v1/runs", json={"text": text, "file": None})
            await shell.when_ended(answer.raise_for_status().json()["run"])
            taken.append((time.perf_counter() - began) * 1_000)
    return percentile(taken, 0.5)


async def throughput(place: Field, nodes: Sequence[int] = (1, 2, 4)) -> list[dict[str, Any]]:
    """The raw pair and the mesh take turns; ratios are the median over rounds."""
    plan = independent(FLOOD)
    digest = plan_digest(plan)
    results = []
    for count in nodes:
        raw, rates = [], []
        async with place.raw() as pair, place.mesh(count) as shell:
            for number in range(-1, ROUNDS):
                raw_rate = await pair.rate(FLOOD)
                rate = FLOOD / await run_plan(shell, plan, digest)
                await _caught_up(shell)
                if number >= 0:
                    raw.append(raw_rate)
                    rates.append(rate)
        results.append(
            line(
                "throughput",
                nodes=count,
                actions_s=round(statistics.median(rates)),
                raw_pairs_s=round(statistics.median(raw)),
                ratio=_ratio(rates, raw),
            )
        )
    return results


def _ratio(ours: Sequence[float], raw: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, raw, strict=True)), 2)


async def _caught_up(shell: Shell) -> None:
    """Wait until the copies of earlier rounds are written: they are no part of this one."""
    async with asyncio.timeout(60):
        while shell.lifecycle.outflow(shell.clock.now_ms())[0]:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.05)


async def dag(place: Field) -> list[dict[str, Any]]:
    plan = layered(1_000)
    digest = plan_digest(plan)
    raw, taken = [], []
    async with place.raw() as pair, place.mesh(2) as shell:
        for number in range(-2, 3 * ROUNDS):
            raw_ms = await pair.waves(10, 100)
            took_ms = await run_plan(shell, plan, digest) * 1_000
            if number >= 0:
                raw.append(raw_ms)
                taken.append(took_ms)
    return [
        line(
            "dag_10x100",
            ms=round(statistics.median(taken), 1),
            raw_ms=round(statistics.median(raw), 1),
            ratio=_ratio(taken, raw),
        )
    ]


async def run_all() -> list[dict[str, Any]]:
    async with field(Embedded) as place:
        embedded = await round_trips(place, "embedded")
    async with field() as place:
        ours = [*await round_trips(place, "mosquitto"), *await throughput(place), *await dag(place)]
    return [*embedded, *ours]


def run() -> list[dict[str, Any]]:
    return asyncio.run(run_all())
