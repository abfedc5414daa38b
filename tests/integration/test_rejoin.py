"""A fleet that loses its broker, and then its orchestrator: everybody is back soon, and nobody was judged.

The nodes are whole agents in one process, as in `python -m bench rejoin`, which does it with 500.
"""

import asyncio
import json
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("broker_program")]
ROOT = Path(__file__).resolve().parents[2]
NODES = 50
# 3 s each on a machine that has nothing else to do
BACK_S = 20.0
API_MS = 2_000.0


async def test_fifty_nodes_are_back_soon_and_none_was_called_suspect_or_lost() -> None:
    command = (sys.executable, "-m", "bench.rejoin", str(NODES))
    async with asyncio.timeout(100):
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        said, complained = await process.communicate()
    assert process.returncode == 0, complained.decode()[-2_000:]
    rows = [json.loads(line) for line in said.splitlines()]
    assert [row["after"] for row in rows] == ["broker", "orchestrator"]
    for row in rows:
        assert row["nodes"] == NODES
        assert (row["suspect"], row["lost"]) == (0, 0), row
        assert 0 < row["p50_s"] <= row["max_s"] < BACK_S, row
        assert row["api_p99_ms"] < API_MS, row
