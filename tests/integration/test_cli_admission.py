"""Deciding about nodes from the command line, against a small API that answers as the real one."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

import pytest

import cli_records
from cli_records import START_MS, decision, node
from imlmesh import main

if TYPE_CHECKING:
    from conftest import Api

HOLDS = {"enforced": True, "applied": True, "session_ended": True}
POST = "POST /v1/nodes/pi/admission"


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()


def decided(admission: str, broker: Any = None, **fields: Any) -> dict[str, Any]:
    found = {"schema": "imlmesh.admission/1", "node": "pi", "alias": "pi", "before": "open"}
    why = None if admission == "open" else decision(**fields)
    return {**found, "admission": admission, "decision": why, "broker": broker}


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (["cordon", "--reason", "wires"], {"admission": "cordoned", "reason": "wires"}),
        (["drain", "--reason", "move"], {"admission": "draining", "reason": "move"}),
        (
            ["quarantine", "--reason", "odd", "--for", "1h30m"],
            {"admission": "quarantined", "reason": "odd", "for_ms": 5_400_000},
        ),
        (["release"], {"admission": "open", "reason": "released"}),
        (["release", "--reason", "fine"], {"admission": "open", "reason": "fine"}),
        (["remove", "--reason", "gone", "--yes"], {"admission": "revoked", "reason": "gone"}),
    ],
)
def test_each_verb_says_what_it_wants_and_why(
    words: list[str], body: dict[str, Any], api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    broker = HOLDS if body["admission"] == "revoked" else None
    api.answer(POST, decided(body["admission"], broker))
    api.answer("GET /v1/nodes/pi", node("pi"))
    verb, *rest = words
    assert main.run(["node", verb, "pi", *rest]) == 0
    assert api.asked[-1][2] == body
    assert body["admission"] in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["cordon", "drain", "quarantine", "remove"])
def test_without_a_reason_nothing_is_asked(verb: str, api: Api) -> None:
    assert main.run(["node", verb, "pi"]) == 2
    assert not api.asked


def test_what_was_decided_is_told_with_the_way_back(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    found = decided("quarantined", HOLDS | {"session_ended": None}, until_ms=START_MS + 3_600_000)
    api.answer(POST, found)
    assert main.run(["node", "quarantine", "pi", "--reason", "odd"]) == 0
    told = capsys.readouterr()
    since, until = "2023-11-14 22:13:20", "2023-11-14 23:13:20"
    assert told.out == f"pi  ■ quarantined  by eve since {since}, until {until}: it smells\n"
    assert told.err == "  end that: imlmesh node release pi\n"


def test_a_drain_waits_until_what_runs_is_done(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    draining = {"admission": "draining", "decision": decision(drained=False)}
    api.answer(POST, decided("draining", drained=False))
    api.take_turns(
        "GET /v1/nodes/pi",
        node("pi", live_dispatches=2, **draining),
        node("pi", live_dispatches=1, **draining),
        node("pi", admission="draining", decision=decision()),
    )
    assert main.run(["node", "drain", "pi", "--reason", "move"]) == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[:2] == ["pi still has 2 dispatches", "pi still has 1 dispatch"]
    assert ", all done: it smells" in told.out


def test_a_drain_that_nobody_waits_for(api: Api) -> None:
    api.answer(POST, decided("draining", drained=False))
    assert main.run(["node", "drain", "pi", "--reason", "move", "--detach"]) == 0
    assert len(api.asked) == 1


def test_a_dry_run_tells_what_removing_would_mean_and_removes_nothing(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer("GET /v1/nodes/pi", node("pi", live_dispatches=3))
    assert main.run(["node", "remove", "pi", "--reason", "gone", "--dry-run"]) == 0
    assert "3 dispatches" in capsys.readouterr().err
    assert main.run(["node", "remove", "pi", "--reason", "gone", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["live_dispatches"], found["groups"]) == (3, ["garden"])
    assert {key for key, _, _ in api.asked} == {"GET /v1/nodes/pi"}


@pytest.mark.parametrize(("typed", "code"), [("pi", 0), ("pie", 2), ("", 2), (None, 2)])
def test_removing_wants_the_name_of_the_node(
    typed: str | None, code: int, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answer(POST, decided("revoked", HOLDS))
    api.answer("GET /v1/nodes/pi", node("pi"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: typed is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: typed)
    assert main.run(["node", "remove", "pi", "--reason", "gone"]) == code
    assert (POST in {key for key, _, _ in api.asked}) == (code == 0)


@pytest.mark.parametrize(
    ("broker", "code", "words"),
    [
        (HOLDS, 0, "its session at the broker has ended"),
        (None, 0, "count no more"),
        (HOLDS | {"enforced": False, "applied": False}, 1, "has not applied it"),
        (HOLDS | {"enforced": False, "session_ended": False}, 1, "still has its session"),
    ],
)
def test_a_removal_that_does_not_hold_yet_is_no_success(
    broker: Any, code: int, words: str, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer(POST, decided("revoked", broker))
    api.answer("GET /v1/nodes/pi", node("pi"))
    assert main.run(["node", "remove", "pi", "--reason", "gone", "--yes"]) == code
    assert words in capsys.readouterr().err


def test_lists_and_pages_say_who_is_not_open_why_and_what_ends_it(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    shed = node("shed", admission="quarantined", decision=decision())
    old = node("old", "offline", admission="revoked", decision=decision("stolen"))
    wired = node("wired", admission="cordoned", decision=decision("wires"))
    api.answer("GET /v1/nodes", {"nodes": [old, wired, node("pi"), shed]})
    assert main.run(["node", "list"]) == 0
    assert "old" not in capsys.readouterr().out
    assert main.run(["node", "list", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = {line.split()[0]: line for line in lines[1:5]}
    assert [*states] == ["shed", "pi", "wired", "old"]
    assert "■ quarantined" in states["shed"]
    assert "⏸ cordoned" in states["wired"]
    assert "✖ revoked" in states["old"]
    assert lines[5].startswith("1 need attention:  shed quarantined by eve since ")
    assert lines[5].endswith("it smells (imlmesh node release shed)")
    seen = {"at_ms": START_MS, "kind": "malformed", "text": "no field x", "verdict": "counted"}
    more = {"evidence": [seen], "refused": {"received": {}, "sent": {}}, "actions": []}
    api.answer("GET /v1/nodes/shed", {**shed, **more})
    assert main.run(["node", "show", "shed"]) == 0
    told = capsys.readouterr()
    assert "■ quarantined  by eve since 2023-11-14 22:13:20: it smells" in told.out
    assert "2023-11-14 22:13:20  malformed: no field x (counted)" in told.out
    assert "imlmesh node release shed" in told.err


def test_status_names_who_is_not_open_and_what_is_not_shut_out(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    health = cli_records.health(START_MS, access={"problem": "nobody applied version 3"})
    nodes = [
        node("shed", admission="draining", decision=decision("move")),
        node("old", "lost", admission="revoked", decision=decision()),
    ]
    api.answer("GET /v1/health", health)
    api.answer("GET /v1/nodes", {"nodes": nodes})
    api.answer("GET /v1/approvals", {"approvals": []})
    assert main.run(["status", "--json"]) == 0
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem["try"] for problem in problems] == [
        "imlmesh docs broker.behind",
        "imlmesh node release shed",
    ]
    assert "nobody applied version 3" in problems[0]["text"]
    assert problems[1]["text"].endswith(": move")
