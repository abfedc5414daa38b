"""`imlmesh telemetry`, bars and problems, against a small API that answers as the orchestrator does."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from cli_records import health, series
from imlmesh import main
from imlmesh.measured import sparkline

if TYPE_CHECKING:
    from conftest import Api

NOW_MS = time.time_ns() // 1_000_000


def answer(*found: dict[str, Any], **fields: Any) -> dict[str, Any]:
    head = {"schema": "imlmesh.telemetry-list/1", "tier": "raw", "truncated": False}
    times = {"since_ms": NOW_MS - 3_600_000, "until_ms": NOW_MS}
    return {**head, **times, "series": list(found), **fields}


def asked(api: Api) -> dict[str, str]:
    """The query of the last question."""
    return {name: value[0] for name, value in parse_qs(urlsplit(api.asked[-1][1]).query).items()}


def test_a_table_tells_how_it_went(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    even = series("iot.air", unit="", parts=[None] * 23 + [3.0])
    api.answer("GET /v1/telemetry", answer(series(), even))
    assert main.run(["telemetry", "query", "--node", "pi-garden", "--metric", "iot.*"]) == 0
    out, err = capsys.readouterr()
    head, soil, air = out.splitlines()
    assert head.split()[:4] == ["NODE", "METRIC", "LAST", "UNIT"]
    assert soil.split()[:4] == ["pi-garden", "iot.soil", "21", "%"]
    assert "9.25  15.5   21    120" in soil
    assert soil.endswith(" " * 12 + "▁▂▂▃▃▄▄▅▅▆▆▇")
    assert air.split()[3] == "-"
    assert air.endswith("▄")
    assert "60m of the tier raw" in err
    question = asked(api)
    assert (question["node"], question["metric"], question["tier"]) == ("pi-garden", "iot.*", "raw")
    assert 3_590_000 <= time.time_ns() // 1_000_000 - int(question["since_ms"]) <= 3_700_000


@pytest.mark.parametrize(("since", "tier"), [("6h", "raw"), ("7d", "minute"), ("30d", "hour")])
def test_without_a_word_the_tier_fits_the_time(api: Api, since: str, tier: str) -> None:
    api.answer("GET /v1/telemetry", answer())
    assert main.run(["telemetry", "query", "--since", since, "-q"]) == 0
    assert asked(api)["tier"] == tier
    assert main.run(["telemetry", "query", "--since", since, "--tier", "minute", "-q"]) == 0
    assert asked(api)["tier"] == "minute"


def test_data_for_scripts(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("GET /v1/telemetry", answer(series(), series("iot.air")))
    assert main.run(["telemetry", "query", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["series"][0]["metric"] == "iot.soil"
    assert main.run(["telemetry", "query", "-o", "jsonl"]) == 0
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [(row["schema"], row["metric"]) for row in rows] == [
        ("imlmesh.telemetry/1", "iot.soil"),
        ("imlmesh.telemetry/1", "iot.air"),
    ]


def test_nothing_measured_says_what_to_try(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answer("GET /v1/telemetry", answer())
    assert main.run(["telemetry", "query"]) == 0
    out, err = capsys.readouterr()
    assert (out, "try: imlmesh telemetry query --since 1d" in err) == ("", True)
    api.answer("GET /v1/telemetry", answer(tier="hour"))
    assert main.run(["telemetry", "query", "--tier", "hour"]) == 0
    assert "no hour that is over" in capsys.readouterr().err


def test_an_export_is_passed_through_as_it_comes(
    api: Api, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    api.answer("GET /v1/telemetry/export", "time,value")
    assert main.run(["telemetry", "export", "--since", "2h"]) == 0
    assert capfdbinary.readouterr().out == b'"time,value"'
    assert asked(api)["format"] == "csv"
    assert main.run(["telemetry", "export", "-o", "jsonl"]) == 0
    assert asked(api)["format"] == "jsonl"
    count = len(api.asked)
    assert main.run(["telemetry", "export", "-o", "yaml"]) == 2
    assert len(api.asked) == count


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--since", "soon"], 2),
        (["--since", "2099-01-01"], 2),
        (["--since", "1h", "--until", "2h"], 2),
        (["--tier", "day"], 2),
    ],
)
@pytest.mark.parametrize("verb", ["query", "export"])
def test_wrong_words_ask_nothing(api: Api, verb: str, words: list[str], code: int) -> None:
    assert main.run(["telemetry", verb, *words]) == code
    assert api.asked == []


def test_an_unknown_node_is_named(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {"code": "node.not_found", "message": 'no node "pi-gardn"', "status": 404}
    for path in ("telemetry", "telemetry/export"):
        api.answer(f"GET /v1/{path}", problem, 404)
    api.answer("GET /v1/nodes", {"nodes": [{"alias": "pi-garden", "node": "pi-1"}]})
    for verb in ("query", "export"):
        assert main.run(["telemetry", verb, "--node", "pi-gardn"]) == 3
        assert "did you mean 'pi-garden'" in capsys.readouterr().err


def test_status_names_what_is_refused_and_dropped(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = {"message.kind": 1, "signature.invalid": 12, "message.expired": 1}
    at_ms = {
        "message.kind": NOW_MS,
        "signature.invalid": NOW_MS - 20_000,
        "message.expired": NOW_MS - 3_600_000,
    }
    dropped = {"written": 7, "dropped": 500, "dropped_at_ms": NOW_MS - 1_000}
    found = health(
        NOW_MS,
        store={"behind": True, "outflow_rows": 12_000, "low": False, "waits": False},
        messages={"refused": refused, "refused_at_ms": at_ms},
        telemetry=dropped,
    )
    api.answer("GET /v1/health", found)
    api.answer("GET /v1/nodes", {"nodes": []})
    api.answer("GET /v1/approvals", {"approvals": []})
    assert main.run(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("!")]
    assert problems == [
        "! the store is behind: 12000 rows wait to be copied",
        "! 1 message or reading was refused: message.kind, the last one 0.0s ago",
        "! 12 messages or readings were refused: signature.invalid, the last one 20s ago",
        "! telemetry is dropped: 500 readings since the start",
    ]
    assert "    try: imlmesh event tail --kind refusal" in lines
    api.answer("GET /v1/health", health(NOW_MS))
    assert main.run(["status"]) == 0
    assert capsys.readouterr().out.startswith("✔ nothing needs attention")


def test_a_time_without_a_reading_is_a_gap() -> None:
    assert sparkline([None, 1.0, None, 3.0, 2.0]) == " ▁ ▇▄"
    assert sparkline([5.0, 5.0]) == "▄▄"
    assert sparkline([-1e100, 1e100]) == "▁▇"


def test_a_tier_that_there_is_none_of_is_told_without_words_of_libraries(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["telemetry", "query", "--tier", "week"]) == 2
    told = capsys.readouterr().err
    assert "Invalid value for '--tier': 'week' is not one of 'raw', 'minute', 'hour'." in told
