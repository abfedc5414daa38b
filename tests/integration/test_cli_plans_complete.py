"""Preview, retries, questions, memory, calls and logs over a small API that answers from a table."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import cli_records
from cli_records import START_MS, action, approval
from imlmesh import live, main
from imlmesh.client import ServerEvent
from imlmesh.keys import has_keys
from imlmesh.live import Waves

if TYPE_CHECKING:
    from conftest import Api

    Output = pytest.CaptureFixture[str]

PLAN = 'protocol_version: "2.0"\nactions: []\n'
END = 'event: end\ndata: {"run": "r-1-abcd", "state": "completed"}\n\n'
PREVIEW = {
    "schema": "imlmesh.preview/1",
    "plan_id": "evening",
    "digest": "d" * 64,
    "fingerprint": "8c1f00112233",
    "placeable": True,
    "waves": [],
    "compensations": [],
    "undoing": {"by_driver": [], "stays": []},
    "approvals": 0,
    "permissions": {},
    "changes": None,
    "errors": [],
    "warnings": [],
    "memory": {"reads": [], "writes": []},
    "not_before": None,
}
CHANGES = {"last_run": "r-1", "added": ["a"], "removed": [], "changed": [], "nodes_changed": []}


def run(state: str = "completed", name: str = "r-1-abcd", **fields: Any) -> dict[str, Any]:
    ended = {"state": state, "ended_at_ms": START_MS + 1_000, "run": name}
    return cli_records.run([action("look", state)], **{**ended, **fields})


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "evening.yaml"
    path.write_text(PLAN)
    return str(path)


@pytest.mark.parametrize(
    ("fields", "flags", "code"),
    [
        ({}, [], 0),
        ({"placeable": False}, [], 4),
        ({"changes": CHANGES}, [], 0),
        ({"changes": CHANGES}, ["--detailed-exitcode"], 10),
        ({"changes": CHANGES, "placeable": False}, ["--detailed-exitcode"], 4),
        ({"changes": None}, ["--detailed-exitcode"], 0),
    ],
)
def test_preview_tells_by_its_exit_code(
    api: Api, plan: str, capsys: Output, fields: dict[str, Any], flags: list[str], code: int
) -> None:
    api.answer("POST /v1/plans/preview", {**PREVIEW, **fields})
    assert main.run(["plan", "preview", plan, *flags]) == code
    streams = capsys.readouterr()
    assert "fingerprint 8c1f00112233" in streams.out
    assert f"imlmesh plan run {plan} --expect 8c1f00112233" in streams.err


def test_preview_of_a_plan_with_errors_is_refused(api: Api, plan: str, capsys: Output) -> None:
    record = {"code": "plan.cycle", "message": "a waits for a", "hint": ""}
    problem = {**record, "status": 422, "errors": [record], "warnings": []}
    api.answer("POST /v1/plans/preview", problem, 422)
    assert main.run(["plan", "preview", plan]) == 3
    assert "error[plan.cycle]" in capsys.readouterr().err


def test_preview_as_data(api: Api, plan: str, capsys: Output) -> None:
    api.answer("POST /v1/plans/preview", PREVIEW)
    assert main.run(["plan", "preview", plan, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == PREVIEW
    assert main.run(["plan", "preview", plan, "-o", "yaml"]) == 0
    assert capsys.readouterr().out.startswith("schema: imlmesh.preview/1\nplan_id: evening\n")


def test_priority_and_fingerprint_travel(api: Api, plan: str, capsys: Output) -> None:
    told = {"schema": "imlmesh.submitted/1", "run": "r-1-abcd", "seq": 1, "warnings": []}
    api.answer("POST /v1/runs", {**told, "reused": True}, 202)
    words = ["plan", "run", plan, "--detach", "--priority", "-3", "--expect", "8c1f"]
    assert main.run(words) == 0
    assert api.asked[-1][2] == {"text": PLAN, "file": plan, "priority": -3, "expect": "8c1f"}
    assert "nothing new was started" in capsys.readouterr().err
    assert main.run(["plan", "run", plan, "--priority", "11"]) == 2
    changed = {"code": "plan.fingerprint", "message": "the nodes changed", "status": 409}
    api.answer("POST /v1/runs", changed, 409)
    assert main.run(["plan", "run", plan, "--expect", "8c1f"]) == 3


def test_a_failed_run_ends_with_its_last_log_lines_and_the_way_on(
    api: Api, plan: str, capsys: Output
) -> None:
    error = {"code": "driver.failed", "message": "no"}
    failed = run("failed", error=error)
    failed["actions"] = [action("look", "failed", error=error, line=5)]
    api.answer("POST /v1/runs", {"run": "r-1-abcd", "seq": 1, "warnings": []}, 202)
    api.answer("GET /v1/runs/r-1-abcd", failed)
    line = {"at_ms": START_MS, "action": "look", "node": "pi", "stream": "stderr", "line": "EBUSY"}
    api.answer("GET /v1/runs/r-1-abcd/logs", {"lines": [line], "dropped": 0})
    api.streams.append(END)
    assert main.run(["plan", "run", plan]) == 1
    out = capsys.readouterr().out
    assert "  look on pi: no [driver.failed]  evening.yaml:5\n    | " in out
    assert "EBUSY" in out
    assert "retry only this: imlmesh run retry r-1-abcd --failed" in out
    assert "failed=true" in api.asked[-1][1]


def test_a_retry_says_what_is_kept_and_what_asks_and_is_followed(api: Api, capsys: Output) -> None:
    told = {"schema": "imlmesh.submitted/1", "run": "r-2-wxyz", "seq": 1, "warnings": []}
    told |= {"of": "r-1-abcd", "kept": ["read", "count"], "asks": ["valve"]}
    api.answer("POST /v1/runs/r-1/retry", told, 202)
    api.answer("GET /v1/runs/r-2-wxyz", run(name="r-2-wxyz"))
    api.streams.append(END)
    assert main.run(["run", "retry", "r-1", "--failed"]) == 0
    assert api.asked[0][2] == {"failed": True}
    streams = capsys.readouterr()
    assert streams.err.splitlines()[:3] == [
        "r-2-wxyz retries r-1-abcd",
        "  kept: read, count",
        "  asks first: valve",
    ]
    assert "✔ r-2-wxyz completed" in streams.out
    assert main.run(["run", "retry", "r-1", "--detach"]) == 0
    assert api.asked[-1][2] == {"failed": False}
    assert capsys.readouterr().out == "r-2-wxyz\n"


def test_a_run_that_goes_on_cannot_be_retried(api: Api, capsys: Output) -> None:
    problem = {"code": "run.not_ended", "message": "r-1-abcd goes on", "status": 409}
    api.answer("POST /v1/runs/r-1/retry", problem, 409)
    assert main.run(["run", "retry", "r-1"]) == 1
    assert "error[run.not_ended]" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("resume", "running")])
def test_pause_and_resume(api: Api, capsys: Output, verb: str, state: str) -> None:
    found = {"schema": f"imlmesh.{verb}d/1", "run": "r-1-abcd", "state": state}
    api.answer(f"POST /v1/runs/r-1/{verb}", found, 202)
    assert main.run(["run", verb, "r-1"]) == 0
    assert capsys.readouterr().out == f"r-1-abcd {state}\n"
    assert main.run(["run", verb, "r-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_wait_exits_with_the_first_result_that_is_not_good(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/runs/r-1", run("running", ended_at_ms=None))
    api.answer("GET /v1/runs/r-1-abcd", run())
    denied = {"code": "approval.denied", "message": "no"}
    api.answer("GET /v1/runs/r-2", run("failed", "r-2-wxyz", error=denied))
    api.streams += [END]
    assert main.run(["run", "wait", "r-1", "r-2"]) == 7
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[1] for line in lines) == ["r-1-abcd", "r-2-wxyz"]


def test_wait_ends_with_its_time(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/runs/r-1", run("running", ended_at_ms=None))
    assert main.run(["run", "wait", "r-1", "--timeout", "100ms"]) == 8
    assert "r-1-abcd goes on." in capsys.readouterr().err
    assert main.run(["run", "wait", "r-1", "--timeout", "soon"]) == 2


def test_what_has_ended_needs_no_time_to_wait_for(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/runs/r-1", run("failed"))
    api.answer("GET /v1/runs/r-2", run("running", "r-2-wxyz", ended_at_ms=None))
    assert main.run(["run", "wait", "r-1", "--timeout", "0"]) == 1
    assert "r-1-abcd failed" in capsys.readouterr().out
    api.answer("GET /v1/runs/r-1-abcd", run("failed"))
    assert main.run(["run", "watch", "r-1", "--timeout", "0"]) == 1
    capsys.readouterr()
    assert main.run(["run", "wait", "r-1", "r-2", "--timeout", "0"]) == 8
    printed = capsys.readouterr()
    assert "r-1-abcd failed" in printed.out
    assert printed.err.startswith("r-2-wxyz goes on.")


def test_export_writes_one_document(api: Api, tmp_path: Path, capsys: Output) -> None:
    found = {"schema": "imlmesh.run-export/1", "run": run(), "story": [], "text": "\x1b[2J"}
    api.answer("GET /v1/runs/r-1/export", found)
    out = tmp_path / "r-1.json"
    assert main.run(["run", "export", "r-1", "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == found
    capsys.readouterr()
    assert main.run(["run", "export", "r-1"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main.run(["run", "export", "r-1", "--out", str(tmp_path)]) == 3


def log_event(line: dict[str, Any]) -> str:
    return f"event: log\ndata: {json.dumps(line)}\n\n"


def log_line(number: int, text: str, name: str = "look") -> dict[str, Any]:
    line = {"at_ms": START_MS, "action": name, "node": "pi", "stream": "stdout", "line": text}
    return {"n": number, **line}


def test_followed_logs_begin_with_the_earlier_lines_and_show_each_once(
    api: Api, capsys: Output
) -> None:
    api.answer("GET /v1/runs/r-1", run("running", ended_at_ms=None))
    kept = [log_line(5, "same"), log_line(6, "same"), log_line(7, "other", "count")]
    api.answer("GET /v1/runs/r-1-abcd/logs", {"log": "l", "lines": kept, "dropped": 4})
    # the stream repeats what was kept when it was opened, then goes on
    api.streams.append("".join(map(log_event, [*kept[1:], log_line(8, "new")])) + END)
    assert main.run(["run", "logs", "r-1", "look", "--follow"]) == 0
    streams = capsys.readouterr()
    shown = [text.split(" ", 1)[1] for text in streams.out.splitlines()]
    assert shown == ["look@pi same", "look@pi same", "look@pi new"]
    assert "4 lines dropped before they could be shown" in streams.err


def test_followed_logs_of_an_orchestrator_that_restarted_go_on(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/runs/r-1", run("running", ended_at_ms=None))
    kept = [log_line(1, "old"), log_line(2, "old")]
    anew = [log_line(1, "new"), log_line(2, "new")]
    path = "GET /v1/runs/r-1-abcd/logs"
    found = ({"log": "l", "lines": kept}, {"log": "m", "lines": anew})
    api.take_turns(path, *({**each, "dropped": 0} for each in found))
    api.streams += [": broken\n\n", END]
    assert main.run(["run", "logs", "r-1", "--follow"]) == 0
    shown = [text.split(" ")[-1] for text in capsys.readouterr().out.splitlines()]
    assert shown == ["old", "old", "new", "new"]


def test_followed_logs_of_what_failed_come_once_it_has(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/runs/r-1", run("running", ended_at_ms=None))
    path = "GET /v1/runs/r-1-abcd/logs"
    found = ([], [log_line(2, "why")])
    api.take_turns(path, *({"log": "l", "lines": lines, "dropped": 0} for lines in found))
    change = {"kind": "result-taken", "run": "r-1-abcd", "at_ms": START_MS}
    ended = f"id: 9\nevent: change\ndata: {json.dumps(change)}\n\n"
    api.streams.append(log_event(log_line(1, "fine")) + ended + END)
    assert main.run(["run", "logs", "r-1", "--failed", "--follow"]) == 0
    assert [text.split(" ", 1)[1] for text in capsys.readouterr().out.splitlines()] == [
        "look@pi why"
    ]
    assert {asked.partition("?")[2] for key, asked, _ in api.asked if key == path} == {
        "failed=true"
    }


def test_logs_of_what_failed_and_of_late(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/runs/r-1", run())
    api.answer("GET /v1/runs/r-1-abcd/logs", {"schema": "l/1", "lines": [], "dropped": 0})
    assert main.run(["run", "logs", "r-1", "--failed", "--since", "2023-11-14T22:13:20+00:00"]) == 0
    assert "failed=true" in api.asked[-1][1]
    assert f"since={START_MS}" in api.asked[-1][1]


def test_questions_are_listed_shown_answered(api: Api, capsys: Output) -> None:
    lost = approval("a-4", "lost_effect", action="feed", message="did feed happen?", node="pi")
    found = {"schema": "imlmesh.approval-list/1", "approvals": [lost, approval()], "more": 7}
    api.answer("GET /v1/approvals", found)
    assert main.run(["approval", "list"]) == 0
    streams = capsys.readouterr()
    assert "7 more are not shown" in streams.err
    assert "approve|deny" in streams.out
    assert "rerun|done|fail" in streams.out
    api.answer("GET /v1/approvals/a-4", lost)
    assert main.run(["approval", "show", "a-4"]) == 0
    assert "it happened: go on as if it had completed" in capsys.readouterr().out
    answered = {**lost, "state": "approved", "option": "done", "by": "me"}
    api.answer("POST /v1/approvals/a-4/answer", answered)
    assert main.run(["approval", "answer", "a-4", "done"]) == 0
    assert api.asked[-1][2] == {"option": "done"}
    assert "answered: done by me" in capsys.readouterr().out
    closed = {"code": "approval.closed", "message": "answered already", "status": 409}
    api.answer("POST /v1/approvals/a-4/answer", closed, 409)
    assert main.run(["approval", "answer", "a-4", "fail"]) == 1


def test_a_gate_shows_what_would_be_done(api: Api, capsys: Output) -> None:
    options = ["approve", "deny", "half open"]
    gate = approval(options=options, on_expiry="deny", four_eyes=True)
    api.answer("GET /v1/approvals/a-3", gate)
    assert main.run(["approval", "show", "a-3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:9] == [
        "  Opens the main valve",
        "  run r-1-abcd, action valve, risk high",
        '  params  {"pin": 17, "value": 1}',
        "  nodes   pi-garden",
        "  approve it runs",
        "  deny    it does not run: the action fails",
        "  half open it runs; the choice is recorded",
        "  0.0s left, then: deny",
    ]
    assert lines[9:] == [
        "  who submitted the run may not answer",
        "  imlmesh approval approve a-3",
    ]


@pytest.mark.parametrize("verb", ["approve", "deny"])
def test_approve_and_deny_are_short_for_gates(api: Api, capsys: Output, verb: str) -> None:
    api.answer("GET /v1/approvals/a-3", approval())
    told = approval(state="approved", option=verb, by="me")
    api.answer("POST /v1/approvals/a-3/answer", told)
    assert main.run(["approval", verb, "a-3"]) == 0
    assert api.asked[-1][2] == {"option": verb}
    api.answer("GET /v1/approvals/a-4", approval("a-4", "lost_effect", message="Did it happen?"))
    capsys.readouterr()
    assert main.run(["approval", verb, "a-4"]) == 3
    err = capsys.readouterr().err
    assert "error[approval.option]: a-4 is no gate: Did it happen?" in err
    assert "rerun, done, fail" in err
    assert "imlmesh approval answer a-4 OPTION" in err


class Answers:
    """Takes the place of the client of a live view."""

    def __init__(self, shown: dict[str, Any]) -> None:
        self.shown = shown
        self.given: queue.Queue[tuple[str, Any]] = queue.Queue()

    def get(self, _path: str) -> dict[str, Any]:
        return self.shown

    def post(self, path: str, body: Any) -> None:
        self.given.put((path, body))


async def test_a_second_press_answers_no_gate_that_was_not_seen() -> None:
    first, second = approval("a-1"), approval("a-2")
    answers = Answers(run("running", approvals=[first, second]))
    view = Waves(answers, answers.shown, True)  # type: ignore[arg-type]
    view.press("a")
    view.press("a")
    assert await asyncio.to_thread(answers.given.get, timeout=5) == (
        "approvals/a-1/answer",
        {"option": "approve"},
    )
    answers.shown = run("running", approvals=[{**first, "state": "approved"}, second])
    await view.finish()
    view.press("x")
    view.press("d")
    assert await asyncio.to_thread(answers.given.get, timeout=5) == (
        "approvals/a-2/answer",
        {"option": "deny"},
    )
    assert answers.given.empty()


def test_a_terminal_that_is_not_ours_has_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        assert terminal.isatty()
        assert not has_keys()
    os.close(ours)


async def test_a_large_run_is_fetched_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(run("running"))
    view = Waves(answers, answers.shown, "")  # type: ignore[arg-type]
    now_s, slept_s = [0.0], asyncio.Queue[float]()

    async def finish() -> None:
        now_s[0] += 0.5

    monkeypatch.setattr(view, "finish", finish)
    monkeypatch.setattr(live, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(live.asyncio, "sleep", slept_s.put)
    view.take(ServerEvent("change", 1, {"kind": "run-created", "run": "r"}))
    refreshing = asyncio.create_task(view.refresh())
    assert await asyncio.wait_for(slept_s.get(), 5) == 2.0
    refreshing.cancel()


def test_a_lost_effect_is_not_answered_by_a_key() -> None:
    answers = Answers(run("running", approvals=[approval("a-4", "lost_effect")]))
    Waves(answers, answers.shown, True).press("a")  # type: ignore[arg-type]
    assert answers.given.empty()


def test_who_submitted_may_not_answer(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/approvals/a-3", approval())
    problem = {"code": "approval.four_eyes", "message": "you submitted the run", "status": 403}
    api.answer("POST /v1/approvals/a-3/answer", problem, 403)
    assert main.run(["approval", "approve", "a-3"]) == 6


def test_memory_is_listed_read_written_deleted(api: Api, capsys: Output) -> None:
    entry = {"session": "garden", "key": "limit", "size": 4, "at_ms": START_MS, "by": "me"}
    api.answer("GET /v1/memory", {"schema": "imlmesh.memory-list/1", "entries": [entry]})
    assert main.run(["memory", "list", "--session", "garden"]) == 0
    assert "session=garden" in api.asked[-1][1]
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["limit", "garden", "4"]
    found = {"schema": "imlmesh.memory/1", **entry, "value": {"a": 1}}
    api.answer("GET /v1/memory/a%2Fb", found)
    assert main.run(["memory", "get", "a/b"]) == 0
    assert json.loads(capsys.readouterr().out) == {"a": 1}
    api.answer("PUT /v1/memory/limit", found)
    for words, value in ((["0.4"], 0.4), (["hello"], "hello"), (["01", "--text"], "01")):
        assert main.run(["memory", "set", "limit", *words]) == 0
        assert api.asked[-1][2] == {"value": value}
        # the orchestrator knows what the usual session is called
        assert api.asked[-1][1] == "/v1/memory/limit"
    api.answer("DELETE /v1/memory/limit", {"session": "garden", "key": "limit"})
    assert main.run(["memory", "delete", "limit", "--session", "garden"]) == 0
    assert "session=garden" in api.asked[-1][1]
    missing = {"code": "memory.not_found", "message": "no key", "status": 404}
    api.answer("GET /v1/memory/limit", missing, 404)
    assert main.run(["memory", "get", "limit"]) == 3


WRITE = {
    "module": "iot",
    "action": "digital_write",
    "description": "Set a pin.",
    "params": {
        "properties": {
            "pin": {"type": "integer", "minimum": 0, "maximum": 27},
            "value": {"enum": [0, 1]},
            "note": {"type": "string", "default": ""},
        },
        "required": ["pin", "value"],
    },
    "returns": ["pin", "value"],
    "effect": "physical",
    "permission": "local_worker",
    "impact": 0.5,
    "claims": ["gpio:{pin}"],
    "vouch": False,
    "undo": None,
    "nodes": ["pi-bed"],
}


def test_actions_are_listed_and_shown(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/actions", {"schema": "imlmesh.action-list/1", "actions": [WRITE]})
    assert main.run(["action", "list", "iot"]) == 0
    assert "module=iot" in api.asked[-1][1]
    assert "iot.digital_write  pin value [note]" in capsys.readouterr().out
    api.answer("GET /v1/actions/iot/digital_write", {"schema": "imlmesh.action/1", **WRITE})
    assert main.run(["action", "show", "iot.digital_write"]) == 0
    streams = capsys.readouterr()
    rows = [line.split() for line in streams.out.splitlines()]
    assert ["pin", "integer", "0..27", "required", "-"] in rows
    assert ["note", "string", '""', "-"] in rows
    assert "imlmesh action call iot.digital_write pin=… value=…" in streams.err
    assert main.run(["action", "show", "digital_write"]) == 2


def test_a_call_is_a_plan_of_one_and_prints_its_result(api: Api, capsys: Output) -> None:
    api.answer("GET /v1/actions/iot/digital_write", WRITE)
    api.answer("POST /v1/runs", {"run": "r-1-abcd", "seq": 1, "warnings": []}, 202)
    done = run()
    done["actions"] = [action("call", result={"pin": 17, "name": "valve\n"})]
    api.answer("GET /v1/runs/r-1-abcd", done)
    asked = {"seq": 2, "at_ms": START_MS, "run": "r-1-abcd", "kind": "approval-asked"}
    asked |= {"text": "a-3 asks: sure? (approve, deny)", "approval": "a-3"}
    api.streams.append(f"event: change\nid: 2\ndata: {json.dumps(asked)}\n\n" + END)
    words = ["action", "call", "iot.digital_write", "pin=17", "value=1", "--node", "pi-bed"]
    assert main.run(words) == 0
    plan = json.loads(next(body["text"] for key, _, body in api.asked if key == "POST /v1/runs"))
    assert plan["actions"] == [
        {
            "id": "call",
            "module": "iot",
            "action": "digital_write",
            "params": {"pin": 17, "value": 1},
            "target_node": "pi-bed",
        }
    ]
    streams = capsys.readouterr()
    assert streams.out == "pin   17\nname  valve\n"
    assert "? a-3 asks: sure?" in streams.err
    api.streams.append(END)
    assert main.run([*words, "-o", "json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema"], record["run"], record["result"]["pin"]) == (
        "imlmesh.call/1",
        "r-1-abcd",
        17,
    )


def test_a_call_that_fails_says_why_and_exits_so(api: Api, capsys: Output) -> None:
    error = {"code": "approval.denied", "message": "somebody said no"}
    api.answer("GET /v1/actions/iot/digital_write", WRITE)
    api.answer("POST /v1/runs", {"run": "r-1-abcd", "seq": 1, "warnings": []}, 202)
    failed = run("failed", error=error)
    failed["actions"] = [action("call", "failed", error=error)]
    api.answer("GET /v1/runs/r-1-abcd", failed)
    api.streams.append(END)
    assert main.run(["action", "call", "iot.digital_write", "pin=17", "value=1"]) == 7
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "call on pi: somebody said no [approval.denied]" in streams.err


def test_an_error_as_yaml(api: Api, capsys: Output) -> None:
    assert main.run(["run", "show", "r-9", "-o", "yaml"]) == 3
    assert capsys.readouterr().err.startswith("schema: imlmesh.error/1\nerrors:\n- code: run.not_")
