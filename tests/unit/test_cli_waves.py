"""A run as lines: waves, questions, the end."""

from typing import Any

import pytest

from imlmesh.settings import settings
from imlmesh.waves import end_lines, head_line, question_lines, wave_lines

START_MS = 1_000_000


def action(name: str, state: str, **fields: Any) -> dict[str, Any]:
    begun = state not in ("pending", "skipped")
    ended = state in ("completed", "failed", "cancelled")
    found = {
        "id": name,
        "state": state,
        "node": "n-1" if begun else None,
        "node_alias": "pi" if begun else None,
        "attempt": 1,
        "planned_at_ms": START_MS if begun else None,
        "ended_at_ms": START_MS + 3_100 if ended else None,
        "reasons": None,
        "error": None,
        "line": None,
    }
    return {**found, **fields}


def run(*waves: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    actions = [action for wave in waves for action in wave]
    counts: dict[str, int] = {}
    for each in actions:
        counts[each["state"]] = counts.get(each["state"], 0) + 1
    found = {
        "run": "r-7-abcd",
        "plan_id": "evening",
        "state": "running",
        "submitted_at_ms": START_MS,
        "ended_at_ms": None,
        "waits_for": [],
        "unconfirmed": False,
        "file": "evening.yaml",
        "error": None,
        "waves": [[action["id"] for action in wave] for wave in waves],
        "actions": actions,
        "counts": counts,
    }
    return {**found, **fields}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    settings.reset()


def lines(found: dict[str, Any], **arguments: Any) -> list[str]:
    progress = arguments.pop("progress", {})
    return [line.plain for line in wave_lines(found, START_MS + 5_000, progress, **arguments)]


def test_each_wave_says_how_far_it_is() -> None:
    found = run(
        [action("read", "completed")],
        [action("decide", "running", attempt=2), action("count", "completed")],
        [action("valve", "pending")],
    )
    assert lines(found, progress={"decide": 0.4}) == [
        "wave 1/3 ✔ 1/1   3.1s",
        "wave 2/3 ● 1/2   5.0s  decide on pi (attempt 2) 40%",
        "wave 3/3 ◌ 0/1  valve",
    ]


def test_a_waiting_action_says_why() -> None:
    waiting = action(
        "a", "waiting", node=None, reasons={"n-1": "driver.busy", "n-2": "driver.busy"}
    )
    assert lines(run([waiting])) == ["wave 1/1 ◔ 0/1   5.0s  a: waiting (driver.busy)"]


def test_many_waves_show_the_open_ones() -> None:
    done = [[action(f"d{number}", "completed")] for number in range(20)]
    todo = [[action(f"t{number}", "pending")] for number in range(20)]
    shown = lines(run(*done, [action("now", "running")], *todo), room=4)
    assert shown[0] == "waves 1 to 19: 19 actions ended"
    assert shown[2] == "wave 21/41 ● 0/1   5.0s  now on pi"
    assert shown[-1] == "18 more waves"
    assert len(shown) == 6


def test_the_head_says_what_the_run_waits_for() -> None:
    found = run(waits_for=["approval a-3"])
    text = head_line(found, START_MS + 41_000).plain
    assert text == "r-7-abcd evening   ● running  41s   waits for approval a-3"


def test_a_question_names_the_command_that_answers_it() -> None:
    asked = {
        "approval": "a-3",
        "state": "pending",
        "message": "did feed happen?",
        "options": ["rerun", "done", "fail"],
        "on_expiry": "fail",
        "expires_at_ms": START_MS + 3_600_000,
    }
    answered = {**asked, "state": "approved"}
    assert [line.plain for line in question_lines([asked, answered], START_MS)] == [
        "? did feed happen?",
        "  answer: imlmesh approval answer a-3 OPTION   (rerun, done, fail)",
        "  60m left, then: fail",
    ]


def test_the_end_groups_failures_with_their_place() -> None:
    failed = action(
        "valve", "failed", error={"code": "driver.busy", "message": "pin 17 is busy"}, line=30
    )
    found = run(
        [action("read", "completed"), failed], state="failed", ended_at_ms=START_MS + 41_000
    )
    assert [line.plain for line in end_lines(found)] == [
        "✖ r-7-abcd failed after 41s   1 completed · 1 failed",
        "  valve on pi: pin 17 is busy [driver.busy]  evening.yaml:30",
        "  why:  imlmesh run story r-7-abcd",
        "  logs: imlmesh run logs r-7-abcd",
    ]


def test_an_unconfirmed_cancel_is_said() -> None:
    found = run([action("a", "cancelled")], state="cancelled", unconfirmed=True, ended_at_ms=1)
    text = "\n".join(line.plain for line in end_lines(found))
    assert "■ r-7-abcd cancelled" in text
    assert "has not confirmed" in text
