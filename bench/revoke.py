"""How long a removed node still gets something through, in either direction, at a real Mosquitto.

From the request to remove it to the last message of its that control got, and the last that it got
itself, while both sides send without a pause. The node is a bare client with the node's certificate,
since a proper one would stop by itself.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.field import MESH, Field
from bench.field import field as a_field
from bench.figures import line, percentile
from imlmesh.client import Client, path_of
from imlmesh.mesh import let_in
from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_node.joining import Place
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.trust import NodeKeys

NODES = 100
_EVERY_S = 0.002
_LONGEST_S = 60  # for one of them; it takes less than a second
_QUIET_S = 0.5  # without a message in either direction: it is over


@dataclass
class Traffic:
    """When something last came through, by the clock of this process; `over` when nobody asks any more."""

    over: bool = False
    last_s: dict[str, float] = field(default_factory=dict)

    def came(self, way: str) -> None:
        self.last_s[way] = time.perf_counter()


async def _measure() -> list[dict[str, Any]]:
    taken, told = [], []
    async with a_field() as place, place.mesh(0, serve=True) as shell:
        with Client.connect(place.home.root) as client:
            for number in range(NODES):
                name = f"victim{number}"
                async with asyncio.timeout(_LONGEST_S):
                    cut_s, answered_s = await _removed(place, shell, client, name)
                taken.append(cut_s)
                told.append(answered_s)
    return [
        line(
            "revoke",
            nodes=NODES,
            p50_s=round(statistics.median(taken), 3),
            p99_s=round(percentile(taken, 0.99), 3),
            max_s=round(max(taken), 3),
            command_p50_s=round(statistics.median(told), 3),
            command_p99_s=round(percentile(told, 0.99), 3),
        )
    ]


async def _removed(place: Field, shell: Shell, client: Client, name: str) -> tuple[float, float]:
    """Seconds from the request to the last delivery, and to its answer."""
    folder = await asyncio.to_thread(_folder, place, client, name)
    traffic = Traffic()
    async with _talking(place, shell, folder, traffic):
        while len(traffic.last_s) < 2:  # noqa: ASYNC110 - a poll of 2 ms is the clock
            await asyncio.sleep(_EVERY_S)
        began_s = time.perf_counter()
        request = {"admission": "revoked", "reason": "bench"}
        path = path_of("nodes", name, "admission")
        answer = await asyncio.to_thread(client.post, path, request)
        answered_s = time.perf_counter() - began_s
        if not answer["broker"]["enforced"]:
            raise RuntimeError(f"not enforced: {answer['broker']}")
        while time.perf_counter() - max(traffic.last_s.values()) < _QUIET_S:  # noqa: ASYNC110
            await asyncio.sleep(_EVERY_S)
    return max(0.0, max(traffic.last_s.values()) - began_s), answered_s


def _folder(place: Field, client: Client, name: str) -> Path:
    folder = place.home.node(name)
    brokers = (f"127.0.0.1:{place.broker.port}",)
    let_in(client, folder, Place(MESH, name, "orchestrator", brokers), "readonly", None)
    return folder


@contextlib.asynccontextmanager
async def _talking(
    place: Field, shell: Shell, folder: Path, traffic: Traffic
) -> AsyncIterator[None]:
    """The node speaks and is spoken to, and comes again whenever its connection ends."""
    name = folder.name
    door = Door("127.0.0.1", place.broker.port, NodeKeys.load(folder, MESH).context())
    take = shell.message

    def message(topic: str, payload: bytes, retained: bool) -> None:
        if topic == topics.from_node(MESH, name, Kind.ACCEPT):
            traffic.came("from")
        else:
            take(topic, payload, retained)

    shell.message = message  # type: ignore[method-assign]
    # OpenSSL's errors belong to a thread, and Python 3.11 may take those of one connection for
    # another's: the node, whose handshakes fail again and again, has a thread of its own
    node = asyncio.to_thread(lambda: asyncio.run(_node(door, name, traffic)))
    going = asyncio.gather(node, _control(shell, name, traffic))
    try:
        yield
    finally:
        shell.message = take  # type: ignore[method-assign]
        traffic.over = True
        await going


async def _control(shell: Shell, name: str, traffic: Traffic) -> None:
    topic = topics.to_node(MESH, name, Kind.ACK)
    while not traffic.over:
        shell.link.publish(topic, b"x")
        await asyncio.sleep(_EVERY_S)


async def _node(door: Door, name: str, traffic: Traffic) -> None:
    own = Message(topics.from_node(MESH, name, Kind.ACCEPT), b"x", 1, False)
    while not traffic.over:
        with contextlib.suppress(LinkError):
            visitor = await Visitor.enter(door, name)
            await visitor.subscribe(*topics.node_subscriptions(MESH, name))
            hearing = asyncio.ensure_future(_hear(visitor, lambda: traffic.came("to")))
            try:
                while not hearing.done() and not traffic.over:
                    visitor.publish(own)
                    await asyncio.sleep(_EVERY_S)
            finally:
                hearing.cancel()
                visitor.vanish()
        await asyncio.sleep(_EVERY_S)


async def _hear(visitor: Visitor, came: Callable[[], None]) -> None:
    with contextlib.suppress(LinkError):
        while True:
            if (await visitor.hear()).topic.endswith(f"/{Kind.ACK}"):
                came()


def run() -> list[dict[str, Any]]:
    """The line of `revoke`."""
    return asyncio.run(_measure())
