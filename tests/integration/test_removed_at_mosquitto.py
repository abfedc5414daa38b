"""A removed node at a real Mosquitto: nothing is delivered to it or from it, however it tries.

The test plays the part of whoever runs the broker: it turns access.json into rules, puts the
revocation list in place, sends SIGHUP, and says so in applied.json.
"""

import asyncio
import contextlib
import json
import os
import pwd
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imlmesh_broker.child import free_port
from imlmesh_broker.config import acl_text
from imlmesh_broker.mosquitto import find_mosquitto
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.takeover import take_over
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from orchestrator_mesh import ME, MESH, Mesh, action, plan
from waiting import eventually

pytestmark = pytest.mark.mosquitto
NODE = "pi-1"


class Mosquitto:
    """Two listeners, one CA each; `watch` applies what the orchestrator wants."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = home.broker
        self.nodes = free_port("127.0.0.1", 28_883)
        self.control = free_port("127.0.0.1", self.nodes + 1)
        self._process: asyncio.subprocess.Process | None = None
        self._applied = 0

    async def start(self) -> None:
        self._write_acl([])
        listeners = [
            ("node", self.nodes, "use_username_as_clientid true"),
            ("control", self.control, ""),
        ]
        lines = [f"user {pwd.getpwuid(os.geteuid()).pw_name}", "allow_anonymous false"]
        lines += [f"acl_file {self._folder / 'mesh.acl'}", "persistence false"]
        for role, port, more in listeners:
            lines += [
                f"listener {port} 127.0.0.1",
                f"cafile {self._home.ca / f'{role}-ca.pem'}",
                f"crlfile {self._home.ca / f'{role}-ca.crl'}",
                f"certfile {self._folder / 'broker.pem'}",
                f"keyfile {self._folder / 'broker.key'}",
                "tls_version tlsv1.3",
                "require_certificate true",
                "use_identity_as_username true",
                more,
            ]
        config = self._folder / "test.conf"
        config.write_text("\n".join([*lines, ""]))
        with (self._home.logs / "broker.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                find_mosquitto(), "-c", str(config), stdout=log, stderr=log
            )
        context = ControlKeys.load(self._home.ca, MESH).context()
        while True:
            with contextlib.suppress(LinkError):
                await take_over(("127.0.0.1", self.control), "probe", context, 1)
                return
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.wait()

    async def watch(self) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError):
                told = json.loads((self._folder / "access.json").read_text())
                if told["version"] > self._applied and self._process is not None:
                    self._write_acl(told["revoked"])
                    self._process.send_signal(signal.SIGHUP)
                    self._applied = told["version"]
                    (self._folder / "applied.json").write_text(
                        json.dumps({"version": self._applied})
                    )
            await asyncio.sleep(0.01)

    def _write_acl(self, revoked: list[str]) -> None:
        denied = "".join(f"user {node}\ntopic deny #\n\n" for node in revoked)
        path = self._folder / "mesh.acl"
        path.write_text(acl_text(MESH, ME) + "\n" + denied)
        path.chmod(0o600)


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


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[tuple[Mosquitto, Mesh]]:
    home = Home(tmp_path / "h")
    Authority.create(home, MESH, ME)
    Authority.open(home)
    broker = Mosquitto(home)
    mesh = Mesh(home, broker.control)
    async with asyncio.timeout(100):
        await broker.start()
        watching = asyncio.create_task(broker.watch())
        try:
            await mesh.orchestrator()
            mesh.port = broker.nodes
            yield broker, mesh
        finally:
            watching.cancel()
            await mesh.http.aclose()
            for name in list(mesh.processes):
                await mesh.kill(name)
            await broker.stop()


async def removed(mesh: Mesh) -> dict[str, Any]:
    body = {"admission": "revoked", "reason": "stolen"}
    answer = await mesh.http.post(f"nodes/{NODE}/admission", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_from_the_answer_on_nothing_is_delivered_in_either_direction(broker):
    mosquitto, mesh = broker
    await mesh.node(NODE)
    await mesh.node("pi-2")
    await mesh.online(NODE, "pi-2")
    await mesh.kill(NODE)
    victim = Victim(mesh.home, mosquitto.nodes)
    ear = Ear(mesh.home, mosquitto.control)
    speaking = asyncio.create_task(speak(victim, ear))
    await eventually(lambda: bool(victim.read_s and ear.read_s))
    began_s = time.monotonic()
    found = await removed(mesh)
    answered_s = time.monotonic()
    assert found["broker"] == {"enforced": True, "applied": True, "session_ended": True}
    await asyncio.sleep(2.5)  # in which it tries a hundred times
    speaking.cancel()
    assert victim.sent > 100
    assert max(victim.read_s, ear.read_s) <= answered_s
    assert answered_s - began_s < 2, "a second on a machine that has nothing else to do"
    late = Ear(mesh.home, mosquitto.control, "late")
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
async def test_an_orchestrator_that_dies_while_it_removes_does_it_at_its_next_start(broker, moment):
    mosquitto, mesh = broker
    await mesh.node(NODE)
    await mesh.online(NODE)
    asked = asyncio.create_task(removed(mesh))
    access = mesh.home.broker / ("applied.json" if moment == "applied" else "access.json")
    before = access.read_text()
    await eventually(lambda: access.read_text() != before)
    await mesh.kill(ME)
    with contextlib.suppress(Exception):
        await asked
    arguments = ("--home", str(mesh.home.root), "--broker", f"127.0.0.1:{mosquitto.control}")
    await mesh.start(ME, "imlmesh_orchestrator", *arguments)
    await mesh.until("health", lambda found: found["admissions"] == {"revoked": 1})
    found = await removed(mesh)
    assert found["broker"]["enforced"]
    assert found["before"] == "revoked"
    ear = Ear(mesh.home, mosquitto.control)
    await asyncio.sleep(1.5)
    assert ear.read_s == 0, "the node still runs and calls, and nobody hears it"
    await ear.link.close()
