"""The client takes plans as people have them: built, checked, or in a file."""

import json
import ssl
from pathlib import Path
from types import SimpleNamespace

import pytest

from imlmesh import Client, Plan, client
from imlmesh.client import path_of
from imlmesh_protocol.errors import InputError
from imlmesh_runtime.paths import ApiAddress, Home

PLAN = Plan("look", description="d").action("a", "filesystem.read_file", {"path": "a.txt"})


class Orchestrator:
    """Answers as the API does: a run ends at the third look at it."""

    def __init__(self):
        self.asked = []

    def __call__(self, request):
        body = json.loads(request.content) if request.content else None
        self.asked.append((request.method, request.url.path, body))
        if request.url.path == "/v1/runs":
            return client.httpx2.Response(202, json={"run": "r-1-abcd", "warnings": []})
        if request.url.path == "/v1/plans/check":
            return client.httpx2.Response(200, json={"errors": []})
        looks = sum(path == "/v1/runs/r-1-abcd" for _, path, _ in self.asked)
        state, ended_at_ms = ("completed", 5) if looks == 3 else ("running", None)
        return client.httpx2.Response(200, json={"state": state, "ended_at_ms": ended_at_ms})


@pytest.fixture
def orchestrator(monkeypatch):
    served = Orchestrator()
    transport = client.httpx2.MockTransport(served)
    monkeypatch.setattr(client.httpx2, "HTTPTransport", lambda **_: transport)
    monkeypatch.setattr(client, "_POLL_S", 0.0)
    return served


@pytest.fixture
def mesh(orchestrator):
    return Client(Home(Path("home")), ApiAddress("http://imlmesh", "api.sock"))


def test_a_built_plan_runs_to_its_end(mesh, orchestrator):
    assert mesh.run(PLAN)["state"] == "completed"
    method, path, body = orchestrator.asked[0]
    assert (method, path) == ("POST", "/v1/runs")
    assert Plan.from_json(body["text"]) == PLAN
    assert len(orchestrator.asked) == 4


def test_when_the_time_is_over_the_run_goes_on(mesh):
    assert mesh.run(PLAN, timeout_s=0.0)["state"] == "running"


def test_whoever_waits_for_a_large_run_looks_less_often(mesh, orchestrator, monkeypatch):
    now_s, slept_s = [0.0], []
    call = mesh.get

    def get(path):
        now_s[0] += 0.5
        return call(path)

    def sleep(seconds):
        slept_s.append(seconds)
        now_s[0] += seconds

    monkeypatch.setattr(mesh, "get", get)
    monkeypatch.setattr(client, "time", SimpleNamespace(monotonic=lambda: now_s[0], sleep=sleep))
    assert mesh.wait("r-1-abcd", timeout_s=4.0)["state"] == "completed"
    assert slept_s == [2.0, 1.0]  # four times as long as a look, and no longer than the time lasts


def test_a_checked_model_is_submitted_and_a_plan_checked(mesh, orchestrator):
    assert mesh.submit(PLAN.check().plan)["run"] == "r-1-abcd"
    assert mesh.check(PLAN) == {"errors": []}
    texts = [body["text"] for _, _, body in orchestrator.asked]
    assert [Plan.from_json(text) for text in texts] == [PLAN, PLAN]


def test_a_file_that_is_not_there_is_told_before_anything_is_sent(mesh, orchestrator):
    with pytest.raises(InputError) as caught:
        mesh.run("/nowhere/plan.yaml")
    assert caught.value.code == "plan.not_found"
    assert orchestrator.asked == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/story", "a" * 129])
def test_what_no_name_can_be_is_refused_before_it_is_a_path(name):
    for kind in ("runs", "nodes", "approvals", "groups"):
        with pytest.raises(InputError) as caught:
            path_of(kind, name)
        assert caught.value.code == "name.invalid"


def test_a_name_in_a_path_is_only_a_name():
    assert path_of("runs", "a?b#c d", "logs") == "runs/a%3Fb%23c%20d/logs"
    assert path_of("memory", "user/last") == "memory/user%2Flast"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), "\udce9", {1, 2}, b"x"])
def test_what_json_cannot_hold_is_not_sent(mesh, orchestrator, value):
    with pytest.raises(InputError) as caught:
        mesh.put("memory/k", {"value": value})
    assert caught.value.code == "usage"
    assert orchestrator.asked == []


def test_a_path_that_is_no_url_is_not_sent(mesh, orchestrator):
    for path in ("runs/\n", "runs/" + "a" * 70_000, "runs/\udce9"):
        with pytest.raises(InputError) as caught:
            mesh.get(path)
        assert caught.value.code == "usage"
    assert orchestrator.asked == []


def test_a_client_reads_no_authorities_of_tls_that_it_does_not_speak(monkeypatch, tmp_path):
    """That took longer than most questions do."""
    read = []
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: read.append(1))
    Client(Home(tmp_path), ApiAddress("http://imlmesh", str(tmp_path / "api.sock"))).close()
    assert read == []


def test_who_names_nobody_is_told_where_those_who_wait_are_listed():
    with pytest.raises(InputError) as caught:
        path_of("joins", "", "approve")
    assert caught.value.hint == "imlmesh node discover"
