"""Telemetry through a real broker, real nodes and an orchestrator process, asked through its API."""

import asyncio
import csv
import io
import json
import math
from typing import Any

import cli_records
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import Sealer
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.clock import MeshClock, boot_ms
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.trust import NodeKeys
from orchestrator_mesh import ME, MESH, Mesh, action, plan


def counted(metric: str, count: int) -> Any:
    """Whether the answer has so many readings of the metric."""
    return lambda found: any(
        series["metric"] == metric and series["count"] >= count for series in found["series"]
    )


async def measure(mesh: Mesh, readings: int, node: str = "pi-1") -> None:
    """A run on `node` whose driver measures."""
    params = {"readings": readings}
    run = await mesh.submit(plan(action("m", "act", params=params, target_node=node)))
    assert (await mesh.ended(run["run"]))["state"] == "completed"


async def test_what_a_driver_measures_can_be_asked_for_and_exported(mesh: Mesh) -> None:
    await mesh.begin("pi-1")
    await measure(mesh, 3)
    found = await mesh.until("telemetry?metric=fake.*", counted("fake.level", 3))
    (level,) = found["series"]
    assert (found["schema"], found["tier"]) == ("imlmesh.telemetry-list/1", "raw")
    assert level.keys() == cli_records.series().keys(), "the command line is tested with the same"
    assert (await mesh.get("health")).keys() == cli_records.health().keys()
    assert (level["node"], level["unit"], level["last"]) == ("pi-1", "%", 2.0)
    assert (level["min"], level["mean"], level["max"]) == (0.0, 1.0, 2.0)
    assert level["parts"][:-1] == [None] * 23, "only the last minutes are known"
    health = await mesh.until("telemetry?node=pi-1", counted("health.cpu_percent", 2))
    assert {"health.memory_percent", "health.disk_percent", "health.load"} <= {
        series["metric"] for series in health["series"]
    }
    answer = await mesh.http.get("telemetry/export", params={"metric": "fake.level"})
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["node"], row["unit"], row["value"]) for row in rows] == [
        ("pi-1", "%", f"{n}.0") for n in range(3)
    ]
    assert all(row["time"].endswith("Z") for row in rows)
    answer = await mesh.http.get("telemetry/export?format=jsonl&metric=fake.level")
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["value"] for line in lines] == [0.0, 1.0, 2.0]
    assert (await mesh.get("telemetry?tier=hour"))["series"] == []
    nodes = (await mesh.get("nodes"))["nodes"]
    assert nodes[0]["beats"][0] is None, "nobody listened half an hour ago"
    assert nodes[0]["beats"][-1] > 0


async def test_a_wrong_question_is_told_what_is_wrong(mesh: Mesh) -> None:
    await mesh.orchestrator()
    await mesh.until("health", lambda found: True)
    wrong = {
        "node=nobody": (404, "node.not_found"),
        "tier=day": (422, "usage"),
        "since_ms=x": (422, "usage"),
        "since_ms=5&until_ms=5": (422, "usage"),
        "metric=A'; DROP": (422, "usage"),
        "metric=" + "a" * 200: (422, "usage"),
        "format=xml": (422, "usage"),
    }
    for query, told in wrong.items():
        answer = await mesh.http.get(f"telemetry/export?{query}")
        assert (answer.status_code, answer.json()["code"]) == told, query
    # before the first beat there is no file, and nothing to tell
    assert (await mesh.get("telemetry"))["series"] == []
    assert (await mesh.http.get("telemetry/export?format=jsonl")).text == ""
    assert not (mesh.home.orchestrator / "output.db").exists()


async def test_kill_and_start_again_goes_on_with_the_same_series(mesh: Mesh) -> None:
    await mesh.begin("pi-1")
    await measure(mesh, 4)
    await mesh.until("telemetry?metric=fake.level", counted("fake.level", 4))
    await mesh.kill(ME)
    await mesh.orchestrator()
    await mesh.online("pi-1")
    await measure(mesh, 2)
    found = await mesh.until("telemetry?metric=fake.level", counted("fake.level", 6))
    assert len(found["series"]) == 1
    assert (await mesh.get("health"))["telemetry"]["dropped"] == 0


class Impostor:
    """Holds the keys of a node and says whatever it wants."""

    def __init__(self, mesh: Mesh, node: str) -> None:
        keys = NodeKeys.load(mesh.home.node(node), MESH)
        signer = keys.signer
        self.node = node
        self._sealer = Sealer(signer.sign, signer.key_id, MESH, node, Way.FROM)
        self._sealer.new_session(boot_ms(), 1)
        self._clock = MeshClock()
        self._link = MqttLink(
            [("127.0.0.1", mesh.port)], node, keys.context(), (f"imlmesh/1/{MESH}/all/+",)
        )
        self.up = asyncio.Event()

    def start(self) -> None:
        self._link.start(self)

    async def close(self) -> None:
        await self._link.close()

    def will(self) -> None:
        return None

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self.up.set()

    def link_down(self, reason: str) -> None:
        pass

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        pass

    def say(
        self, values: list[Any], metric: str = "iot.x", *, node: str = "", off_ms: int = 0
    ) -> None:
        """Readings of now; `off_ms` is how wrong its clock is."""
        now_ms = self._clock.now_ms() + off_ms
        fields = {"readings": {metric: [[now_ms] * len(values), values]}}
        sealed = self._sealer.seal(Kind.EVENT, ME, fields, now_ms, 60_000)
        topic = topics.from_node(MESH, node or self.node, Kind.EVENT, "telemetry/iot")
        self._link.publish(topic, sealed)


async def test_what_a_bad_node_says_is_refused_and_shown_and_others_go_on(mesh: Mesh) -> None:
    await mesh.orchestrator()
    for name in ("pi-1", "evil"):
        await mesh.node(name)
    await mesh.online("pi-1", "evil")
    await mesh.kill("evil")
    opened = asyncio.Event()
    seen: dict[str, dict[str, Any]] = {}

    async def watch() -> None:
        async for kind, _, data in mesh.events(opened):
            if kind == "refusal":
                seen.setdefault(data["code"], data)

    watching = asyncio.ensure_future(watch())
    await opened.wait()
    evil = Impostor(mesh, "evil")
    evil.start()
    await evil.up.wait()
    evil.say([math.nan])
    evil.say([math.inf])
    evil.say(["hot"])
    evil.say([1], "iot.Not a name")
    evil.say([1], node="pi-1")
    evil.say([1], off_ms=-10 * 60_000)
    evil.say([1], off_ms=10 * 60_000)
    for number in range(250):
        evil.say([1], f"iot.n{number}")
    evil.say([2], "iot.n0")
    await mesh.until("telemetry?metric=iot.n0", counted("iot.n0", 2))
    await measure(mesh, 3)
    await mesh.until("telemetry?node=pi-1&metric=fake.level", counted("fake.level", 3))
    health = await mesh.get("health")
    watching.cancel()
    await evil.close()
    refused = health["messages"]["refused"]
    # the broker drops what is written to another node's topic, whoever signed it
    assert refused == {
        "message.invalid": 3,
        "telemetry.invalid": 1,
        "message.expired": 2,
        "telemetry.metrics": 50,
    }
    assert seen.keys() == refused.keys()
    assert seen["telemetry.metrics"]["node"] == "evil"
    assert seen["message.invalid"]["topic"].endswith("/from/evil/event/telemetry/iot")
    found = await mesh.get("telemetry")
    assert "iot.x" not in {series["metric"] for series in found["series"]}
