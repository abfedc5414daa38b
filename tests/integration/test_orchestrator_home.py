"""An orchestrator's home in one process: settings, a disk that fails, a socket path too long."""

import asyncio
import contextlib
import json
import sqlite3
import time
from pathlib import Path

import httpx2
import pytest

from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.config import Config, load_config
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, MeshError, StoreError
from imlmesh_protocol.iml.plan import Plan
from imlmesh_runtime.paths import Home
from imlmesh_runtime.process import only_one

NOWHERE = "127.0.0.1:9"
PLAN = Plan.model_validate({"plan_id": "p", "actions": [{"id": "a", "module": "m", "action": "x"}]})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    Authority.create(made, "home", "orchestra")
    return made


def test_settings_have_defaults_and_all_errors_are_told(tmp_path):
    path = tmp_path / "orchestrator.toml"
    assert load_config(path) == Config()
    path.write_text("[plans]\nmax_actions = 20_000\n")
    assert load_config(path) == Config(max_actions=20_000)
    path.write_text("[approvals]\nfour_eyes = true\n")
    assert load_config(path) == Config(four_eyes=True)
    path.write_text(
        "[plans]\nmax_actions = 0\nmin = 1\n[meshh]\n[approvals]\nfour_eyes = 4\nsix = 1\n"
    )
    with pytest.raises(InputErrors) as caught:
        load_config(path)
    assert {error.code for error in caught.value.errors} == {"config.invalid"}
    assert [error.place.pointer for error in caught.value.errors] == [
        "/approvals/four_eyes",
        "/approvals/six",
        "/meshh",
        "/plans/min",
        "/plans/max_actions",
    ]
    path.write_text("[plans\n")
    with pytest.raises(InputError, match=r"config\.invalid"):
        load_config(path)


@pytest.mark.parametrize("value", ["2", "31_622_401", "true", '"1h"', "600.0"])
def test_the_life_of_a_certificate_has_bounds(tmp_path, value):
    path = tmp_path / "orchestrator.toml"
    path.write_text("[certificates]\nnode_s = 3\n")
    assert load_config(path) == Config(node_s=3)
    path.write_text(f"[certificates]\nnode_s = {value}\n")
    with pytest.raises(InputErrors) as caught:
        load_config(path)
    assert [error.place.pointer for error in caught.value.errors] == ["/certificates/node_s"]


@pytest.mark.parametrize(
    "broker", ["localhost", "localhost:", "localhost:99999", ":x", ":8883", "::1:8883", "a b:8883"]
)
def test_an_address_that_is_none_is_refused(home, broker):
    with pytest.raises(InputError) as caught:
        load_setup(home, broker)
    assert caught.value.code == "config.invalid"


def test_an_address_of_ipv6_is_dialled_without_its_brackets(home, monkeypatch):
    dialled = []
    monkeypatch.setattr(
        "imlmesh_orchestrator.main.MqttLink", lambda *words, **_more: dialled.append(words)
    )
    load_setup(home, "[2001:db8::7]:8884").link()
    assert dialled[0][0] == [("2001:db8::7", 8884)]


def test_a_broker_elsewhere_is_not_announced_as_if_it_were_here(home):
    with pytest.raises(InputError) as caught:
        load_setup(home, "192.168.1.20:8884", lan=True)
    assert caught.value.code == "config.invalid"
    assert load_setup(home, NOWHERE, lan=True).lan


def test_a_home_without_a_mesh_is_refused(tmp_path):
    with pytest.raises(InputError) as caught:
        load_setup(Home(tmp_path), NOWHERE)
    assert caught.value.code == "home.missing"


def test_one_home_holds_one_orchestrator(home):
    held = home.pid_file("orchestrator"), "orchestrator.running"
    with only_one(*held), pytest.raises(InputError) as caught, only_one(*held):
        pass
    assert caught.value.code == "orchestrator.running"
    with only_one(*held):
        assert home.pid_file("orchestrator").read_text().strip().isdecimal()


async def test_the_epoch_rises_with_every_start_and_runs_stay(home):
    run, before = "", time.time() - 1
    for start in (1, 2):
        running = RunningOrchestrator(load_setup(home, NOWHERE))
        shell = await running.start(serve=False)
        assert shell.epoch == shell.state.epoch > before
        before = shell.epoch
        if start == 1:
            run = await shell.submit(PLAN, "digest", "me")
        assert list(shell.state.runs) == [run]
        assert not shell.when_ended(run).done()
        await running.close()


