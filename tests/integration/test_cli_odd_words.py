"""Words that no mesh has, and lines that come late: the command line against a small API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from imlmesh import main
from imlmesh.client import ServerEvent
from imlmesh.exits import ExitCode
from imlmesh.loglines import Follower

if TYPE_CHECKING:
    from conftest import Api


@pytest.mark.parametrize(
    "words",
    [
        ("run", "show"),
        ("run", "story"),
        ("run", "logs"),
        ("run", "cancel"),
        ("run", "export"),
        ("run", "watch"),
        ("node", "show"),
        ("approval", "show"),
        ("approval", "deny"),
        ("memory", "get"),
        ("memory", "delete"),
    ],
)
@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_no_name_can_be_is_told_and_not_asked(
    api: Api, words: tuple[str, ...], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*words, name]) == ExitCode.INVALID
    assert "error[name.invalid]" in capsys.readouterr().err
    assert api.asked == []


def test_a_name_is_never_another_path(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["run", "show", "r-1/story"]) == ExitCode.INVALID
    assert main.run(["group", "set", "..", "pi"]) == ExitCode.INVALID
    assert main.run(["action", "show", "..."]) == ExitCode.INVALID
    assert api.asked == []
    main.run(["node", "show", "pi?x#y"])
    assert api.asked[0][1] == "/v1/nodes/pi%3Fx%23y"


def test_a_kind_of_event_that_never_comes_is_not_waited_for(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["event", "tail", "--kind", "source", "--kind", "sources"]) == ExitCode.USAGE
    assert "'sources' is no kind of event" in capsys.readouterr().err
    assert api.asked == []


def test_the_empty_session_is_not_the_usual_one(api: Api) -> None:
    main.run(["memory", "get", "k", "--session", ""])
    main.run(["memory", "get", "k"])
    assert [path for _, path, _ in api.asked] == ["/v1/memory/k?session=", "/v1/memory/k"]


@pytest.mark.parametrize(
    "words",
    [
        ("run", "show", "r\udce9"),
        ("plan", "check", "caf\udce9.yaml"),
        ("memory", "set", "k", "\udcff"),
        ("memory", "set", "k", "1e999"),
        ("memory", "set", "k", '{"deep": [-1e999]}'),
        ("memory", "set", "k", '"\\ud800"'),
    ],
)
def test_what_cannot_be_sent_is_wrong_use(
    api: Api, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(list(words)) == ExitCode.USAGE
    assert "error[usage]" in capsys.readouterr().err
    assert api.asked == []


class LateNode:
    """An orchestrator whose run has ended while its node still sends lines, 40 at a time."""

    def __init__(self, lines: int) -> None:
        self._lines = [
            {"n": n, "at_ms": 1, "action": "a", "node": "pi", "stream": "log", "line": f"line {n}"}
            for n in range(1, lines + 1)
        ]
        self._come = 0

    def get(self, path: str) -> dict[str, Any]:
        assert path == "runs/r-1/logs"
        self._come += 40
        return {"log": "l", "lines": self._lines[: self._come], "dropped": 0}

    async def events(self, *, run: str) -> AsyncIterator[ServerEvent]:
        yield ServerEvent("end", None, {"run": run})


async def test_lines_that_come_after_the_end_of_a_run_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imlmesh.loglines._FETCH_S", 0.02)
    monkeypatch.setattr("imlmesh.loglines.limits.LOG_TAIL_S", 0.1)
    late: Any = LateNode(500)
    await Follower(late, "r-1", lambda _line: True, failed=False).follow()
    shown = capsys.readouterr().out.splitlines()
    assert [line.rpartition(" ")[2] for line in shown] == [str(n) for n in range(1, 501)]
