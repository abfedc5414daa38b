"""What plans promise, through the API of an orchestrator process with real nodes."""

import json
import signal
from typing import Any

from orchestrator_mesh import ME, Mesh, action, plan


async def refused(mesh: Mesh, path: str, body: Any, status: int) -> dict[str, Any]:
    answer = await mesh.http.post(path, json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


def asked(name: str, **more: Any) -> dict[str, Any]:
    return action(name, requires_approval=True, **more)


async def test_a_gate_is_shown_answered_once_and_survives_a_kill(mesh):
    await mesh.begin("pi-1")
    gated = asked(
        "say",
        do="echo",
        params={"value": "hi"},
        approval={"message": "May I?", "risk_level": "high", "clarification_options": ["softly"]},
    )
    run = (await mesh.submit(plan(gated)))["run"]
    [waiting] = (await mesh.until("approvals?state=pending", lambda f: f["approvals"]))["approvals"]
    name = waiting["approval"]
    await mesh.kill(ME)
    await mesh.orchestrator()
    shown = await mesh.until(f"approvals/{name}", lambda found: found["nodes"] == ["pi-1"])
    assert (shown["kind"], shown["risk"], shown["params"]) == ("gate", "high", {"value": "hi"})
    assert (shown["options"], shown["four_eyes"]) == (["approve", "deny", "softly"], False)
    answered = await mesh.http.post(f"approvals/{name}/answer", json={"option": "softly"})
    assert (answered.json()["state"], answered.json()["option"]) == ("approved", "softly")
    late = await refused(mesh, f"approvals/{name}/answer", {"option": "deny"}, 409)
    assert (late["code"], "softly" in late["message"]) == ("approval.closed", True)
    ended = await mesh.ended(run)
    assert (ended["state"], ended["actions"][0]["result"]) == ("completed", {"value": "hi"})
    texts = [each["text"] for each in (await mesh.get(f"runs/{run}/story"))["entries"]]
    assert any("May I?" in text for text in texts)
    assert any("chose softly" in text for text in texts)


async def test_with_four_eyes_the_submitter_does_not_answer(mesh):
    mesh.home.root.joinpath("orchestrator.toml").write_text("[approvals]\nfour_eyes = true\n")
    await mesh.begin("pi-1")
    await mesh.submit(plan(asked("say")))
    [waiting] = (await mesh.until("approvals?state=pending", lambda f: f["approvals"]))["approvals"]
    path = f"approvals/{waiting['approval']}"
    assert (await mesh.get(path))["four_eyes"] is True
    found = await refused(mesh, f"{path}/answer", {"option": "approve"}, 403)
    assert found["code"] == "approval.four_eyes"
    assert (await mesh.get(path))["state"] == "pending"


async def test_a_preview_can_be_held_to(mesh):
    await mesh.begin("pi-1")
    text = plan(action("a"), action("b", "act", ("a",)))
    preview = (await mesh.http.post("plans/preview", json={"text": text})).json()
    assert (preview["placeable"], preview["errors"], preview["changes"]) == (True, [], None)
    assert [row["chosen"] for wave in preview["waves"] for row in wave] == ["pi-1", "pi-1"]
    body = {"text": text, "expect": preview["fingerprint"], "priority": -3}
    accepted = await mesh.http.post("runs", json=body)
    assert accepted.status_code == 202
    run = await mesh.ended(accepted.json()["run"])
    assert run["priority"] == -3
    other = plan(action("a"), action("b", "noop", ("a",)))
    wrong = await refused(mesh, "runs", {**body, "text": other}, 409)
    assert (wrong["code"], wrong["message"].rpartition(": ")[2]) == (
        "plan.fingerprint",
        "the plan changed",
    )
    assert (await refused(mesh, "runs", {"text": text, "priority": 11}, 422))["code"] == "usage"
    again = (await mesh.http.post("plans/preview", json={"text": other})).json()
    assert again["changes"]["last_run"] == run["run"]
    fields = [(row["action"], row["field"]) for row in again["changes"]["changed"]]
    assert fields == [("b", "action")]
    bad = plan(action("a", "noop", ("a",)))
    assert (await refused(mesh, "plans/preview", {"text": bad}, 422))["code"].startswith("plan.")


async def test_a_nonce_names_one_run(mesh):
    await mesh.begin("pi-1")
    text = plan(action("a"), nonce="n-1")
    first = await mesh.submit(text)
    again = await mesh.submit(text, 200)
    assert (again["run"], again["reused"], again["seq"]) == (first["run"], True, first["seq"])
    seen = [event async for event in mesh.events(run=again["run"], after=again["seq"])]
    assert seen[0][2]["kind"] == "run-created"
    other = await mesh.submit(plan(action("b"), nonce="n-1"), 409)
    assert other["code"] == "plan.nonce_reused"
    await mesh.kill(ME)
    await mesh.orchestrator()
    await mesh.until("health", lambda found: found["epoch"])
    assert (await mesh.submit(text, 200))["run"] == first["run"]


async def test_a_nonce_names_its_run_when_the_plan_could_run_no_more(mesh):
    await mesh.begin("pi-1")
    await mesh.http.put("groups/garden", json={"nodes": ["pi-1"]})
    text = plan(action("a", target_group="garden"), nonce="n-1")
    preview = (await mesh.http.post("plans/preview", json={"text": text})).json()
    body = {"text": text, "expect": preview["fingerprint"]}
    first = (await mesh.http.post("runs", json=body)).json()
    await mesh.http.put("groups/garden", json={"nodes": []})
    again = await mesh.http.post("runs", json=body)
    assert (again.status_code, again.json()["run"]) == (200, first["run"])
    other = plan(action("b", target_group="garden"), nonce="n-1")
    assert (await mesh.submit(other, 422))["code"] == "place.no_group"


async def test_memory_is_written_read_and_kept(mesh):
    await mesh.begin("pi-1")
    put = await mesh.http.put("memory/who?session=s", json={"value": {"name": "ü"}})
    assert (put.status_code, put.json()["value"]) == (200, {"name": "ü"})
    text = plan(
        action(
            "say",
            "echo",
            params={"value": "{{memory.who}}"},
            memory={"read_keys": ["who"], "write_key": "said"},
        ),
        session_id="s",
    )
    run = await mesh.ended((await mesh.submit(text))["run"])
    assert run["actions"][0]["result"] == {"value": {"name": "ü"}}
    await mesh.kill(ME)
    await mesh.orchestrator()
    found = await mesh.until("memory?session=s", lambda found: found["entries"])
    assert [(each["key"], each["by"]) for each in found["entries"]] == [
        ("who", put.json()["by"]),
        ("said", f"{run['run']}/say"),
    ]
    assert (await mesh.get("memory/said?session=s"))["value"] == {"value": {"name": "ü"}}
    assert (await mesh.http.delete("memory/who?session=s")).status_code == 200
    for method, path, body, status, code in (
        ("GET", "memory/who?session=s", None, 404, "memory.not_found"),
        ("DELETE", "memory/who", None, 404, "memory.not_found"),
        ("PUT", "memory/a.b", {"value": 1}, 422, "name.invalid"),
        ("PUT", "memory/who", {"value": "x" * 300_000}, 422, "memory.too_large"),
        ("PUT", "memory/who", {"value": 1 << 70}, 422, "usage"),
        ("PUT", "memory/who", {}, 422, "usage"),
    ):
        answer = await mesh.http.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code), path


