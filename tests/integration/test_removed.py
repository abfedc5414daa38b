"""A removed node at each broker: nothing is delivered to it or from it, however it tries."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from orchestrator_mesh import ME, MESH, Mesh, action, opened_mesh, plan
from waiting import eventually

NODE = "pi-1"


class Victim:
    """The keys of a node in hostile hands: calls again as fast as it can, writes and reads on."""

    def __init__(self, home: Home, port: int) -> None:
        context = NodeKeys.load(home.node(NODE), MESH).context()
        mine = topics.node_subscriptions(MESH, NODE)
        self.link = MqttLink([("127.0.0.1", port)], NODE, context, mine, lambda: 0.0)
        self.read_s = 0.0
        self.sent = 0
        self.link.start(self)

    def write(self) -> None:
        with contextlib.suppress(LinkError):
            self.sent += 1
            topic = topics.from_node(MESH, NODE, Kind.EVENT, "log")
            self.link.publish(topic, f"{self.sent}".encode())
            self.link.flush()

    def will(self) -> Will | None:
        return Will(topics.from_node(MESH, NODE, Kind.STATUS), b"will")

    def link_up(self) -> None: ...

    def link_down(self, reason: str) -> None: ...

    def handed_over(self) -> None: ...

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self.read_s = time.monotonic()


class Ear(Victim):
    """Control, which hears what nodes say and speaks to them."""

    def __init__(self, home: Home, port: int, name: str = "ear") -> None:
        context = ControlKeys.load(home.ca, MESH).context()
        mine = topics.orchestrator_subscriptions(MESH)
        self.link = MqttLink([("127.0.0.1", port)], name, context, mine, lambda: 0.0)
        self.read_s = 0.0
        self.retained: list[str] = []
        self.link.start(self)

    def will(self) -> Will | None:
        return None

    def write(self) -> None:
        with contextlib.suppress(LinkError):
            self.link.publish(topics.to_node(MESH, NODE, Kind.COMMAND), b"hello")
            self.link.flush()

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        if f"/{NODE}/" not in topic:
            return
        if retained:
            self.retained.append(topic)
        elif payload:  # an empty one is the orchestrator's, which clears what was kept
            self.read_s = time.monotonic()


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"])
async def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with opened_mesh(tmp_path, {"IMLMESH_BROKER": request.param}) as made:
        await made.orchestrator()
        yield made


async def removed(mesh: Mesh) -> dict[str, Any]:
    body = {"admission": "revoked", "reason": "stolen"}
    answer = await mesh.http.post(f"nodes/{NODE}/admission", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_from_the_answer_on_nothing_is_delivered_in_either_direction(mesh):
    await mesh.node(NODE)
    await mesh.node("pi-2")
    await mesh.online(NODE, "pi-2")
    await mesh.kill(NODE)
    victim = Victim(mesh.home, mesh.port)
    ear = Ear(mesh.home, mesh.control_port)
    speaking = asyncio.create_task(speak(victim, ear))
    await eventually(lambda: bool(victim.read_s and ear.read_s))
    began_s = time.monotonic()
    found = await removed(mesh)
    answered_s = time.monotonic()
    assert found["broker"] == {"enforced": True, "applied": True, "session_ended": True}
    tried = victim.sent + 100
    await eventually(lambda: victim.sent > tried)
    speaking.cancel()
    assert max(victim.read_s, ear.read_s) <= answered_s
    assert answered_s - began_s < 2, "a second on a machine that has nothing else to do"
    late = Ear(mesh.home, mesh.control_port, "late")
    await eventually(lambda: late.link.connected)
    run = (await mesh.submit(plan(action("one", target_node="pi-2"))))["run"]
    assert (await mesh.ended(run))["state"] == "completed", "others work on"
    assert not late.retained, "what the broker kept comes first, and this node's is not kept"
    for each in (victim, ear, late):
        await each.link.close()


async def speak(*each: Victim) -> None:
    while True:
        for one in each:
            one.write()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("moment", ["at once", "applied"])
async def test_an_orchestrator_that_dies_while_it_removes_does_it_at_its_next_start(mesh, moment):
    await mesh.node(NODE)
    await mesh.online(NODE)
    asked = asyncio.create_task(removed(mesh))
    access = mesh.home.broker / ("applied.json" if moment == "applied" else "access.json")
    before = access.read_text()
    await eventually(lambda: access.read_text() != before)
    await mesh.kill(ME)
    with contextlib.suppress(Exception):
        await asked
    await mesh.orchestrator()
    await mesh.until("health", lambda found: found["admissions"] == {"revoked": 1})
    found = await removed(mesh)
    assert found["broker"]["enforced"]
    assert found["before"] == "revoked"
    ear = Ear(mesh.home, mesh.control_port)
    await asyncio.sleep(1.5)
    assert ear.read_s == 0, "the node still runs and calls, and nobody hears it"
    await ear.link.close()
