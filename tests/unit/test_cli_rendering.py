"""Tables that fit, states that do not need colour, times that people read."""

import json

import pytest
from rich.cells import cell_len
from rich.text import Text
from ruamel.yaml import YAML

from imlmesh import render
from imlmesh.client import ServerEvent
from imlmesh.diagnosis import show_records
from imlmesh.fleet import by_trouble
from imlmesh.nouns.event import _write_event
from imlmesh.nouns.status import _print
from imlmesh.render import Column, bars, duration, mark, try_line, write_table
from imlmesh.settings import settings
from imlmesh_protocol.states import (
    ActionState,
    ApprovalState,
    DispatchState,
    Liveness,
    RunState,
)

COLUMNS = [Column("NODE"), Column("STATE"), Column("GROUP", 1), Column("VERSION", 2, right=True)]
ROWS: list[list[str | Text]] = [
    ["pi-garden", mark("online"), "soil-probes", "0.4.1"],
    ["pi-attic", mark("suspect"), "cams", "0.4.0"],
]

HEALTH = {
    "broker": {"address": "desk:1", "connected": True},
    "approvals": {"pending": 0},
    "runs": {"active": 0},
    "ledger": {"entries": 0, "witnesses": 0},
    "telemetry": {"written": 0},
    **{"mesh": "home", "version": "1", "epoch": 1, "started_at_ms": 0, "pid": 1},
}

#: marks, embeddings, overrides and isolates of writing from right to left
TURNING = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@pytest.fixture(autouse=True)
def _fresh() -> None:
    settings.reset()
    render.console.cache_clear()


def table(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr(render, "_UNLIMITED", width)
    write_table(COLUMNS, ROWS)
    return capsys.readouterr().out


def test_a_wide_window_shows_all_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line.split() for line in table(200, monkeypatch, capsys).splitlines()]
    assert lines[0] == ["NODE", "STATE", "GROUP", "VERSION"]
    assert lines[1] == ["pi-garden", "✔", "online", "soil-probes", "0.4.1"]


@pytest.mark.parametrize("width", [20, 24, 30, 40, 60])
def test_no_window_is_too_narrow(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = table(width, monkeypatch, capsys)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "NODE" in text


def test_control_characters_of_others_do_not_reach_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    write_table([Column("TEXT")], [["\x1b]0;owned\x07\x9b2J"]])
    render.write(Text("\x1b[2Jlog line", style="red"))
    out = capsys.readouterr().out
    assert "␛]0;owned␇�2J" in out
    assert "\x1b[31m␛[2Jlog line" in out
    assert not [part for part in ("\x1b]", "\x1b[2J", "\x9b") if part in out]


@pytest.mark.parametrize("sign", TURNING)
def test_nothing_turns_the_direction_of_what_is_read(
    sign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table([Column("TEXT")], [[f"rm {sign}x"]])
    render.write(Text(f"log {sign}line"))
    render.say(f"node {sign}name")
    show_records([{"code": "plan.field", "message": f"no {sign}field", "hint": sign}])
    streams = capsys.readouterr()
    assert sign not in streams.out + streams.err
    assert "rm \ufffdx" in streams.out


def test_no_line_of_others_passes_for_one_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    forged = "low\n✔ nothing needs attention\nnodes\t✔ 9 online"
    write_table([Column("NODE"), Column("SAID")], [["pi", forged]])
    _print({**HEALTH, "nodes": {"online": 1}}, [{"text": f"node pi: {forged}", "try": "look"}])
    for kind in ("refusal", "log", "source"):
        data = {"node": "pi", "code": "x", "message": forged, "run": "r-1", "action": "a"}
        data |= {"line": forged, "source": "s", "values": {forged: forged}}
        _write_event(ServerEvent(kind, None, data))
    lines = capsys.readouterr().out.splitlines()
    assert sum("✔ nothing" in line for line in lines) == 5
    assert not [line for line in lines if line.startswith(("✔", "nodes\t"))]


def test_json_and_yaml_are_exact_and_without_raw_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    signs = f"\x1b\x7f\x9b{TURNING}"
    record = {"text": f"{signs}[2J ü", f"a{TURNING[3]}b": [TURNING[0]]}
    render.emit_record(record)
    out = capsys.readouterr().out
    assert json.loads(out) == record
    settings.output = "yaml"
    render.emit_record(record)
    shown = capsys.readouterr().out
    assert YAML(typ="safe", pure=True).load(shown) == record
    for text in (out, shown):
        assert "ü" in text
        assert not set(signs) & set(text)


def test_the_least_important_column_goes_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = table(36, monkeypatch, capsys)
    assert "VERSION" not in text
    assert "soil-probes" in text


def test_every_state_has_a_shape_of_its_own_word() -> None:
    states = [*ActionState, *ApprovalState, *DispatchState, *Liveness, *RunState]
    known = {*render.MARKS, "planned", "sent", "accepted"}  # dispatches under way: never alone
    assert {str(state) for state in states} <= known
    assert mark("awaiting_approval").plain == "◔ awaiting approval"


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "-"),
        (-5, "0.0s"),
        (3_140, "3.1s"),
        (42_000, "42s"),
        (840_000, "14m"),
        (18_000_000, "5h"),
        (259_200_000, "3d"),
    ],
)
def test_durations(milliseconds: float | None, text: str) -> None:
    assert duration(milliseconds) == text


def test_bars_show_gaps_as_gaps() -> None:
    assert bars([0, 0.5, 1, None]) == "▁▄▇ "


def test_commands_to_try_reach_the_same_mesh() -> None:
    assert try_line("node list") == "imlmesh node list"
    settings.home = "/data/my mesh"
    assert try_line("node list") == "imlmesh node list --home '/data/my mesh'"


def test_problems_come_first() -> None:
    def node(name: str, liveness: str, *problems: str) -> dict[str, object]:
        admission = "quarantined" if name.startswith("q") else "open"
        admission = "revoked" if name.startswith("r") else admission
        told = {"liveness": liveness, "admission": admission, "problems": list(problems)}
        return {"node": name, "alias": None, **told}

    nodes = [
        node("a", "online"),
        node("b", "offline"),
        node("c", "online", "hot"),
        node("d", "suspect"),
        node("e", "lost"),
        node("q", "online"),
        node("r", "offline"),
    ]
    order = ["e", "d", "c", "q", "b", "a", "r"]
    assert [found["node"] for found in by_trouble(nodes)] == order