async def test_a_failed_run_is_retried_and_keeps_what_it_had(mesh):
    await mesh.begin("pi-1")
    failing = {"fail_times": 1, "marker": "marks.txt", "log_lines": 2}
    text = plan(
        action("first", "act", params={"value": 1, "marker": "first.txt", "log_lines": 1}),
        action("second", "act", ("first",), params=failing, label="again"),
        action("third", "echo", ("second",), params={"value": "{{result.first.value}}"}),
    )
    old = await mesh.ended((await mesh.submit(text))["run"])
    assert [row["state"] for row in old["actions"]] == ["completed", "failed", "skipped"]
    lines = (await mesh.get(f"runs/{old['run']}/logs?failed=true"))["lines"]
    assert {line["action"] for line in lines} == {"second"}
    retried = await mesh.http.post(f"runs/{old['run']}/retry", json={"failed": True})
    assert retried.status_code == 202, retried.text
    told = retried.json()
    assert (told["of"], told["kept"]) == (old["run"], ["first"])
    assert told["asks"] == ["second"]
    [asks] = (await mesh.until("approvals?state=pending", lambda f: f["approvals"]))["approvals"]
    assert "on pi-1, 20" in asks["message"], "when and where it ran"
    await mesh.http.post(f"approvals/{asks['approval']}/answer", json={"option": "approve"})
    new = await mesh.until(
        f"runs/{told['run']}", lambda found: found["actions"][0]["state"] == "completed"
    )
    assert (new["of"], new["actions"][0]["kept"], new["file"]) == (old["run"], True, old["file"])
    assert new["actions"][1]["line"] == old["actions"][1]["line"]
    await mesh.ended(told["run"])
    first = mesh.home.node("pi-1") / "files" / "first.txt"
    assert len(first.read_text().splitlines()) == 1, "what completed never ran again"