async def test_a_wall_clock_that_was_put_back_changes_nothing(home, monkeypatch):
    running = RunningOrchestrator(load_setup(home, NOWHERE))
    shell = await running.start(serve=False)
    epoch, before_ms = shell.epoch, shell.clock.now_ms()
    run = await shell.submit(PLAN, "digest", "me")
    await running.close()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 86_400 * 10**9)
    running = RunningOrchestrator(load_setup(home, NOWHERE))
    shell = await running.start(serve=False)
    assert shell.epoch > epoch
    assert before_ms <= shell.clock.now_ms() < before_ms + 60_000
    expires_ms = shell.state.runs[run].expires_at_ms
    assert 0 < expires_ms - shell.clock.now_ms() <= limits.RUN_TTL_MS
    assert await shell.cancel(run, "me") == "cancelled"
    await running.close()


async def test_one_active_run_too_many_is_refused_before_anything_is_stored(home, monkeypatch):
    monkeypatch.setattr(limits, "ACTIVE_RUNS", 20)
    running = RunningOrchestrator(load_setup(home, NOWHERE))
    shell = await running.start(serve=False)
    runs = [await shell.submit(PLAN, "digest", "me") for _ in range(limits.ACTIVE_RUNS)]
    for again in (False, True):
        if again:
            await running.close()
            running = RunningOrchestrator(load_setup(home, NOWHERE))
            shell = await running.start(serve=False)
        before = _counts(home)
        other = PLAN.model_copy(update={"plan_id": "other"})
        with pytest.raises(MeshError) as caught:
            await shell.submit(other, "other digest", "me")
        assert caught.value.code == "run.too_many"
        assert _counts(home) == before
    assert before["runs"] == limits.ACTIVE_RUNS
    assert before["plans"] == 1
    await shell.cancel(runs[0], "me")
    await shell.submit(PLAN, "digest", "me")
    await running.close()


def _counts(home: Home) -> dict[str, int]:
    """Rows of lifecycle."""
    tables = ("changes", "runs", "plans", "actions", "outflow")
    with contextlib.closing(sqlite3.connect(home.orchestrator / "lifecycle.db")) as database:
        count = "SELECT count(*) FROM "
        return {name: database.execute(count + name).fetchone()[0] for name in tables}


async def test_a_disk_that_fails_ends_the_engine_and_tells_who_waits(home):
    running = RunningOrchestrator(load_setup(home, NOWHERE))
    shell = await running.start(serve=False)
    run = await shell.submit(PLAN, "digest", "me")
    ended = shell.when_ended(run)
    await asyncio.to_thread(_break, home.orchestrator / "lifecycle.db")
    with pytest.raises(StoreError):
        await shell.submit(PLAN, "digest", "me")
    with pytest.raises(StoreError):
        await ended
    assert isinstance(shell.engine.failed.exception(), StoreError)
    with pytest.raises(StoreError):
        await shell.submit(PLAN, "digest", "me")
    await running.close()


def _break(path: Path) -> None:
    """Take the table away that every commit needs, as another program might."""
    import sqlite3

    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE changes RENAME TO elsewhere")
    database.close()


async def test_a_long_path_is_served_on_loopback_with_a_token(tmp_path):
    home = Home(tmp_path / ("x" * 90))
    Authority.create(home, "home", "orchestra")
    running = RunningOrchestrator(load_setup(home, NOWHERE))
    await running.start()
    try:
        address = json.loads(home.api_json.read_text())
        assert address["socket"] is None
        token = home.api_token
        assert address["token_file"] == str(token)
        assert token.stat().st_mode & 0o777 == 0o600
        bearer = {"authorization": f"Bearer {token.read_text()}"}
        async with httpx2.AsyncClient(base_url=address["url"], trust_env=False) as http:
            without = await http.get("/v1/health")
            assert (without.status_code, without.json()["code"]) == (403, "access.denied")
            found = await http.get("/v1/health", headers=bearer)
            assert found.json()["broker"]["connected"] is False
            bad = await http.post("/v1/runs", headers=bearer, content=b"[")
            assert (bad.status_code, bad.json()["code"]) == (422, "usage")
            assert bad.headers["content-type"] == "application/problem+json"
            plan = json.dumps(PLAN.model_dump(mode="json", exclude_unset=True))
            for wrong, words in (
                (
                    {"text": plan, "expects": "8c1f"},
                    "no field 'expects'; there are text, file, pri",
                ),
                ({"text": plan, "file": "x" * 4_097}, "file has at most 4096 characters"),
                (f'{{"text": {json.dumps(plan)}, "text": ""}}', "a key stands twice"),
            ):
                body = wrong if isinstance(wrong, str) else json.dumps(wrong)
                bad = await http.post("/v1/runs", headers=bearer, content=body)
                assert (bad.status_code, bad.json()["code"]) == (422, "usage")
                assert words in bad.json()["message"]
            listed = await http.get("/v1/runs", headers=bearer)
            assert listed.json()["runs"] == []
    finally:
        await running.close()
    assert not home.api_json.exists()
    assert not home.api_token.exists()
