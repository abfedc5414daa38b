"""The verbs of the command line against a small API that answers as the orchestrator does."""

from __future__ import annotations

import json
import socketserver
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cli_records
from cli_records import action, node
from imlmesh import main
from imlmesh_runtime.paths import ApiAddress, Home, write_api

if TYPE_CHECKING:
    from conftest import Api

NOW_MS = 1_700_000_000_000
PLAN = """\
protocol_version: "2.0"
plan_id: two
description: Two actions
actions:
  - {id: look, module: os_exec, action: get_system_info}
"""


def run(state: str = "completed", **fields: Any) -> dict[str, Any]:
    """A run of one action that has `state`."""
    look = action("look", state, line=5, column=5)
    head = {"run": "r-1-abcd", "plan_id": "two", "file": "two.yaml", "description": "Two actions"}
    ended = {"state": state, "ended_at_ms": NOW_MS + 1_000}
    return cli_records.run([look], **{**head, **ended, **fields})


def change(seq: int, text: str, **fields: Any) -> str:
    data = {"seq": seq, "at_ms": NOW_MS, "run": "r-1-abcd", "kind": "result-taken", "text": text}
    return f"event: change\nid: {seq}\ndata: {json.dumps({**data, **fields})}\n\n"


END = 'event: end\ndata: {"run": "r-1-abcd", "state": "completed"}\n\n'


@pytest.fixture
def plan(tmp_path: Path) -> str:
    path = tmp_path / "two.yaml"
    path.write_text(PLAN)
    return str(path)


def submitted(api: Api, state: str = "completed", **fields: Any) -> None:
    body = {"schema": "imlmesh.submitted/1", "run": "r-1-abcd", "seq": 1, "warnings": []}
    api.answer("POST /v1/runs", body, 202)
    api.answer("GET /v1/runs/r-1-abcd", run(state, **fields))


