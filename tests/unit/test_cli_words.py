"""What people type: lengths of time, points in time, params; and codes they look up."""

from datetime import datetime
from typing import Any

import pytest

from imlmesh import render
from imlmesh.calling import params_of
from imlmesh.client import ServerEvent
from imlmesh.explained import EXAMPLES, MEANS
from imlmesh.fleet import schema_text
from imlmesh.foreign import as_yaml
from imlmesh.live import Lines
from imlmesh.loglines import Shown
from imlmesh.nouns.permit import _for_ms
from imlmesh.spans import at_ms_of, seconds_of
from imlmesh.typed import json_or_text, typed
from imlmesh_protocol.errors import CODES, InputError
from imlmesh_protocol.limits import PERMIT_LONGEST_MS

NOW = datetime(2026, 3, 1, 14, 5).astimezone()
NOW_MS = round(NOW.timestamp() * 1_000)
ANY_OF = {"anyOf": [{"type": "integer"}, {"type": "null"}]}
WORDS = {"anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "null"}]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("0.5", 0.5),
        ("250ms", 0.25),
        ("5m", 300.0),
        ("1h30m", 5_400.0),
        ("1d", 86_400),
    ],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds
    assert seconds_of(None) is None


@pytest.mark.parametrize("text", ["", "soon", "5 m", "-3", "5x", "m5"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(InputError) as caught:
        seconds_of(text)
    assert caught.value.code == "usage"


@pytest.mark.parametrize(("text", "ms"), [("1s", 1_000), ("30d", PERMIT_LONGEST_MS)])
def test_how_long_a_permit_holds(text: str, ms: int) -> None:
    assert _for_ms(text) == ms


@pytest.mark.parametrize("text", ["0", "60d", "30d1s"])
def test_a_permit_holds_no_longer_than_it_may(text: str) -> None:
    with pytest.raises(InputError, match="at most 30d") as refused:
        _for_ms(text)
    assert refused.value.code == "usage"


def test_points_in_time() -> None:
    assert at_ms_of("5m", NOW_MS) == NOW_MS - 300_000
    assert at_ms_of("14:00", NOW_MS) == NOW_MS - 300_000
    assert at_ms_of(NOW.isoformat(), NOW_MS) == NOW_MS
    # a time that this day has not had yet was yesterday's
    assert at_ms_of("14:10", NOW_MS) == NOW_MS - 86_400_000 + 300_000
    with pytest.raises(InputError):
        at_ms_of("25:00", NOW_MS)


@pytest.mark.parametrize(
    "text",
    [
        "99999999999d",
        "9" * 400 + "d",
        "1969-12-31T00:00:00Z",
        "0001-01-01",
        "9999-12-31T23:59:59-14:00",
    ],
)
def test_a_time_that_no_line_can_have_is_named(text: str) -> None:
    with pytest.raises(InputError) as caught:
        at_ms_of(text, NOW_MS)
    assert (caught.value.code, text in caught.value.message) == ("usage", True)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("17", {"type": "integer"}, 17),
        ("17", {"type": "string"}, "17"),
        ("0.5", {"type": "number"}, 0.5),
        ("true", {"type": "boolean"}, True),
        ("null", ANY_OF, None),
        ("many", ANY_OF, "many"),
        ("os,cpu", WORDS, ["os", "cpu"]),
        ('["os"]', WORDS, ["os"]),
        ("1,2", {"type": "array", "items": {"type": "integer"}}, [1, 2]),
        ("1", {"enum": [0, 1]}, 1),
        ("1", {"enum": ["0", "1"]}, "1"),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("hello", {}, "hello"),
        ("1", {}, 1),
    ],
)
def test_words_become_what_the_schema_asks_for(text: str, schema: Any, value: Any) -> None:
    found = typed(text, schema)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "{", "[" * 100_000])
def test_what_is_no_json_is_text(text: str) -> None:
    assert json_or_text(text) == text


def test_single_params_overlay_the_whole_object() -> None:
    schema = {"properties": {"pin": {"type": "integer"}, "name": {"type": "string"}}}
    found = params_of(["pin=4", "name=a=b"], '{"pin": 17, "value": 1}', schema)
    assert found == {"pin": 4, "value": 1, "name": "a=b"}


@pytest.mark.parametrize(
    ("words", "whole"),
    [(["pin"], None), (["=4"], None), (["pin=4", "pin=5"], None), ([], "[1]")],
)
def test_wrong_params_are_wrong_use(words: list[str], whole: str | None) -> None:
    with pytest.raises(InputError) as caught:
        params_of(words, whole, {})
    assert caught.value.code == "usage"


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "integer", "minimum": 0, "maximum": 27}, "integer 0..27"),
        ({"type": "integer", "minimum": 1}, "integer 1.."),
        ({"enum": [0, 1]}, "one of 0, 1"),
        (WORDS, "list of string or null"),
        ({}, "anything"),
    ],
)
def test_schemas_in_words(schema: dict[str, Any], text: str) -> None:
    assert schema_text(schema) == text


def test_every_code_is_explained_and_nothing_else() -> None:
    assert CODES.keys() - MEANS.keys() == set(), "explain these in cli/imlmesh/explained.py"
    assert MEANS.keys() - CODES.keys() == set()
    assert EXAMPLES.keys() <= CODES.keys()


def test_a_pipe_is_not_told_that_a_node_called_again(capsys: pytest.CaptureFixture[str]) -> None:
    render.console.cache_clear()
    lines = Lines()
    for kind, text in (
        ("node-returned", "pi opened session 1"),
        ("liveness-changed", "pi is lost"),
    ):
        lines.take(ServerEvent("change", 1, {"at_ms": 1, "run": None, "kind": kind, "text": text}))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.endswith("  pi is lost")


def log(number: int, action: str = "a") -> dict[str, Any]:
    return {"n": number, "action": action, "node": "pi", "line": ""}


def test_earlier_and_later_lines_meet_without_gap_or_double() -> None:
    shown = Shown()
    assert shown.new_of([log(4), log(5)]) == [log(4), log(5)]
    assert shown.missed_of({"dropped": 3, "lines": [log(4), log(5)]}) == 3
    assert not shown.lacks(log(5))
    assert not shown.lacks(log(6))
    assert shown.new_of([log(5)]) == []
    assert shown.new_of([log(6)]) == [log(6)]
    assert shown.lacks(log(8))
    assert shown.new_of([log(6), log(8)]) == [log(8)]


def test_what_was_dropped_before_it_could_be_shown_is_counted_once() -> None:
    shown = Shown()
    shown.new_of([log(1), log(2)])
    found = {"dropped": 7, "lines": [log(7), log(9), log(10)]}
    assert shown.new_of(found["lines"]) == found["lines"]
    # 3 to 6 and 8 are gone; of what was shown, nothing is missed
    assert shown.missed_of(found) == 5
    assert shown.missed_of(found) == 0


def test_lines_of_what_failed_later_are_new_whatever_came_meanwhile() -> None:
    shown = Shown()
    assert shown.new_of([log(5, "b")]) == [log(5, "b")]
    assert shown.new_of([log(2), log(5, "b")]) == [log(2)]


def test_yaml_is_safe_to_show_and_quotes_what_older_parsers_would_read_as_truth() -> None:
    text = as_yaml({"schema": "a/1", "t": "\x1b[2J\x9b", "answer": "no", "count": "1", "z": None})
    assert not {"\x1b", "\x9b"} & set(text)
    assert text.splitlines()[0] == "schema: a/1"
    assert 'answer: "no"' in text
    assert "count: '1'" in text
