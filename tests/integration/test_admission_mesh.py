"""People decide about nodes of a real mesh: what it means is measured at a marker file."""

import asyncio
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import Sealer
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.trust import HeldTrust, NodeKeys
from orchestrator_mesh import ME, MESH, Mesh, action, plan

NODES = ("pi-1",)


async def decide(mesh: Mesh, node: str, admission: str, **more: Any) -> dict[str, Any]:
    body = {"admission": admission, "reason": "it smells", **more}
    answer = await mesh.http.post(f"nodes/{node}/admission", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def marks(mesh: Mesh, node: str, name: str = "marks.txt") -> int:
    path = mesh.home.node(node) / "files" / name
    return len(path.read_text().splitlines()) if path.exists() else 0


def marked(name: str, node: str, **params: Any) -> dict[str, Any]:
    wanted = {"marker": "marks.txt", **params}
    return action(name, "act", params=wanted, target_node=node)


async def waits(mesh: Mesh, run: str, code: str) -> None:
    def told(found: dict[str, Any]) -> bool:
        reasons = found["actions"][0].get("reasons") or {}
        return code in str(reasons) and found["actions"][0]["state"] == "waiting"

    await mesh.until(f"runs/{run}", told)


def in_journal(mesh: Mesh, node: str) -> bool:
    with sqlite3.connect(mesh.home.node(node) / "journal.db") as database:
        query = "SELECT value FROM meta WHERE name = 'quarantined'"
        return bool(database.execute(query).fetchone()[0])


def roster(mesh: Mesh, node: str) -> Mapping[str, tuple[str, str]]:
    """Who is in the mesh, as a node has it in its folder."""
    held = HeldTrust(mesh.home.node(node) / "keys", MESH).roster
    return held.nodes if held else {}


async def test_a_quarantine_holds_through_kills_of_orchestrator_and_node_until_the_release(mesh):
    found = await decide(mesh, "pi-1", "quarantined")
    assert (found["before"], found["admission"]) == ("open", "quarantined")
    assert found["decision"]["reason"] == "it smells"
    runs = [(await mesh.submit(plan(marked("one", "pi-1"))))["run"]]
    await waits(mesh, runs[0], "node.quarantined")
    await mesh.until("health", lambda _: in_journal(mesh, "pi-1"))
    for name, start in ((ME, mesh.orchestrator), ("pi-1", lambda: mesh.node("pi-1"))):
        await mesh.kill(name)
        await start()
        await mesh.online("pi-1")
        shown = await mesh.get("nodes/pi-1")
        assert (shown["admission"], shown["decision"]["reason"]) == ("quarantined", "it smells")
        assert in_journal(mesh, "pi-1")
        runs.append((await mesh.submit(plan(marked("one", "pi-1"))))["run"])
        await waits(mesh, runs[-1], "node.quarantined")
    assert marks(mesh, "pi-1") == 0
    await decide(mesh, "pi-1", "open")
    for run in runs:
        assert (await mesh.ended(run))["state"] == "completed"
    assert marks(mesh, "pi-1") == 3
    assert not in_journal(mesh, "pi-1")
    assert (await mesh.get("nodes/pi-1"))["decision"] is None


async def test_a_node_that_missed_its_release_works_again_by_itself(mesh):
    await decide(mesh, "pi-1", "quarantined")
    await mesh.until("health", lambda _: in_journal(mesh, "pi-1"))
    await mesh.kill("pi-1")
    await decide(mesh, "pi-1", "open")
    run = (await mesh.submit(plan(marked("one", "pi-1"))))["run"]
    await mesh.node("pi-1")
    assert (await mesh.ended(run))["state"] == "completed"
    assert (marks(mesh, "pi-1"), in_journal(mesh, "pi-1")) == (1, False)


async def test_what_runs_when_the_quarantine_comes_is_a_question_and_runs_once(mesh):
    run = (await mesh.submit(plan(marked("one", "pi-1", delay_ms=2_000))))["run"]
    await mesh.until("health", lambda _: marks(mesh, "pi-1") == 1)
    await decide(mesh, "pi-1", "quarantined")
    asked = await mesh.until("approvals?state=pending", lambda found: found["approvals"])
    [question] = asked["approvals"]
    assert (question["kind"], question["run"]) == ("lost_effect", run)

    def kept(found: dict[str, Any]) -> bool:
        return any("kept as evidence" in each["text"] for each in found["entries"])

    await mesh.until(f"runs/{run}/story", kept)
    assert (await mesh.get(f"runs/{run}"))["actions"][0]["state"] == "unknown"
    await decide(mesh, "pi-1", "open")
    answer = await mesh.http.post(
        f"approvals/{question['approval']}/answer", json={"option": "done"}
    )
    assert answer.status_code == 200
    assert (await mesh.ended(run))["state"] == "completed"
    assert marks(mesh, "pi-1") == 1


async def test_a_drain_lets_what_runs_end_and_gives_the_rest_to_nobody(mesh):
    long, short = marked("long", "pi-1", delay_ms=2_000), marked("short", "pi-1")
    first = (await mesh.submit(plan(long)))["run"]
    await mesh.until("health", lambda _: marks(mesh, "pi-1") == 1)
    found = await decide(mesh, "pi-1", "draining")
    assert found["decision"]["drained"] is False
    second = (await mesh.submit(plan(short)))["run"]
    await waits(mesh, second, "node.draining")
    assert (await mesh.ended(first))["state"] == "completed"
    shown = await mesh.get("nodes/pi-1")
    assert (shown["admission"], shown["decision"]["drained"]) == ("draining", True)
    assert marks(mesh, "pi-1") == 1
    await decide(mesh, "pi-1", "open")
    assert (await mesh.ended(second))["state"] == "completed"


async def test_a_removed_node_is_not_heard_and_its_id_is_taken_for_ever(mesh):
    await mesh.node("pi-2")
    await mesh.online("pi-1", "pi-2")
    await mesh.http.put("groups/all", json={"nodes": ["pi-1", "pi-2"]})
    found = await decide(mesh, "pi-1", "revoked")
    assert found["admission"] == "revoked"
    listed = await mesh.until("nodes", lambda found: found["nodes"][0]["liveness"] == "offline")
    assert [node["admission"] for node in listed["nodes"]] == ["revoked", "open"]
    assert [node["node"] for node in (await mesh.get("groups"))["groups"][0]["nodes"]] == ["pi-2"]
    everywhere = action("one", "act", params={"marker": "marks.txt"}, target_mode="all")
    run = (await mesh.submit(plan(everywhere)))["run"]
    assert (await mesh.ended(run))["state"] == "completed"
    assert (marks(mesh, "pi-1"), marks(mesh, "pi-2")) == (0, 1)
    await mesh.until("health", lambda _: roster(mesh, "pi-2").get("pi-1", ("", ""))[0] == "revoked")
    assert roster(mesh, "pi-2")["pi-2"] == ("active", "local_worker")
    for admission in ("open", "quarantined"):
        body = {"admission": admission, "reason": "no"}
        answer = await mesh.http.post("nodes/pi-1/admission", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "node.admission")


async def test_what_makes_no_sense_is_refused_and_decides_nothing(mesh):
    for body in (
        {"admission": "quarantined"},
        {"admission": "quarantined", "reason": " "},
        {"admission": "quarantined", "reason": "x" * 501},
        {"admission": "banished", "reason": "x"},
        {"admission": "", "reason": "x"},
        {"admission": "cordoned", "reason": "x", "for_ms": -1},
        {"admission": "cordoned", "reason": "x", "for_ms": 1 << 60},
    ):
        answer = await mesh.http.post("nodes/pi-1/admission", json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "usage"), body
        assert (await mesh.get("nodes/pi-1"))["admission"] == "open", body
    unknown = await mesh.http.post(
        "nodes/nobody/admission", json={"admission": "cordoned", "reason": "x"}
    )
    assert (unknown.status_code, unknown.json()["code"]) == (404, "node.not_found")


class Impostor:
    """Whoever has the keys of a node, and says what no version of ours would."""

    def __init__(self, mesh: Mesh, node: str) -> None:
        keys = NodeKeys.load(mesh.home.node(node), MESH)
        self._node = node
        self._sealer = Sealer(keys.signer.sign, keys.signer.key_id, MESH, node, Way.FROM)
        self._sealer.new_session(time.time_ns() // 1_000_000, 1)
        self._up = asyncio.Event()
        mine = topics.node_subscriptions(MESH, node)
        self.link = MqttLink([("127.0.0.1", mesh.port)], node, keys.context(), mine)
        self.link.start(self)

    async def say(self, many: int, **fields: Any) -> None:
        await self._up.wait()
        for _ in range(many):
            now_ms = time.time_ns() // 1_000_000
            sealed = self._sealer.seal(Kind.ACCEPT, ME, fields, now_ms, 60_000)
            self.link.publish(topics.from_node(MESH, self._node, Kind.ACCEPT), sealed)
        self.link.flush()

    def will(self) -> Will | None:
        return None

    def link_up(self) -> None:
        self._up.set()

    def link_down(self, reason: str) -> None: ...

    def handed_over(self) -> None: ...

    def message(self, topic: str, payload: bytes, retained: bool) -> None: ...


async def test_a_node_that_signs_nonsense_is_quarantined_by_the_mesh_itself(mesh):
    await mesh.kill("pi-1")
    impostor = Impostor(mesh, "pi-1")
    await impostor.say(limits.EVIDENCE_MALFORMED - 1, dispatches=[], surprise=1)
    await impostor.say(20, dispatches=[])  # what makes sense is no evidence
    shown = await mesh.until("nodes/pi-1", lambda found: len(found["evidence"]) == 4)
    assert shown["admission"] == "open"
    await impostor.say(1, dispatches=[], surprise=1)
    shown = await mesh.until(
        "nodes/pi-1", lambda found: found["evidence"][0]["verdict"] == "quarantined"
    )
    await impostor.link.close()
    assert (shown["admission"], shown["decision"]["by"]) == ("quarantined", "imlmesh")
    assert shown["decision"]["reason"].startswith("5 malformed messages that it signed")
    assert shown["decision"]["until_ms"] - shown["decision"]["since_ms"] == limits.QUARANTINE_MS
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    run = (await mesh.submit(plan(marked("one", "pi-1"))))["run"]
    await waits(mesh, run, "node.quarantined")
    await decide(mesh, "pi-1", "open")
    assert (await mesh.ended(run))["state"] == "completed"
