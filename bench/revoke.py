"""From the command to no delivery in either direction, at each broker as `up` runs it.

The one rule: it is measured where messages arrive. A client with a node's certificate writes and reads
every few milliseconds and comes back whenever it is thrown out; the time is that of the last message
that reached it or control after the command was given.
"""

import asyncio
import contextlib
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.field import MESH, POLICY
from bench.figures import line, percentile
from imlmesh_broker import Broker, BrokerPlace, Embedded, Mosquitto
from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_node.joining import NewKeys, Place, write_folder
from imlmesh_orchestrator.answering import Newcomer
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys

CONTROL = "orchestrator"
_COUNTS: dict[type[Broker], int] = {Mosquitto: 100, Embedded: 100}
_TALK_S = 0.004
_AFTER_S = 0.3  # listened on once it is told that it holds


def run() -> list[dict[str, Any]]:
    """A figure line for each broker."""
    # what is refused of the victims would be written line by line
    logging.disable(logging.WARNING)
    rows = []
    for kind, count in _COUNTS.items():
        took_s = asyncio.run(_measure(kind, count))
        figures = {
            "broker": kind.program,
            "removals": count,
            "p50_s": round(percentile(took_s, 0.5), 3),
            "p99_s": round(percentile(took_s, 0.99), 3),
            "worst_s": round(max(took_s), 3),
        }
        rows.append(line("revoke", **figures))
    logging.disable(logging.NOTSET)
    return rows


async def _measure(kind: type[Broker], count: int) -> list[float]:
    with tempfile.TemporaryDirectory(prefix="imlmesh-bench-") as root:
        home = Home(Path(root))
        authority = Authority.create(home, MESH, CONTROL)
        async with _mesh(home, kind) as (broker, orchestrator):
            return [
                await _remove(authority, home, broker, orchestrator, f"victim-{number}")
                for number in range(count)
            ]


@contextlib.asynccontextmanager
async def _mesh(
    home: Home, kind: type[Broker]
) -> AsyncIterator[tuple[Broker, RunningOrchestrator]]:
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = kind(MESH, CONTROL, place, ControlKeys.load(home.ca, MESH).context)
    await broker.start()
    orchestrator = RunningOrchestrator(load_setup(home, f"127.0.0.1:{broker.control_port}"))
    try:
        await orchestrator.start(serve=False)
        yield broker, orchestrator
    finally:
        await orchestrator.close()
        await broker.stop()


async def _remove(
    authority: Authority, home: Home, broker: Broker, orchestrator: RunningOrchestrator, name: str
) -> float:
    """Let a node in, let it talk, remove it: seconds to the last delivery."""
    shell, access = orchestrator.shell, orchestrator.access
    assert shell is not None
    assert access is not None
    keys, folder = NewKeys.kept(home.node(name)), home.node(name)
    issued = authority.certify(keys.request, name)
    papers = {"node.pem": issued.pem, **authority.papers()}
    write_folder(folder, Place(MESH, name, CONTROL, ()), keys, papers, POLICY)
    await shell.enrol(Newcomer(name, name, keys.identity, "readonly"), issued, "bench")
    control = Door("127.0.0.1", broker.control_port, ControlKeys.load(home.ca, MESH).context())
    victim = _Talker(
        Door("127.0.0.1", broker.port, NodeKeys.load(folder, MESH).context()),
        name,
        topics.from_node(MESH, name, Kind.EVENT, "log"),
        topics.to_node(MESH, name, Kind.COMMAND),
    )
    ear = _Talker(control, f"ear-{name}", victim.hears, victim.says)
    async with victim.going(), ear.going():
        while not (victim.heard_s and ear.heard_s):  # noqa: ASYNC110 - both hear in a while
            await asyncio.sleep(_TALK_S)
        began_s = time.perf_counter()
        await shell.set_admission(name, Admission.REVOKED, "bench", "bench", None)
        enforced = await access.enforced(name)
        await asyncio.sleep(_AFTER_S)
    assert enforced.holds, name
    return max(victim.heard_s, ear.heard_s) - began_s


class _Talker:
    """Says something on `says` all the time, hears what comes on `hears`, and always comes back."""

    def __init__(self, door: Door, client_id: str, says: str, hears: str) -> None:
        self.says, self.hears = says, hears
        self.heard_s = 0.0
        self._door = door
        self._client_id = client_id

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[None]:
        coming = asyncio.create_task(self._come())
        try:
            yield
        finally:
            coming.cancel()
            await asyncio.wait([coming])

    async def _come(self) -> None:
        while True:
            try:
                visitor = await Visitor.enter(self._door, self._client_id)
            except LinkError:
                await asyncio.sleep(_TALK_S)
                continue
            talking = asyncio.create_task(self._talk(visitor))
            try:
                await visitor.subscribe(self.hears)
                while True:
                    await visitor.hear()
                    self.heard_s = time.perf_counter()
            except LinkError:
                continue
            finally:
                talking.cancel()
                visitor.vanish()

    async def _talk(self, visitor: Visitor) -> None:
        while True:
            visitor.publish(Message(self.says, b"talk", 0, False))
            await asyncio.sleep(_TALK_S)
