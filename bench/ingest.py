"""How much telemetry an orchestrator takes, beside a bare client that decodes and batch-inserts.

The one rule: the same messages of the same nodes over real Mosquitto with mTLS, in turns. Ours verifies
the signature of each and checks names, times and rates; the bare one does not.
"""

import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gmqtt
import msgpack
from gmqtt.mqtt.constants import MQTTv311
from nacl.signing import SigningKey

from bench.field import MESH, Field, field
from bench.figures import line
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.wire import topics
from imlmesh_runtime.sqlite import connect
from imlmesh_runtime.trust import ControlKeys

NODES = 32
#: readings in a message, which are those of a node's second -> messages in a round. A node may send 50
#: a second in the long run; one that was cut off sends what it kept by the thousand
ROUNDS_OF = {1: 2_000, 10: 2_000, 50: 2_000, 100: 2_000, 1_000: 300}
_ROUNDS = 5
_BATCH = 500
_WITHIN_S = 60
_TABLE = "CREATE TABLE readings (at_ms INTEGER, node TEXT, metric TEXT, value REAL)"
_INSERT = "INSERT INTO readings VALUES (?,?,?,?)"


class Bare:
    """A client that believes everything."""

    def __init__(self, path: Path) -> None:
        self._database = connect(path, synchronous="NORMAL")
        self._database.execute(_TABLE)
        self._rows: list[tuple[int, str, str, float]] = []
        self.stored = 0

    async def listen(self, keys: ControlKeys, port: int) -> Any:
        """The connected client, subscribed to all that nodes say."""
        client = gmqtt.Client("bare")
        subscribed = asyncio.Event()
        client.on_message = self._on_message
        client.on_subscribe = lambda *_: subscribed.set()
        await client.connect("127.0.0.1", port, ssl=keys.context(), version=MQTTv311)
        for topic in topics.orchestrator_subscriptions(MESH):
            client.subscribe(topic, qos=1)
        await subscribed.wait()
        return client

    def _on_message(self, _client: Any, topic: str, payload: bytes, *_: Any) -> int:
        body = msgpack.unpackb(msgpack.unpackb(payload)[3])
        for metric, (times, values) in body["readings"].items():
            node = body["iss"]
            self._rows += [
                (at, node, metric, value) for at, value in zip(times, values, strict=True)
            ]
        if len(self._rows) >= _BATCH:
            self.write()
        return 0

    @property
    def taken(self) -> int:
        return self.stored + len(self._rows)

    def write(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        self._database.executemany(_INSERT, self._rows)
        self._database.execute("COMMIT")
        self.stored += len(self._rows)
        self._rows.clear()


class Ours:
    """The same questions about an orchestrator."""

    def __init__(self, shell: Shell) -> None:
        self._recorder = shell.intake.recorder
        self._shell = shell

    @property
    def stored(self) -> int:
        refused = self._shell.stream.refused
        if refused or self._recorder.dropped:
            raise RuntimeError(f"refused {dict(refused)}, dropped {self._recorder.dropped}")
        return self._recorder.written

    @property
    def taken(self) -> int:
        return self._recorder.written + self._recorder.waiting

    def write(self) -> None:
        self._recorder.write()


class Senders:
    """The process that speaks for all nodes, to one broker."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def round(self, side: Bare | Ours, count: int, readings: int) -> float:
        """Seconds from the first message to the last stored reading."""
        target = side.stored + count * readings
        self._say(f"{count} {readings}")
        await self._process.stdout.readline()  # type: ignore[union-attr]
        began = time.perf_counter()
        self._say("go")
        async with asyncio.timeout(_WITHIN_S):
            while side.stored < target:
                await asyncio.sleep(0.001)
                if side.taken >= target:
                    side.write()  # the last few of a round do not wait for their second
        return time.perf_counter() - began

    def _say(self, text: str) -> None:
        self._process.stdin.write(f"{text}\n".encode())  # type: ignore[union-attr]


@contextlib.asynccontextmanager
async def _senders(place: Field, shell: Shell, kind: str, port: int) -> AsyncIterator[Senders]:
    folders = [await place.node(shell, f"{kind}{number}", port) for number in range(NODES)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.measuring", *map(str, folders)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Senders(process)
    finally:
        process.terminate()
        await process.wait()


async def _measure() -> list[dict[str, Any]]:
    verify_us = _verify_us()
    found = []
    async with (
        field() as place,
        place.mesh(0) as shell,
        _senders(place, shell, "ours", place.broker.port) as to_ours,
        _senders(place, shell, "bare", place.raw_broker.port) as to_bare,
    ):
        bare, ours = Bare(place.home.root / "bare.db"), Ours(shell)
        client = await bare.listen(
            ControlKeys.load(place.home.ca, MESH), place.raw_broker.control_port
        )
        for readings, count in ROUNDS_OF.items():
            rounds = []
            for number in range(_ROUNDS + 1):
                taken = (
                    await to_ours.round(ours, count, readings),
                    await to_bare.round(bare, count, readings),
                )
                if number:  # the first one warms up
                    rounds.append(taken)
            found.append(_figures(readings, count, rounds, verify_us))
        await client.disconnect()
    return found


def _figures(
    readings: int, count: int, rounds: list[tuple[float, float]], verify_us: float
) -> dict[str, Any]:
    ours_s = statistics.median(ours for ours, _ in rounds)
    return line(
        "telemetry_ingest",
        readings=readings,
        msgs_s=round(count / ours_s),
        bare_msgs_s=round(count / statistics.median(bare for _, bare in rounds)),
        ratio=round(statistics.median(bare / ours for ours, bare in rounds), 2),
        readings_s=round(count * readings / ours_s),
        us_per_msg=round(ours_s / count * 1e6),
        verify_us=round(verify_us),
    )


def _verify_us() -> float:
    """Microseconds of one signature, verified alone."""
    key = SigningKey.generate()
    body = bytes(1_000)
    signature, public = key.sign(body).signature, key.verify_key

    def once() -> float:
        began = time.perf_counter()
        for _ in range(200):
            public.verify(body, signature)
        return (time.perf_counter() - began) / 200 * 1e6

    return statistics.median(once() for _ in range(9))


def run() -> list[dict[str, Any]]:
    return asyncio.run(_measure())
