"""The embedded broker beside Mosquitto: pairs a second, memory of idle clients, a storm of them, also
beside a crowd that connects and says nothing.

The one rule: both brokers run at once with the same client, and take turns.
"""

import asyncio
import contextlib
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import gmqtt
import psutil
from gmqtt.mqtt.constants import MQTTv311

from bench.field import make_folder
from bench.figures import line
from bench.raw import RawPair
from imlmesh_broker import Broker, BrokerPlace, Embedded, Mosquitto
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys

MESH, CONTROL, ECHO = "bench", "orchestrator", "echo"
_PAIRS = 4_000
_TURNS = 9
_CLIENTS = 200
_STORMS = 5


def run() -> list[dict[str, Any]]:
    """One figure line."""
    figures = asyncio.run(_measure())
    line("broker", **figures)
    return [{"bench": "broker", **figures}]


async def _measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="imlmesh-bench-") as root:
        home = Home(Path(root))
        authority = Authority.create(home, MESH, CONTROL)
        async with contextlib.AsyncExitStack() as stack:
            brokers = [
                await stack.enter_async_context(_running(home, kind))
                for kind in (Embedded, Mosquitto)
            ]
            ours, theirs = [
                await stack.enter_async_context(_pair(home, authority, broker))
                for broker in brokers
            ]
            rates = [(await ours.rate(_PAIRS), await theirs.rate(_PAIRS)) for _ in range(_TURNS)]
        async with (
            _running(home, Embedded) as ours_alone,
            _running(home, Mosquitto) as theirs_alone,
        ):
            contexts = _contexts(home, authority)
            storms = [
                (*await _storm(contexts, ours_alone), (await _storm(contexts, theirs_alone))[0])
                for _ in range(_STORMS)
            ]
            crowded = []
            for _ in range(_STORMS):
                with _crowd(ours_alone.port):
                    crowded.append((await _storm(contexts, ours_alone))[0])
    return {
        "pairs_s": round(statistics.median(ours for ours, _ in rates)),
        "mosquitto_pairs_s": round(statistics.median(theirs for _, theirs in rates)),
        "ratio": round(statistics.median(ours / theirs for ours, theirs in rates), 2),
        "idle_200_mb": round(max(memory_mb for _, memory_mb, _ in storms), 1),
        "storm_200_s": round(statistics.median(seconds for seconds, _, _ in storms), 3),
        "crowded_storm_200_s": round(statistics.median(crowded), 3),
        "mosquitto_storm_200_s": round(statistics.median(seconds for *_, seconds in storms), 3),
    }


@contextlib.asynccontextmanager
async def _running(home: Home, kind: type[Broker]) -> AsyncIterator[Broker]:
    keys = ControlKeys.load(home.ca, MESH)
    place = BrokerPlace(home.broker, home.ca, home.logs / f"{kind.__name__}.log")
    broker = kind(MESH, CONTROL, place, keys.context)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


@contextlib.asynccontextmanager
async def _pair(home: Home, authority: Authority, broker: Broker) -> AsyncIterator[RawPair]:
    """gmqtt as control, and gmqtt in a process of its own that sends everything back."""
    echo = f"{ECHO}-{broker.port}"
    folder = home.node(echo)
    make_folder(authority, folder, broker.port)
    far = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.raw", str(folder)), stdin=subprocess.PIPE
    )
    client = gmqtt.Client(CONTROL)
    try:
        context = ControlKeys.load(home.ca, MESH).context()
        await client.connect("127.0.0.1", broker.control_port, ssl=context, version=MQTTv311)
        pair = RawPair(client, MESH, echo)
        client.subscribe(topics.from_node(MESH, echo, Kind.COMPLETE), qos=1)
        await pair.wait_for_echo()
        yield pair
    finally:
        await client.disconnect()
        far.terminate()
        await far.wait()


def _contexts(home: Home, authority: Authority) -> dict[str, ssl.SSLContext]:
    """Of so many new nodes, by their ids."""
    found = {}
    for name in (f"n{number}" for number in range(_CLIENTS)):
        make_folder(authority, home.node(name), 8883)
        found[name] = NodeKeys.load(home.node(name), MESH).context()
    return found


@contextlib.contextmanager
def _crowd(port: int) -> Iterator[None]:
    """As many as one address may hold open without a word, and as many again that are turned away."""
    with contextlib.ExitStack() as stack:
        for _ in range(2 * limits.BROKER_WAITING_OF_ADDRESS):
            one = socket.create_connection(("127.0.0.1", port), 10, ("127.0.0.2", 0))
            stack.enter_context(one)
        yield


async def _storm(contexts: dict[str, ssl.SSLContext], broker: Broker) -> tuple[float, float]:
    """(seconds until all are connected and subscribed, MB that the broker then has resident)."""

    async def come(name: str, context: ssl.SSLContext) -> Visitor:
        visitor = await Visitor.enter(Door("127.0.0.1", broker.port, context), name)
        await visitor.subscribe(*topics.node_subscriptions(MESH, name))
        return visitor

    began = time.perf_counter()
    visitors = await asyncio.gather(*(come(name, context) for name, context in contexts.items()))
    seconds = time.perf_counter() - began
    memory_mb = psutil.Process(broker.pid).memory_info().rss / 1e6
    for visitor in visitors:
        visitor.leave()
        with contextlib.suppress(LinkError):
            await visitor.packet()
    return seconds, memory_mb
