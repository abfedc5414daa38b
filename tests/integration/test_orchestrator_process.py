"""An orchestrator process on a real broker with real nodes, asked through its API."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from imlmesh_broker import Mosquitto
from imlmesh_broker.mosquitto import BrokerPlace
from imlmesh_orchestrator.ca import Authority
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys

pytestmark = pytest.mark.mosquitto

MESH, ME = "home", "orchestra"
WITHIN_S = 40
POLICY = """
profile = "local_worker"
[roots]
write = ["files"]
[modules]
allow = ["fake", "filesystem"]
"""
ENDED = {"completed", "failed", "cancelled"}


def action(name: str, do: str = "noop", after: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    module = "fake" if do in ("noop", "echo", "act") else "filesystem"
    return {"id": name, "module": module, "action": do, "depends_on": list(after), **more}


def plan(*actions: dict[str, Any], **more: Any) -> str:
    head = {"protocol_version": "2.0", "plan_id": "test", "description": "A test"}
    return json.dumps({**head, "execution_mode": "parallel", **more, "actions": list(actions)})


class Mesh:
    """A home with a broker; processes are started and killed by name."""

    def __init__(self, home: Home, port: int) -> None:
        self.home = home
        self.port = port
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        self.http = httpx2.AsyncClient(
            base_url="http://imlmesh/v1/",
            transport=httpx2.AsyncHTTPTransport(uds=str(home.api_socket)),
            timeout=WITHIN_S,
            trust_env=False,
        )

    async def start(self, name: str, *command: str) -> asyncio.subprocess.Process:
        with (self.home.logs / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", *command), stdout=log, stderr=log, start_new_session=True
            )
        self.processes[name] = process
        return process

    async def orchestrator(self, name: str = ME) -> asyncio.subprocess.Process:
        arguments = ("--home", str(self.home.root), "--broker", f"127.0.0.1:{self.port}")
        return await self.start(name, "imlmesh_orchestrator", *arguments)

    async def node(self, name: str) -> None:
        folder = self.home.node(name)
        if not folder.exists():
            Authority.open(self.home).provision(
                name,
                folder,
                brokers=(f"127.0.0.1:{self.port}",),
                timing="lan",
                policy_text=POLICY,
                profile="local_worker",
            )
        await self.start(name, "imlmesh_node", str(folder))

    async def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        process = self.processes.pop(name)
        if process.returncode is None:
            os.killpg(process.pid, number)
        return await process.wait()

    async def get(self, path: str) -> dict[str, Any]:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, path: str, holds: Any) -> dict[str, Any]:
        """The answer to `path` as soon as it holds; also across a restart of the API."""
        while True:
            with contextlib.suppress(httpx2.TransportError):
                answer = await self.http.get(path)
                if answer.status_code == 200 and holds(found := answer.json()):
                    return found
            await asyncio.sleep(0.05)

    async def online(self, *names: str) -> None:
        def all_online(found: dict[str, Any]) -> bool:
            online = {n["node"] for n in found["nodes"] if n["liveness"] == "online"}
            return online >= set(names)

        await self.until("nodes", all_online)

    async def submit(self, text: str, status: int = 202) -> dict[str, Any]:
        answer = await self.http.post("runs", json={"text": text, "file": "plan.iml.json"})
        assert answer.status_code == status, answer.text
        return answer.json()

    async def ended(self, run: str) -> dict[str, Any]:
        return await self.until(f"runs/{run}", lambda found: found["state"] in ENDED)

    async def events(
        self, opened: asyncio.Event | None = None, **params: Any
    ) -> AsyncIterator[tuple[str, int | None, Any]]:
        async with self.http.stream("GET", "events", params=params) as answer:
            assert answer.status_code == 200
            if opened is not None:
                opened.set()
            kind, seq = "", None
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                if name == "event":
                    kind = value
                elif name == "id":
                    seq = int(value)
                elif name == "data":
                    yield kind, seq, json.loads(value)
                    kind, seq = "", None


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    home = Home(tmp_path / "h")
    Authority.create(home, MESH, ME)
    place = BrokerPlace(home.broker, home.ca / "ca.pem", home.logs / "broker.log")
    broker = Mosquitto(MESH, ME, place, ControlKeys.load(home.ca, MESH).context)
    await broker.start()
    made = Mesh(home, broker.port)
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await made.http.aclose()
        for name in list(made.processes):
            await made.kill(name)
        await broker.stop()


async def test_a_plan_runs_and_its_story_is_told(mesh):
    await mesh.orchestrator()
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    submitted = await mesh.submit(
        plan(
            action("say", "echo", params={"value": "hi"}),
            action(
                "write",
                "write_file",
                ("say",),
                params={"path": "a.txt", "content": "{{result.say.value}}"},
            ),
            action("loud", "act", params={"log_lines": 3}),
        )
    )
    seen = [event async for event in mesh.events(run=submitted["run"], after=submitted["seq"])]
    kinds = [data["kind"] for kind, _, data in seen if kind == "change"]
    assert kinds[0] == "run-created"
    assert kinds[-1] == "run-ended"
    assert kinds.count("result-taken") == 3
    assert seen[-1] == ("end", None, {"run": submitted["run"], "state": "completed"})
    seqs = [seq for kind, seq, _ in seen if kind == "change"]
    assert seqs == sorted(set(seqs))
    assert {data["line"] for kind, _, data in seen if kind == "log"} == {
        "line 0",
        "line 1",
        "line 2",
    }
    run = await mesh.get(f"runs/{submitted['run'][:4]}")
    assert run["state"] == "completed"
    assert run["waves"] == [["say", "loud"], ["write"]]
    said = run["actions"][0]
    assert (said["state"], said["result"], said["node"]) == ("completed", {"value": "hi"}, "pi-1")
    assert (said["line"], run["file"]) == (1, "plan.iml.json")
    assert (mesh.home.node("pi-1") / "files" / "a.txt").read_text() == "hi"
    story = (await mesh.get(f"runs/{submitted['run']}/story"))["entries"]
    assert [entry["seq"] for entry in story] == seqs
    assert any("goes to pi-1" in entry["text"] for entry in story)
    logs = await mesh.get(f"runs/{submitted['run']}/logs?action=loud")
    assert [line["line"] for line in logs["lines"]] == ["line 0", "line 1", "line 2"]
    listed = (await mesh.get("runs"))["runs"]
    assert listed[0]["counts"] == {"completed": 3}


async def test_a_killed_orchestrator_goes_on_and_runs_nothing_twice(mesh):
    await mesh.orchestrator()
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    marked = {"marker": "marks.txt"}
    submitted = await mesh.submit(
        plan(
            action("first", "act", params={"value": 1, **marked}),
            action("long", "act", ("first",), params={"delay_ms": 2_500, **marked}),
            action("last", "act", ("long",), params={"value": 3, **marked}),
        )
    )
    run = submitted["run"]
    marks = mesh.home.node("pi-1") / "files" / "marks.txt"
    await mesh.until(
        f"runs/{run}",
        lambda found: (
            found["actions"][1]["state"] == "running"
            and marks.exists()
            and len(marks.read_text().splitlines()) == 2
        ),
    )
    before = await mesh.get("health")
    await mesh.kill(ME)
    await mesh.orchestrator()
    found = await mesh.ended(run)
    assert found["state"] == "completed", found
    assert marks.read_text().split() == [
        f"{run}/{name}/pi-1/1" for name in ("first", "long", "last")
    ]
    after = await mesh.get("health")
    assert after["epoch"] == before["epoch"] + 1
    again = await mesh.submit(plan(action("one")))
    assert int(again["run"].split("-")[1]) == int(run.split("-")[1]) + 1


async def test_a_lost_node_loses_its_pure_work_to_another(mesh):
    await mesh.orchestrator()
    for name in ("pi-1", "pi-2"):
        await mesh.node(name)
    await mesh.online("pi-1", "pi-2")
    put = await mesh.http.put("groups/both", json={"nodes": ["pi-1", "pi-2"]})
    assert put.status_code == 200
    text = plan(
        action("wait", "act", target_group="both", on_node_loss="ask", params={"delay_ms": 60_000})
    )
    run = (await mesh.submit(text))["run"]
    shown = await mesh.until(f"runs/{run}", lambda found: found["actions"][0]["state"] == "running")
    await mesh.kill(shown["actions"][0]["node"])
    asked = await mesh.until("approvals?state=pending", lambda found: found["approvals"])
    [approval] = asked["approvals"]
    assert (approval["kind"], approval["options"]) == ("lost_effect", ["rerun", "done", "fail"])
    waiting = await mesh.get(f"runs/{run}")
    assert waiting["actions"][0]["state"] == "unknown"
    assert approval["approval"] in waiting["waits_for"][0]
    wrong = await mesh.http.post(f"approvals/{approval['approval']}/answer", json={"option": "x"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "approval.option")
    given = await mesh.http.post(
        f"approvals/{approval['approval']}/answer", json={"option": "done"}
    )
    assert (given.status_code, given.json()["state"]) == (200, "approved")
    late = await mesh.http.post(f"approvals/{approval['approval']}/answer", json={"option": "fail"})
    assert (late.status_code, late.json()["code"]) == (409, "approval.closed")
    assert (await mesh.ended(run))["state"] == "completed"


async def test_what_cannot_run_is_refused_and_what_runs_can_be_cancelled(mesh):
    await mesh.orchestrator()
    await mesh.until("health", lambda found: found["broker"]["connected"])
    nobody = await mesh.submit(plan(action("a")), 422)
    assert nobody["code"] in ("module.unknown", "place.no_node")
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    problem = await mesh.submit(
        plan(
            action("a", "noop", ("b",)),
            action("b", "noop", ("a",)),
            action("c", "echo", target_node="nobody"),
        ),
        422,
    )
    assert {"plan.cycle", "place.unknown_node"} <= {error["code"] for error in problem["errors"]}
    assert all(error["line"] == 1 for error in problem["errors"])
    checked = await mesh.http.post(
        "plans/check", json={"text": plan(action("a"), action("b", after=("a",)))}
    )
    assert checked.json()["waves"] == [["a"], ["b"]]
    run = (await mesh.submit(plan(action("wait", "act", params={"delay_ms": 60_000}))))["run"]
    await mesh.until(f"runs/{run}", lambda found: found["actions"][0]["state"] == "running")
    cancelled = await mesh.http.post(f"runs/{run}/cancel")
    assert cancelled.status_code == 202
    found = await mesh.ended(run)
    assert (found["state"], found["unconfirmed"]) == ("cancelled", False)
    again = await mesh.http.post(f"runs/{run}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "run.ended")
    missing = await mesh.http.get("runs/r-99")
    assert (missing.status_code, missing.json()["code"]) == (404, "run.not_found")


async def test_a_forged_message_is_refused_counted_and_shown(mesh):
    await mesh.orchestrator()
    await mesh.node("pi-1")
    await mesh.online("pi-1")
    await mesh.kill("pi-1", signal.SIGTERM)
    context = NodeKeys.load(mesh.home.node("pi-1"), MESH).context()
    link = MqttLink([("127.0.0.1", mesh.port)], "pi-1", context, (f"imlmesh/1/{MESH}/all/+",))
    opened = asyncio.Event()
    watched = mesh.events(opened)

    class Events:
        def will(self):
            return None

        def link_up(self):
            link.publish(f"imlmesh/1/{MESH}/from/pi-1/complete", b"\xc1garbage")

        def link_down(self, reason):
            pass

        def message(self, topic, payload):
            pass

    first = asyncio.ensure_future(anext(event async for event in watched if event[0] == "refusal"))
    await opened.wait()
    link.start(Events())
    _, seq, data = await first
    await link.close()
    assert (seq, data["code"]) == (None, "message.invalid")
    assert data["topic"].endswith("/from/pi-1/complete")
    assert (await mesh.get("health"))["messages"]["refused"] == {"message.invalid": 1}


async def test_it_ends_cleanly_and_only_one_runs(mesh):
    process = await mesh.orchestrator()
    await mesh.until("health", lambda found: found["broker"]["connected"])
    assert mesh.home.api_socket.stat().st_mode & 0o777 == 0o600
    address = json.loads(mesh.home.api_json.read_text())
    assert (address["pid"], address["socket"]) == (process.pid, str(mesh.home.api_socket))
    second = await mesh.orchestrator("second")
    assert await second.wait() == 3
    assert "orchestrator.running" in (mesh.home.logs / "second.log").read_text()
    assert (await mesh.get("health"))["pid"] == process.pid
    process.terminate()
    assert await process.wait() == 0
    assert not mesh.home.api_json.exists()
    assert not mesh.home.api_socket.exists()
