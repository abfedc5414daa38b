"""Packets that the broker does not take: its clients lose their session, and who watches the mesh sees it."""

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.trust import NodeKeys
from orchestrator_mesh import MESH, WITHIN_S, Mesh, opened_mesh

TIMES = 30


async def send_too_much(mesh: Mesh, name: str) -> None:
    """As the node of that name; returns when the broker has ended its session."""
    context = NodeKeys.load(mesh.home.node(name), MESH).context()
    visitor = await Visitor.enter(Door("127.0.0.1", mesh.port, context), name)
    topic = topics.from_node(MESH, name, Kind.COMPLETE)
    with contextlib.suppress(LinkError):
        visitor.publish(Message(topic, bytes(limits.BROKER_PACKET_BYTES), 1, False))
        while True:
            await visitor.packet()
    assert visitor.ended
    visitor.vanish()


@pytest.mark.parametrize(
    "kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]
)
async def test_it_is_counted_and_seen_by_who_watches(tmp_path: Path, kind: str) -> None:
    async with opened_mesh(tmp_path, {**os.environ, "IMLMESH_BROKER": kind}) as mesh:
        await mesh.orchestrator()
        await mesh.let_in("pi")
        opened = asyncio.Event()
        told: list[str] = []

        async def watch() -> None:
            async for event, _, data in mesh.events(opened, kind="refusal"):
                if event == "refusal":
                    assert (data["code"], data["topic"]) == (
                        "message.too_large",
                        "broker/oversize.json",
                    )
                    assert "node" not in data  # nobody is blamed on the broker's word
                    told.append(data["message"])
                    if f" {TIMES} so far" in data["message"]:
                        return

        watching = asyncio.create_task(watch())
        try:
            async with asyncio.timeout(WITHIN_S):
                await opened.wait()
                for _ in range(TIMES):
                    await send_too_much(mesh, "pi")
                await watching
        finally:
            watching.cancel()
        assert told[-1] == f"pi: too large for the broker, {TIMES} so far"
        # a line a second, and not one for each
        assert len(told) < TIMES
        health = await mesh.get("health")
        assert health["messages"]["refused"] == {"message.too_large": TIMES}