def test_nodes_with_problems_come_first(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("pi-bed"), node("pi-roof", "lost"), node("desk", problems=["disk 91%"])]
    api.answer("GET /v1/nodes", {"schema": "imlmesh.node-list/1", "nodes": nodes})
    assert main.run(["node", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["pi-roof", "desk", "pi-bed"]
    assert "✖ lost" in lines[1]
    assert lines[4].startswith("2 need attention:  pi-roof lost  ·  desk disk 91%")


def test_lists_as_json_and_jsonl(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    found = {"schema": "imlmesh.node-list/1", "nodes": [node("a"), node("b")]}
    api.answer("GET /v1/nodes", found)
    assert main.run(["node", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert main.run(["-o", "jsonl", "node", "list"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["schema"], row["node"]) for row in rows] == [
        ("imlmesh.node/1", "a"),
        ("imlmesh.node/1", "b"),
    ]


def test_one_node_and_its_actions(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    spec = {
        "module": "iot",
        "action": "digital_read",
        "effect": "pure",
        "permission": "readonly",
        "impact": 0.1,
        "description": "Read a pin.",
        "params": {"properties": {"pin": {}, "pull": {}}, "required": ["pin"]},
        "returns": ["value"],
    }
    refused = {"received": {"message.retained": 2}, "sent": {}}
    more = {"evidence": [], "refused": refused, "actions": [spec]}
    api.answer("GET /v1/nodes/pi", {"schema": "imlmesh.node/1", **node("pi"), **more})
    assert main.run(["node", "show", "pi", "--actions"]) == 0
    text = capsys.readouterr().out
    assert "no temperature" in text
    assert "of what came to it: 2 message.retained" in text
    assert "iot.digital_read  pin [pull]" in text


def test_labels_are_typed_and_removed(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("POST /v1/nodes/pi/labels", node("pi", labels={"pins": 3}))
    assert main.run(["node", "label", "pi", "pins=3", "site=garden", "old="]) == 0
    assert api.asked[-1][2] == {"labels": {"pins": 3, "site": "garden", "old": None}}
    assert capsys.readouterr().out == "pi: pins=3\n"
    assert main.run(["node", "label", "pi", "nonsense"]) == 2


def test_groups(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("PUT /v1/groups/garden", {"group": "garden", "nodes": []})
    assert main.run(["group", "set", "garden", "pi-bed", "pi-roof", "pi-bed"]) == 0
    assert capsys.readouterr().out == "garden: pi-bed, pi-roof\n"
    assert api.asked[-1][2] == {"nodes": ["pi-bed", "pi-roof"]}
    assert main.run(["group", "set", "garden", "--none"]) == 0
    assert api.asked[-1][2] == {"nodes": []}
    assert main.run(["group", "set", "garden"]) == 2
    capsys.readouterr()
    members = [{"node": "a", "alias": "a", "liveness": state} for state in ("online", "lost")]
    groups = [
        {"group": "well", "nodes": members[:1]},
        {"group": "ill", "nodes": members},
    ]
    api.answer("GET /v1/groups", {"schema": "imlmesh.group-list/1", "groups": groups})
    assert main.run(["group", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:2] == ["ill", "1/2"]


def test_status_puts_problems_first(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    health = cli_records.health(
        NOW_MS,
        broker={"connected": False, "address": "127.0.0.1:8883", "error": "refused"},
        nodes={"online": 1, "suspect": 0, "lost": 1, "offline": 0},
        approvals={"pending": 1},
    )
    approval = {"approval": "a-3", "run": "r-1-abcd", "message": "did it happen?"}
    api.answer("GET /v1/health", health)
    api.answer("GET /v1/nodes", {"nodes": [node("pi"), node("roof", "lost")]})
    api.answer("GET /v1/approvals", {"approvals": [approval]})
    assert main.run(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "! broker 127.0.0.1:8883 is not connected: refused"
    assert lines[2] == "! run r-1-abcd waits for you: did it happen?"
    assert lines[3] == "    try: imlmesh approval show a-3"
    assert lines[4] == "! node roof is lost"
    assert "✖ 1 lost  ✔ 1 online" in "\n".join(lines)
    assert main.run(["status", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 3


def test_a_run_is_followed_line_by_line_without_a_terminal(
    api: Api, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(api)
    api.streams.append(change(2, "look was sent to pi") + change(3, "look completed") + END)
    assert main.run(["plan", "run", plan]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ", 1)[1] for line in lines[:2]] == [
        "look was sent to pi",
        "look completed",
    ]
    assert lines[-1] == "✔ r-1-abcd completed after 1.0s   1 completed"
    assert api.asked[0][2] == {"text": PLAN, "file": plan, "priority": 0, "expect": None}
    assert api.stream_queries[0] == {"run": ["r-1-abcd"], "after": ["0"]}


def test_a_broken_stream_is_resumed_where_it_broke(
    api: Api, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(api)
    api.streams += [": ping\n\n" + change(2, "first"), change(3, "second") + END]
    assert main.run(["plan", "run", plan]) == 0
    assert [query["after"] for query in api.stream_queries] == [["0"], ["2"]]
    out = capsys.readouterr().out
    assert out.count("first") == out.count("second") == 1


def test_events_of_a_run_as_json_lines(
    api: Api, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(api)
    api.streams.append(change(2, "sent") + END)
    assert main.run(["plan", "run", plan, "-o", "jsonl"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["event"], row["seq"]) for row in rows] == [("change", 2), ("end", None)]
    assert {row["schema"] for row in rows} == {"imlmesh.event/1"}


def test_json_is_the_run_alone(api: Api, plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(api)
    api.streams.append(change(2, "sent") + END)
    assert main.run(["plan", "run", plan, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == "r-1-abcd"


@pytest.mark.parametrize(
    ("state", "error", "code"),
    [
        ("failed", {"code": "driver.failed", "message": "no"}, 1),
        ("failed", {"code": "place.no_node", "message": "nobody"}, 4),
        ("failed", {"code": "action.failed_by_person", "message": "no"}, 7),
        ("cancelled", None, 9),
    ],
)
def test_the_exit_code_is_the_run_s(
    api: Api, plan: str, state: str, error: dict[str, str] | None, code: int
) -> None:
    submitted(api, state, error=error)
    api.streams.append(END)
    assert main.run(["plan", "run", plan]) == code


def test_waiting_ends_with_its_time_and_the_run_goes_on(
    api: Api, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(api, "running", ended_at_ms=None)
    assert main.run(["run", "watch", "r-1-abcd", "--timeout", "0.2"]) == 8
    assert "imlmesh run watch r-1-abcd" in capsys.readouterr().err


def test_detach_prints_the_id_alone(
    api: Api, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(api)
    assert main.run(["plan", "run", plan, "--detach"]) == 0
    streams = capsys.readouterr()
    assert streams.out == "r-1-abcd\n"
    assert "imlmesh run cancel r-1-abcd" in streams.err


def test_a_refused_plan_shows_all_errors(
    api: Api, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {"code": "place.no_group", "message": "no group x", "file": plan, "line": 5, "column": 5},
        {"code": "plan.cycle", "message": "a waits for a", "hint": "remove it"},
    ]
    problem = {**records[0], "status": 422, "errors": records, "warnings": []}
    api.answer("POST /v1/runs", problem, 422)
    assert main.run(["plan", "run", plan]) == 3
    err = capsys.readouterr().err
    assert f"error[place.no_group]: no group x\n  --> {plan}:5:5\n5 | " in err
    assert "error[plan.cycle]: a waits for a" in err
    assert main.run(["plan", "run", plan, "--json"]) == 3
    assert [e["code"] for e in json.loads(capsys.readouterr().err)["errors"]] == [
        "place.no_group",
        "plan.cycle",
    ]


def test_the_nearest_node_is_named(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "node.not_found", "message": 'no node "pi-bad"', "status": 404}
    api.answer("GET /v1/nodes/pi-bad", problem, 404)
    api.answer("GET /v1/nodes", {"nodes": [node("pi-bed"), node("desk")]})
    assert main.run(["node", "show", "pi-bad"]) == 3
    assert "did you mean 'pi-bed'?" in capsys.readouterr().err


def test_runs_listed_shown_told_cancelled(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    waiting = {**run("running", ended_at_ms=None), "run": "r-2-wait", "actions": 4}
    waiting["waits_for"] = ["approval a-3"]
    runs = [{**run(), "actions": 1}, waiting]
    api.answer("GET /v1/runs", {"schema": "imlmesh.run-list/1", "runs": runs})
    assert main.run(["run", "list", "--limit", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("r-2-wait")
    assert "limit=2" in api.asked[-1][1]

    failed = run("failed")
    failed["actions"][0]["error"] = {"code": "driver.busy", "message": "held"}
    api.answer("GET /v1/runs/r-1", failed)
    assert main.run(["run", "show", "r-1"]) == 0
    assert "look on pi: held [driver.busy]  two.yaml:5" in capsys.readouterr().out

    entry = {"seq": 2, "at_ms": NOW_MS, "kind": "x", "cause": "submitted", "text": "look was sent"}
    api.answer("GET /v1/runs/r-1/story", {"schema": "imlmesh.story/1", "entries": [entry]})
    assert main.run(["run", "story", "r-1"]) == 0
    assert "look was sent" in capsys.readouterr().out

    api.answer("POST /v1/runs/r-1/cancel", {"run": "r-1-abcd", "state": "cancelling"}, 202)
    assert main.run(["run", "cancel", "r-1"]) == 0
    assert capsys.readouterr().out == "r-1-abcd cancelling\n"


def test_logs_carry_action_and_node(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("GET /v1/runs/r-1", run())
    line = {"at_ms": NOW_MS, "action": "look", "node": "pi", "stream": "stdout", "line": "hi"}
    found = {"schema": "imlmesh.logs/1", "lines": [line], "dropped": 2}
    api.answer("GET /v1/runs/r-1-abcd/logs", found)
    assert main.run(["run", "logs", "r-1", "look"]) == 0
    streams = capsys.readouterr()
    assert streams.out.endswith(" look@pi hi\n")
    assert "2 older lines were dropped" in streams.err
    assert "action=look" in api.asked[-1][1]


def test_events_of_a_run_are_printed_with_their_kind(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = {"at_ms": NOW_MS, "node": "pi", "code": "signature.invalid", "message": "no"}
    api.streams.append(
        change(9, "look completed") + f"event: refusal\ndata: {json.dumps(refusal)}\n\n" + END
    )
    assert main.run(["event", "tail", "--run", "r-1-abcd", "--after", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[1:] == ["9", "result-taken", "r-1-abcd", "look", "completed"]
    assert lines[1].endswith("refusal            pi: signature.invalid: no")


def test_a_kind_of_event_that_there_is_not_is_refused(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["event", "tail", "--run", "r-1-abcd", "--kind", "change", "--kind", "refusals"]
    assert main.run(words) == 2
    shown = capsys.readouterr()
    assert "'refusals' is no kind of event; there are change, log, progress" in shown.err
    assert api.stream_queries == []


def test_a_plan_is_checked_against_the_mesh(
    api: Api, plan: str, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"code": "place.no_node", "message": "nobody", "hint": "imlmesh node list"}
    found = {"schema": "imlmesh.check/1", "plan_id": "two", "digest": "d" * 64, "actions": 1}
    api.answer("POST /v1/plans/check", {**found, "waves": [], "errors": [record], "warnings": []})
    assert main.run(["plan", "check", plan, "--mesh"]) == 4
    assert api.asked[-1][2] == {"text": PLAN, "file": plan}
    assert "error[place.no_node]: nobody" in capsys.readouterr().err


def test_an_unreadable_token_is_not_allowed(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "home" / "run" / "api.token")
    write_api(Home(tmp_path / "home"), ApiAddress("http://127.0.0.1:9", None, missing))
    assert main.run(["status"]) == 6
    assert "error[access.denied]" in capsys.readouterr().err


def test_the_token_travels_with_every_call(api: Api, tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Guarded(api.RequestHandlerClass):  # type: ignore[misc, name-defined]
        def _answer(self, key: str, body: Any) -> None:
            seen.append(self.headers.get("Authorization"))
            super()._answer(key, body)

    class Loopback(socketserver.TCPServer):
        answers, asked = api.answers, api.asked

    with Loopback(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        home = Home(tmp_path / "home")
        home.api_token.write_text("secret\n")
        url = f"http://127.0.0.1:{server.server_address[1]}"
        write_api(home, ApiAddress(url, None, str(home.api_token)))
        main.run(["group", "list"])
    assert seen == ["Bearer secret"]


def test_an_answer_that_is_none_is_our_fault(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("GET /v1/groups", {"title": "boom"}, 500)
    assert main.run(["group", "list"]) == 70
    assert "the orchestrator answered 500" in capsys.readouterr().err


def test_an_empty_list_says_what_was_asked_for(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer("GET /v1/runs", {"schema": "imlmesh.run-list/1", "runs": []})
    assert main.run(["run", "list", "--state", "paused"]) == 0
    assert "no run is paused.   try: imlmesh run list" in capsys.readouterr().err
    assert main.run(["run", "list"]) == 0
    assert "no runs yet" in capsys.readouterr().err


def test_status_tells_why_silent_nodes_are_not_called_lost(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    silent = [f"pi-{n}" for n in range(7)]
    health = cli_records.health(NOW_MS, verdicts={"hears": False, "frozen": True, "silent": silent})
    api.answer("GET /v1/health", health)
    api.answer("GET /v1/nodes", {"nodes": [node("pi")]})
    api.answer("GET /v1/approvals", {"approvals": []})
    assert main.run(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "! the broker does not carry our own messages: no node is judged"
    assert lines[2] == (
        "! 7 nodes fell silent together, none is called lost: pi-0, pi-1, pi-2, pi-3, pi-4 ..."
    )
    assert lines[3] == "    try: imlmesh node judge --reason 'they are gone'"


def test_status_tells_which_nodes_obey_a_later_orchestrator(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answer("GET /v1/nodes", {"nodes": [node("pi")]})
    api.answer("GET /v1/approvals", {"approvals": []})
    above = [{"node": f"pi-{n}", "epoch": NOW_MS + n * 1_800_000} for n in range(7)]
    for outranked, said in (
        (above, f"7 nodes that heard of {NOW_MS + 10_800_000} (3h ahead of our clock): pi-0"),
        (above[:1], f"1 node that heard of {NOW_MS}: pi-0; a newer orchestrator runs, or"),
    ):
        api.answer("GET /v1/health", cli_records.health(NOW_MS, epoch=7, outranked=outranked))
        assert main.run(["status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"! our epoch 7 is refused by {said}")
        assert lines[1] == "    try: imlmesh docs epoch.behind"


def test_a_person_judges_silent_nodes(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("POST /v1/silence", {"schema": "imlmesh.silence/1", "nodes": 3})
    assert main.run(["node", "judge", "--reason", "the fuse of hall 2"]) == 0
    assert capsys.readouterr().out == "3 silent nodes will be called lost within a heartbeat\n"
    assert main.run(["node", "judge"]) == 2
