"""`imlmesh trust` in a home without an orchestrator, and what it asks a small API for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imlmesh import main
from imlmesh.exits import ExitCode
from imlmesh_orchestrator.ca import Authority
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import HeldTrust

if TYPE_CHECKING:
    from conftest import Api


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    made = Home(tmp_path / "home")
    Authority.create(made, "mesh", "orchestra")
    monkeypatch.setenv("IMLMESH_HOME", str(made.root))
    monkeypatch.setenv("NO_COLOR", "1")
    return made


def version_of(home: Home) -> int:
    return HeldTrust(home.ca, "mesh").trust.version


def asked_for(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main.run([*words, "-o", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_is_shown(home, capsys):
    found = asked_for(capsys, "trust", "show")
    assert (found["schema"], found["mesh"], found["version"]) == ("imlmesh.trust/1", "mesh", 1)
    assert found["root"]["file"] == str(home.ca / "root.key")
    assert [key["what"] for key in found["keys"]] == ["plan", "ledger", "roster"]
    assert all(key["signs"] for key in (*found["keys"], *found["cas"]))
    assert {ca["days_left"] for ca in found["cas"]} == {729}
    (home.ca / "root.key").unlink()
    assert main.run(["trust", "show"]) == 0
    text = capsys.readouterr().out
    assert "the root key is moved away" in text
    assert "729d" in text


def test_a_roll_over_on_the_command_line(home, capsys):
    assert main.run(["trust", "rotate", "plan"]) == 0
    told = capsys.readouterr()
    assert "known" in told.out
    assert "no orchestrator runs" in told.err
    assert "imlmesh trust finish plan" in told.err
    states = {key["id"]: key["signs"] for key in asked_for(capsys, "trust", "show")["keys"][:2]}
    new = next(name for name, signs in states.items() if not signs)
    assert main.run(["trust", "finish", "plan"]) == 0
    capsys.readouterr()
    found = asked_for(capsys, "trust", "show")
    assert found["keys"][0] == {"what": "plan", "id": new, "signs": True}
    assert (found["version"], found["under_way"]) == (3, [])


def test_a_root_key_that_is_away(home, tmp_path, capsys):
    stick = tmp_path / "stick.key"
    (home.ca / "root.key").rename(stick)
    for verb in ("rotate", "finish"):
        assert main.run(["trust", verb, "plan"]) != 0
        told = capsys.readouterr().err
        assert "trust.root_away" in told
        assert "--root" in told
    assert version_of(home) == 1
    assert main.run(["trust", "rotate", "plan", "--root", str(stick)]) == 0
    assert version_of(home) == 2


@pytest.mark.parametrize("words", [["rotate", "root"], ["finish", "PLAN"]])
def test_what_cannot_roll_over(home, capsys, words):
    assert main.run(["trust", *words]) == ExitCode.USAGE
    assert "plan, ledger, roster, node-ca, control-ca" in capsys.readouterr().err
    assert version_of(home) == 1


def test_a_folder_without_a_mesh(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IMLMESH_HOME", str(tmp_path / "none"))
    assert main.run(["trust", "show"]) != 0
    assert "home.missing" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_orchestrator_is_asked_and_told(api: Api, capsys, tmp_path):
    home = Home(tmp_path / "home")
    Authority.create(home, "mesh", "orchestra")
    behind = {"node": "pi-1", "alias": "pi-bed", "liveness": "online", "version": 1, "behind": True}
    away = {**behind, "node": "pi-2", "alias": "pi-roof", "liveness": "lost", "version": None}
    standing = {"version": 2, "broker": "memory", "nodes": [behind, away]}
    api.answer("GET /v1/trust", standing)
    api.answer("POST /v1/trust/reload", standing)
    assert main.run(["trust", "rotate", "plan"]) == 0
    told = capsys.readouterr()
    assert "pi-bed" in told.out
    assert "not heard" in told.out
    assert ("POST /v1/trust/reload", "/v1/trust/reload", {}) in api.asked
    assert main.run(["trust", "finish", "plan"]) != 0
    refused = capsys.readouterr().err
    assert "trust.rotating" in refused
    assert "pi-bed" in refused
    assert "pi-roof" not in refused
    assert version_of(home) == 2
    assert main.run(["trust", "finish", "plan", "--anyway"]) == 0
    assert "pi-2 has not heard of it" in capsys.readouterr().err
    assert version_of(home) == 3
