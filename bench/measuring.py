"""Nodes that measure: `python -m bench.measuring FOLDER ...` speaks for all of these nodes.

A line `COUNT READINGS` on stdin seals so many messages of so many readings, answers `ready`, and
sends them when the next line comes.
"""

import asyncio
import sys
from pathlib import Path
from typing import NoReturn

import gmqtt
from gmqtt.mqtt.constants import MQTTv311

from imlmesh_node.config import load_config
from imlmesh_node.outbox import Letter
from imlmesh_node.readings import Readings
from imlmesh_protocol.limits import MESSAGE_EXPIRY_MS
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import Sealer
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.clock import MeshClock, boot_ms
from imlmesh_runtime.trust import NodeKeys

METRICS = 20
_FLUSHED = 64  # published between two turns of the loop


class Measuring:
    """One node that sends readings and nothing else."""

    def __init__(self, folder: Path) -> None:
        config = load_config(folder)
        keys = NodeKeys.load(folder, config.mesh)
        self._orchestrator = config.orchestrator
        self._topic = topics.from_node(config.mesh, config.id, Kind.EVENT, "telemetry/bench")
        signer = keys.signer
        self._sealer = Sealer(signer.sign, signer.key_id, config.mesh, config.id, Way.FROM)
        self._sealer.new_session(boot_ms(), 1)
        self._clock = MeshClock()
        self._client = gmqtt.Client(config.id)
        self._address = config.brokers[0]
        self._context = keys.context()
        self._letters: list[Letter] = []
        self._readings = Readings(self._letters.append, lambda: True, self._clock, _lost)

    async def connect(self) -> None:
        address, port = self._address
        await self._client.connect(address, port, ssl=self._context, version=MQTTv311)

    def seal(self, readings: int) -> bytes:
        """What a node sends that measured so much within a second: twenty metrics, or fewer."""
        for number in range(readings):
            self._readings.add("bench", f"m{number % METRICS}", 20.0 + number % 977 / 7, "°C", 0)
        self._readings.send_all()
        (letter,) = self._letters
        self._letters.clear()
        now_ms = self._clock.now_ms()
        return self._sealer.seal(
            Kind.EVENT, self._orchestrator, letter.fields, now_ms, MESSAGE_EXPIRY_MS
        )

    def publish(self, payload: bytes) -> None:
        self._client.publish(self._topic, payload, qos=0)


def _lost(code: str, text: str, count: int) -> NoReturn:
    raise RuntimeError(f"{count} readings: {text} [{code}]")


async def main(folders: list[str]) -> None:
    nodes = [Measuring(Path(folder)) for folder in folders]
    for node in nodes:
        await node.connect()
    while line := await asyncio.to_thread(sys.stdin.readline):
        count, readings = map(int, line.split())
        sealed = [nodes[number % len(nodes)].seal(readings) for number in range(count)]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for number, payload in enumerate(sealed):
            nodes[number % len(nodes)].publish(payload)
            if number % _FLUSHED == 0:
                await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
