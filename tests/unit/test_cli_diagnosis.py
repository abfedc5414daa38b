"""How errors look, and which exit code each has."""

import pytest

from imlmesh import diagnosis
from imlmesh.diagnosis import error_of, format_record
from imlmesh.exits import MEANING, ExitCode, exit_code_of, exit_code_of_run
from imlmesh_protocol.errors import CODES, InputError, Place

LINES = ("actions:", "  - id: read", "    target_group: soil-probe", "\tx")
RECORD = {
    "code": "place.no_group",
    "message": 'no node is in group "soil-probe"',
    "hint": "imlmesh group list",
    "file": "plan.yaml",
    "line": 3,
    "column": 19,
    "end_line": 3,
    "end_column": 29,
}


@pytest.fixture(autouse=True)
def _plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_file_lines", lambda _file: LINES)
    monkeypatch.setenv("NO_COLOR", "1")


def test_an_error_shows_code_place_marked_line_and_what_to_try() -> None:
    assert format_record("error", RECORD, 80) == [
        'error[place.no_group]: no node is in group "soil-probe"',
        "  --> plan.yaml:3:19",
        "3 |     target_group: soil-probe",
        "  |                   ^^^^^^^^^^",
        "  try: imlmesh group list",
    ]


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    record = {**RECORD, "message": "action \x1b]0;owned\x07", "hint": "\x9b2J", "file": "\x1b[2J"}
    text = "\n".join(format_record("error", record, 80))
    assert not [char for char in text if (char < " " and char != "\n") or "\x7f" <= char <= "\x9f"]
    assert "action ␛]0;owned␇" in text


def test_the_caret_stays_under_the_place_in_a_narrow_window() -> None:
    lines = format_record("error", RECORD, 26)
    assert max(len(line) for line in lines[2:4]) <= 26
    source, caret = lines[2:4]
    start, end = caret.index("^"), caret.rindex("^") + 1
    assert source[start:end].startswith("soil")


def test_a_span_over_several_lines_is_marked_to_the_end_of_its_first() -> None:
    record = {**RECORD, "line": 2, "column": 3, "end_line": 4}
    assert format_record("error", record, 80)[2:4] == [
        "2 |   - id: read",
        "  |   ^^^^^^^^^^",
    ]


def test_control_characters_of_a_plan_do_not_reach_the_terminal() -> None:
    record = {**RECORD, "line": 4, "column": 2, "end_line": 4, "end_column": 3}
    assert format_record("error", record, 80)[2:4] == ["4 |  x", "  |  ^"]


def test_a_place_beyond_the_file_shows_no_line() -> None:
    assert format_record("error", {**RECORD, "line": 9}, 80) == [
        'error[place.no_group]: no node is in group "soil-probe"',
        "  --> plan.yaml:9:19",
        "  try: imlmesh group list",
    ]


def test_a_pointer_is_the_place_of_what_has_no_file() -> None:
    record = {"code": "plan.field", "message": "no", "pointer": "/actions/0", "hint": ""}
    assert format_record("error", record, 80) == ["error[plan.field]: no", "  --> /actions/0"]


def test_a_record_of_the_api_becomes_the_error_it_was() -> None:
    error = InputError("plan.cycle", "a waits for b", place=Place("/actions/1", "p.yaml", 3, 4))
    again = error_of(error.as_record())
    assert (again.code, again.place, again.hint) == (error.code, error.place, error.hint)
    assert error_of({"code": "of.tomorrow", "message": "new"}).code == "internal"


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("usage", 2),
        ("plan.cycle", 3),
        ("place.unknown_node", 3),
        ("place.empty_group", 3),
        ("node.not_found", 3),
        ("place.no_node", 4),
        ("orchestrator.unreachable", 5),
        ("broker.missing", 5),
        ("link.tls", 5),
        ("access.denied", 6),
        ("trust.mode", 6),
        ("broker.unsafe", 6),
        ("broker.lists", 6),
        ("orchestrator.running", 1),
        ("run.ended", 1),
        ("run.not_ended", 1),
        ("run.retried", 1),
        ("run.not_paused", 1),
        ("plan.fingerprint", 3),
        ("plan.nonce_reused", 3),
        ("memory.not_found", 3),
        ("approval.option", 3),
        ("approval.four_eyes", 6),
        ("internal", 70),
    ],
)
def test_exit_codes_of_errors(code: str, exit_code: int) -> None:
    assert code in CODES
    assert exit_code_of(code) == exit_code


@pytest.mark.parametrize(
    ("state", "error", "exit_code"),
    [
        ("completed", None, 0),
        ("failed", "driver.failed", 1),
        ("failed", "plan.cycle", 1),
        ("failed", "place.no_node", 4),
        ("failed", "action.failed_by_person", 7),
        ("failed", "approval.denied", 7),
        ("failed", "approval.expired", 7),
        ("cancelled", None, 9),
    ],
)
def test_exit_codes_of_runs(state: str, error: str | None, exit_code: int) -> None:
    assert exit_code_of_run(state, error) == exit_code


def test_every_exit_code_has_a_meaning() -> None:
    assert set(MEANING) == set(ExitCode)
