"""The floor: the same client library on the same broker, bytes there and back and nothing else.

`python -m bench.raw FOLDER` is the far side: it sends every message straight back.
"""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import gmqtt
from gmqtt.mqtt.constants import MQTTv311

from imlmesh_node.config import load_config
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.trust import ControlKeys, NodeKeys

PAYLOAD_BYTES = 200
IN_FLIGHT = 256


class RawPair:
    """The near side, with the identity of the orchestrator; `echo` names the far side."""

    def __init__(self, client: Any, mesh: str, echo: str) -> None:
        self._client = client
        self._topic = topics.to_node(mesh, echo, Kind.DELEGATE)
        self._back = asyncio.Event()
        self._missing = 0
        self._unsent = 0
        client.on_message = self._on_message

    @classmethod
    async def connect(cls, keys: ControlKeys, port: int, mesh: str, echo: str) -> "RawPair":
        client = gmqtt.Client("raw")
        await client.connect("127.0.0.1", port, ssl=keys.context(), version=MQTTv311)
        pair = cls(client, mesh, echo)
        client.subscribe(topics.from_node(mesh, echo, Kind.COMPLETE), qos=1)
        await pair.wait_for_echo()
        return pair

    async def wait_for_echo(self) -> None:
        """Both sides are subscribed when a message comes back."""
        while True:
            self._missing = 1
            self._back.clear()
            self._publish()
            try:
                async with asyncio.timeout(0.2):
                    await self._back.wait()
                return
            except TimeoutError:
                continue

    async def round_trips(self, count: int) -> list[float]:
        """Seconds of `count` pairs, one at a time."""
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            await self._pairs(1, 1)
            taken.append(time.perf_counter() - began)
        return taken

    async def rate(self, count: int) -> float:
        """Pairs a second with many under way."""
        began = time.perf_counter()
        await self._pairs(count, IN_FLIGHT)
        return count / (time.perf_counter() - began)

    async def waves(self, waves: int, width: int) -> float:
        """Milliseconds of `waves` times `width` pairs, each wave after the last."""
        began = time.perf_counter()
        for _ in range(waves):
            await self._pairs(width, width)
        return (time.perf_counter() - began) * 1_000

    async def close(self) -> None:
        await self._client.disconnect()

    async def _pairs(self, count: int, in_flight: int) -> None:
        self._missing = count
        self._unsent = count - min(count, in_flight)
        self._back.clear()
        for _ in range(min(count, in_flight)):
            self._publish()
        await self._back.wait()

    def _publish(self) -> None:
        self._client.publish(self._topic, b"x" * PAYLOAD_BYTES, qos=1)

    def _on_message(self, *_: Any) -> int:
        self._missing -= 1
        if self._unsent:
            self._unsent -= 1
            self._publish()
        elif not self._missing:
            self._back.set()
        return 0


async def echo(folder: Path) -> None:
    """Send everything back until the parent's pipe ends."""
    config = load_config(folder)
    keys = NodeKeys.load(folder, config.mesh)
    address, port = config.brokers[0]
    client = gmqtt.Client(config.id)
    back = topics.from_node(config.mesh, config.id, Kind.COMPLETE)

    def on_message(_client: Any, _topic: str, payload: bytes, *_: Any) -> int:
        client.publish(back, payload, qos=1)
        return 0

    client.on_message = on_message
    await client.connect(address, port, ssl=keys.context(), version=MQTTv311)
    client.subscribe(topics.to_node(config.mesh, config.id, Kind.DELEGATE), qos=1)
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(echo(Path(sys.argv[1])))
