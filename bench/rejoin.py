"""A whole fleet that comes back at once, over a real Mosquitto with mTLS: how soon each node is there again.

From the loss (kill -9 of the broker, or of the orchestrator, which is started again at once) to the first
heartbeat of each node that is answered afterwards: by then it has connected, asked for the time,
introduced itself, and its leases are renewed. Meanwhile the API is asked all the time.
"""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2

from bench.field import Field, field
from bench.figures import line, percentile
from imlmesh_orchestrator.core.changes import LivenessChanged
from imlmesh_orchestrator.store.codec import decode

NODES = 500
_ASK_S = 0.02
_LAST = "SELECT max(seq) FROM changes"
_SINCE = "SELECT run, at_ms, cause, kind, version, body FROM changes WHERE seq > ?"


class Fleet:
    """An orchestrator and all nodes, each side a process."""

    def __init__(self, place: Field) -> None:
        self._place = place
        self._processes = contextlib.ExitStack()
        self._control = contextlib.ExitStack()
        self._orchestrator: subprocess.Popen[bytes] | None = None
        self._crowd: subprocess.Popen[bytes] | None = None
        transport = httpx2.AsyncHTTPTransport(uds=str(place.home.api_socket))
        self._api = httpx2.AsyncClient(transport=transport, base_url="http://imlmesh/v1/")

    async def start(self, folders: list[Path]) -> None:
        """Until every node was answered."""
        self.start_orchestrator()
        root = self._place.home.root
        command = ("bench.crowd", *map(str, folders))
        crowd = self._place.started(root, *command, piped=True)
        self._crowd = self._processes.enter_context(crowd)
        await self._said()

    def start_orchestrator(self) -> None:
        self._orchestrator = self._control.enter_context(self._place.orchestrator())

    def kill_orchestrator(self) -> None:
        """kill -9, and at once another one."""
        assert self._orchestrator is not None
        self._orchestrator.kill()
        self._orchestrator.wait()
        self.start_orchestrator()

    def kill_broker(self) -> None:
        """kill -9; its keeper starts it again."""
        assert self._place.broker.pid is not None
        os.kill(self._place.broker.pid, signal.SIGKILL)

    async def close(self) -> None:
        await self._api.aclose()
        self._processes.close()
        self._control.close()

    def to_come(self) -> "asyncio.Future[dict[str, Any]]":
        """Seconds (`taken`) until each node was back after what happens from now on."""
        assert self._crowd is not None
        assert self._crowd.stdin is not None
        self._crowd.stdin.write(b"\n")
        self._crowd.stdin.flush()
        return asyncio.ensure_future(self._read())

    async def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self._said())
        return found

    async def _said(self) -> str:
        assert self._crowd is not None
        assert self._crowd.stdout is not None
        said = await asyncio.to_thread(self._crowd.stdout.readline)
        if not said:
            log = (self._place.home.root / "bench.log").read_text(encoding="utf-8")
            raise RuntimeError(f"the crowd ended: {log[-2_000:]}")
        return said.decode()

    async def asked(self) -> float | None:
        """Seconds of one question to the API; None while there is none."""
        began = time.perf_counter()
        try:
            answer = await self._api.get("nodes")
            answer.raise_for_status()
        except httpx2.TransportError:
            return None
        return time.perf_counter() - began

    def last_seq(self) -> int:
        return int(self._rows(_LAST)[0][0])

    def verdicts(self, seq: int) -> Counter[str]:
        """What nodes were held for since that change, beside online."""
        changes = [decode(*row) for row in self._rows(_SINCE, seq)]
        made = [str(each.liveness) for each in changes if type(each) is LivenessChanged]
        return Counter(word for word in made if word != "online")

    def _rows(self, query: str, *values: object) -> list[Any]:
        path = self._place.home.orchestrator / "lifecycle.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return database.execute(query, values).fetchall()


@contextlib.asynccontextmanager
async def fleet(nodes: int) -> AsyncIterator[Fleet]:
    """So many nodes, let in and online."""
    async with field() as place:
        with _in_memory(place.home.nodes):
            async with place.mesh(0) as shell:
                folders = [await place.node(shell, f"n{number}") for number in range(nodes)]
            made = Fleet(place)
            try:
                await made.start(folders)
                yield made
            finally:
                await made.close()


@contextlib.contextmanager
def _in_memory(nodes: Path) -> Iterator[None]:
    """The folders of nodes are brought to a disk file by file: hundreds of them would take minutes."""
    with tempfile.TemporaryDirectory(prefix="imlmesh-bench-", dir=_memory()) as place:
        nodes.rmdir()
        nodes.symlink_to(place)
        yield


def _memory() -> Path | None:
    """A disk in memory, where the system has one."""
    shared = Path("/dev/shm")  # noqa: S108 - no file of ours has a name there that another could know
    return shared if os.access(shared, os.W_OK) else None


async def rejoin(made: Fleet, lost: str, nodes: int) -> dict[str, Any]:
    """Lose the broker or the orchestrator, and wait until all are back."""
    seq, coming = made.last_seq(), made.to_come()
    (made.kill_broker if lost == "broker" else made.kill_orchestrator)()
    answers: list[float] = []
    while not coming.done():
        took_s = await made.asked()
        if took_s is not None:
            answers.append(took_s)
        await asyncio.sleep(_ASK_S)
    found = await coming
    taken = found["taken"]
    verdicts = made.verdicts(seq)
    return line(
        "rejoin",
        after=lost,
        nodes=nodes,
        p50_s=round(percentile(taken, 0.5), 2),
        p99_s=round(percentile(taken, 0.99), 2),
        max_s=round(max(taken), 2),
        crowd_lag_s=found["lag_s"],
        suspect=verdicts["suspect"],
        lost=verdicts["lost"],
        api_p50_ms=round(percentile(answers, 0.5) * 1_000, 1),
        api_p99_ms=round(percentile(answers, 0.99) * 1_000, 1),
    )


async def _measure(nodes: int) -> list[dict[str, Any]]:
    async with fleet(nodes) as made:
        return [await rejoin(made, lost, nodes) for lost in ("broker", "orchestrator")]


def run() -> list[dict[str, Any]]:
    return asyncio.run(_measure(NODES))


if __name__ == "__main__":
    asyncio.run(_measure(int(sys.argv[1])))
