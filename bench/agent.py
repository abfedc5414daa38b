"""An idle node's memory, and how soon after its start it is online; how fast `--help` is."""

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.field import field, online
from bench.figures import line, resident_mb

ROUNDS = 5
#: a node with simulated pins, whose driver has a process of its own from the start
PINS = """profile = "local_worker"

[modules]
allow = ["iot"]

[pins]
factory = "mock"
allow = [17]
safe = { 17 = 0 }
"""
IDLE_S = 6
_CHILD_WITHIN_S = 20


async def _agent() -> list[dict[str, Any]]:
    ready, resident = [], []
    async with field() as place, place.mesh(0) as shell:
        for index in range(ROUNDS):
            folder = await place.node(shell, f"n{index}")
            began = time.perf_counter()
            with place.process("imlmesh_node", folder) as child:
                while not shell.is_live(f"n{index}"):  # noqa: ASYNC110 - a poll of 1 ms is the clock
                    await asyncio.sleep(0.001)
                ready.append(time.perf_counter() - began)
                await online(shell, 1)
                if index == 0:
                    await asyncio.sleep(IDLE_S)
                resident.append(resident_mb(child.pid))
        folder = await place.node(shell, "pins")
        (folder / "policy.toml").write_text(PINS, encoding="utf-8")
        with place.process("imlmesh_node", folder) as child:
            async with asyncio.timeout(_CHILD_WITHIN_S):
                while not (beside := _children(child.pid)):  # noqa: ASYNC110 - it has no other sign
                    await asyncio.sleep(0.01)
            await online(shell, 1)
            await asyncio.sleep(IDLE_S)
            pins_child = sum(resident_mb(pid) for pid in beside)
    return [
        line(
            "agent_idle",
            rss_mb=max(resident),
            ready_s=round(statistics.median(ready), 3),
            pins_child_mb=round(pins_child, 1),
        )
    ]


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(child) for child in found.split()]


def run() -> list[dict[str, Any]]:
    return asyncio.run(_agent())


def run_cli() -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).with_name("imlmesh")), "--help"]
    taken = []
    for _ in range(ROUNDS + 2):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        taken.append(time.perf_counter() - began)
    return [line("cli_help", s=round(statistics.median(taken), 3))]
