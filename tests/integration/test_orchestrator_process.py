"""An orchestrator process on a real broker with real nodes, asked through its API."""

import asyncio
import json
import signal

from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.trust import NodeKeys
from orchestrator_mesh import ME, MESH, action, plan


async def test_a_plan_runs_and_its_story_is_told(mesh):
    await mesh.begin("pi-1")
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
    await mesh.begin("pi-1")
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
    assert after["epoch"] > before["epoch"]
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
    await mesh.begin("pi-1")
    await mesh.kill("pi-1", signal.SIGTERM)
    context = NodeKeys.load(mesh.home.node("pi-1"), MESH).context()
    link = MqttLink([("127.0.0.1", mesh.port)], "pi-1", context, (f"imlmesh/1/{MESH}/all/+",))
    opened = asyncio.Event()
    watched = mesh.events(opened)

    class Events:
        def will(self):
            return None

        def handed_over(self): ...

        def link_up(self):
            link.publish(f"imlmesh/1/{MESH}/from/pi-1/complete", b"\xc1garbage")

        def link_down(self, reason):
            pass

        def message(self, topic, payload, retained):
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
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0
    assert not mesh.home.api_json.exists()
    assert not mesh.home.api_socket.exists()
