"""A run as lines: waves, questions, the end."""

from typing import Any

import pytest

from cli_records import START_MS, action, placed, run
from imlmesh.settings import settings
from imlmesh.waves import head_line, question_lines, undo_lines, wave_lines


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


def test_a_wave_of_which_nothing_ran_or_stayed_has_no_tick() -> None:
    found = run(
        [action("a", "rolled_back"), action("b", "skipped", ended_at_ms=START_MS)],
        [action("c", "skipped")],
        state="failed",
    )
    assert lines(found) == ["wave 1/2 ↶ 2/2   3.1s", "wave 2/2 - 1/1  c"]


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


def test_members_are_counted_and_those_that_went_wrong_named() -> None:
    members = [
        placed("pi-a", "completed"),
        placed("pi-b", "failed", "driver.busy"),
        placed("pi-c", "running"),
        placed("pi-d", "pending"),
    ]
    read = action("read", "running", mode="all", members=members)
    assert lines(run([read])) == [
        "wave 1/1 ● 0/1   5.0s  read 1/4 nodes: pi-b failed (driver.busy), pi-c running"
    ]


def test_a_retry_says_when_and_why() -> None:
    again = action(
        "copy",
        "waiting",
        tries=1,
        retry_at_ms=START_MS + 9_000,
        error={"code": "driver.timeout", "message": "too slow"},
    )
    assert lines(run([again])) == ["wave 1/1 ◔ 0/1   5.0s  copy: try 2 in 4.0s (driver.timeout)"]


def test_a_gate_is_named_where_it_holds_the_wave() -> None:
    valve = action("valve", "awaiting_approval", node=None, planned_at_ms=None, approval="a-3")
    assert lines(run([valve])) == ["wave 1/1 ◔ 0/1  valve: waits for approval a-3"]


def test_what_is_undone_has_a_line_of_its_own() -> None:
    assert undo_lines(run([action("read")])) == []
    append = action(
        "append", "rolled_back", compensations=[placed("pi", "completed"), placed("bed", "running")]
    )
    copy = action("copy", compensations=[placed("pi", "pending")])
    assert [line.plain for line in undo_lines(run([append, copy]))] == [
        "undo ● 1/3  append on bed: running"
    ]


def test_a_run_says_that_it_starts_later_and_what_it_retries() -> None:
    later = run([action("a", "pending")], state="pending", starts_at_ms=START_MS + 60_000)
    assert head_line(later, START_MS).plain.endswith("starts in 60s")
    assert "retries r-3-wxyz" in head_line(run([action("a")], of="r-3-wxyz"), START_MS).plain
