"""Entries of systemd's journal become records, whatever they hold."""

import json
from typing import Any

import pytest

from imlmesh.service_logs import _record, record_line

OWN = {"at": "2026-11-30T17:00:00.000+00:00", "level": "warning", "logger": "x", "message": "late"}


def entry(**fields: Any) -> dict[str, Any]:
    return {
        "__REALTIME_TIMESTAMP": "1796058000123456",
        "_SYSTEMD_UNIT": "imlmesh-a.service",
    } | fields


def test_a_line_of_ours_keeps_its_fields() -> None:
    record = _record(entry(MESSAGE=json.dumps(OWN | {"code": "link.down"})))
    assert record == {"unit": "imlmesh-a.service", **OWN, "code": "link.down"}
    assert record_line(record).plain.endswith("a late [link.down]")


def test_a_line_of_systemd_names_the_unit_that_it_is_about() -> None:
    record = _record(entry(MESSAGE="Started.", UNIT="imlmesh-b.service", PRIORITY="3"))
    assert record == {
        "at": "2026-11-30T17:00:00.123+00:00",
        "unit": "imlmesh-b.service",
        "level": "error",
        "message": "Started.",
    }


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (None, ""),
        ([104, 105, 255], "hi�"),
        (["one", "two"], "one two"),
        ("{}", "{}"),
        ("[1]", "[1]"),
        ('{"at": 1, "level": "info", "logger": "x", "message": "y"}', None),
        ("{" * 5_000, None),
    ],
)
def test_an_odd_message_is_shown_as_it_is(message: Any, text: str | None) -> None:
    record = _record(entry(MESSAGE=message))
    assert record["message"] == (message if text is None else text)
    assert record_line(record).plain.endswith(record["message"])