async def test_a_run_is_paused_resumed_and_exported(mesh):
    await mesh.begin("pi-1")
    slow = {"delay_ms": 500}
    run = (await mesh.submit(plan(action("a", "act", params=slow), action("b", after=("a",)))))[
        "run"
    ]
    paused = await mesh.http.post(f"runs/{run}/pause")
    assert (paused.status_code, paused.json()["state"]) == (202, "paused")
    shown = await mesh.until(f"runs/{run}", lambda f: f["actions"][0]["state"] == "completed")
    assert (shown["state"], shown["actions"][1]["state"]) == ("paused", "pending")
    early = await refused(mesh, f"runs/{run}/retry", {}, 409)
    assert early["code"] == "run.not_ended"
    resumed = await mesh.http.post(f"runs/{run}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (202, "running")
    assert (await mesh.ended(run))["state"] == "completed"
    assert (await refused(mesh, f"runs/{run}/pause", None, 409))["code"] == "run.ended"
    export = await mesh.get(f"runs/{run}/export")
    assert export["plan"]["actions"][0]["params"] == slow
    assert (export["run"]["run"], export["story"][-1]["kind"]) == (run, "run-ended")
    assert export["logs"] == {"lines": [], "dropped": 0}


async def test_the_fleet_says_what_it_offers(mesh):
    await mesh.begin("pi-1", "pi-2")
    found = (await mesh.get("actions?module=filesystem"))["actions"]
    assert {each["module"] for each in found} == {"filesystem"}
    one = await mesh.get("actions/filesystem/read_file")
    assert (one["nodes"], one["effect"], one["undo"]) == (["pi-1", "pi-2"], "pure", None)
    assert "path" in one["params"]["properties"]
    for path, code in (("fake/nothing", "action.unknown"), ("nothing/x", "module.unknown")):
        answer = await mesh.http.get(f"actions/{path}")
        assert (answer.status_code, answer.json()["code"]) == (422, code)


async def test_kills_in_the_middle_of_a_rolling_batch_lose_nothing_and_repeat_nothing(mesh):
    await mesh.begin("pi-1", "pi-2")
    await mesh.http.put("groups/both", json={"nodes": ["pi-1", "pi-2"]})
    marked = {"marker": "marks.txt", "delay_ms": 300}
    wise = {"target_group": "both", "target_mode": "rolling"}
    text = plan(
        action("roll", "act", params=marked, **wise),
        action("then", "act", ("roll",), params=marked, target_node="pi-1"),
    )
    run = (await mesh.submit(text))["run"]
    for _ in range(3):
        await mesh.kill(ME, signal.SIGKILL)
        await mesh.orchestrator()
        await mesh.until("health", lambda found: found["broker"]["connected"])
    ended = await mesh.ended(run)
    assert ended["state"] == "completed", json.dumps(ended)[:2_000]
    marks = [
        line
        for node in ("pi-1", "pi-2")
        for line in (mesh.home.node(node) / "files" / "marks.txt").read_text().split()
    ]
    assert sorted(marks) == [f"{run}/roll/pi-1/1", f"{run}/roll/pi-2/1", f"{run}/then/pi-1/1"]


async def test_who_answers_too_late_learns_that_it_no_longer_mattered(mesh):
    await mesh.begin("pi-1")
    run = (await mesh.submit(plan(asked("say"))))["run"]
    [waiting] = (await mesh.until("approvals?state=pending", lambda f: f["approvals"]))["approvals"]
    await mesh.http.post(f"runs/{run}/cancel")
    await mesh.ended(run)
    late = await refused(mesh, f"approvals/{waiting['approval']}/answer", {"option": "deny"}, 409)
    assert late["code"] == "approval.closed"
    assert late["message"].endswith(
        "superseded: what it asked about ended or changed before anybody answered"
    )
    texts = [each["text"] for each in (await mesh.get(f"runs/{run}/story"))["entries"]]
    assert late["message"] in texts


async def test_what_the_api_does_not_have_is_told_with_a_code(mesh):
    await mesh.orchestrator()
    await mesh.until("health", lambda found: found["epoch"])
    for method, path, status in (
        ("GET", "nothing", 404),
        ("GET", "runs/", 404),
        ("GET", "runs/r-1/nothing", 404),
        ("DELETE", "runs", 405),
    ):
        answer = await mesh.http.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (status, "usage")
        assert answer.headers["content-type"] == "application/problem+json"
        assert f"/v1/{path}" in answer.json()["message"]
    assert "GET" in answer.headers["allow"] or "POST" in answer.headers["allow"]


async def test_a_session_has_a_name(mesh):
    await mesh.orchestrator()
    await mesh.until("health", lambda found: found["epoch"])
    for session in ("", "a\nb", "x" * 129):
        for method, path in (("GET", "memory"), ("GET", "memory/k"), ("PUT", "memory/k")):
            params, body = {"session": session}, {"value": 1}
            answer = await mesh.http.request(method, path, params=params, json=body)
            assert (answer.status_code, answer.json()["code"]) == (422, "name.invalid")
    assert (await mesh.get("memory"))["entries"] == []
