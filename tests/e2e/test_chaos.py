"""`imlmesh chaos`: real processes are broken, nothing is lost or doubled, and nothing is left behind.

The quick scenarios and a few random kills; `make chaos` does all of them, as often as wanted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from imlmesh.chaos.table import NAMES
from waiting import running_with

if TYPE_CHECKING:
    from conftest import Person

KILLS = 10
QUICK = ("node-kill", "torn-stream", "random-kills")
LONGEST_S = 400


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, person: Person) -> Path:
    """Where chaos makes its folder; the user's home is somewhere else."""
    folder = tmp_path / "room"
    folder.mkdir()
    monkeypatch.setitem(person.env, "TMPDIR", str(folder))
    return folder


def start(person: Person, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "imlmesh", "chaos", *arguments],
        env=person.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell in the background gives its children none
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type]
    )


def shown(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2)


@pytest.mark.timeout(LONGEST_S)
def test_nothing_is_lost_or_doubled_whoever_is_killed(
    person: Person, room: Path, tmp_path: Path
) -> None:
    report = tmp_path / "RELIABILITY.md"
    words = (*QUICK, "--kills", str(KILLS), "-o", "json", "--report", str(report))
    chaos = start(person, *words)
    out, err = chaos.communicate(timeout=LONGEST_S)
    assert chaos.returncode == 0, f"{err}\n{out}"
    record = json.loads(out)
    rows = {row["scenario"]: row for row in record["scenarios"]}
    assert record["whole"]
    assert set(rows) == set(QUICK)
    assert [row["lost"] + row["doubled"] for row in rows.values()] == [0] * len(rows)
    assert rows["random-kills"]["n"] == KILLS
    # the promises that a busy machine can keep too
    killed = rows["node-kill"]
    assert killed["detection"]["max_ms"] <= killed["detection_promised_ms"], shown(killed)
    assert killed["reroute"]["max_ms"] <= killed["reroute_promised_ms"], shown(killed)
    text = report.read_text()
    assert all(f"| {name} | " in text for name in QUICK)
    again = f"imlmesh chaos {' '.join(QUICK)} --runs 1 --kills {KILLS} --seconds 20"
    assert f"- again: {again} --seed {record['facts']['seed']}\n" in text
    assert not person.home.exists()
    assert list(room.iterdir()) == []
    assert running_with(room) == []


@pytest.mark.timeout(LONGEST_S)
def test_ctrl_c_in_the_middle_leaves_nothing_however_often_it_is_told(
    person: Person, room: Path
) -> None:
    chaos = start(person, "orchestrator-kill", "--runs", "100")
    assert chaos.stderr is not None
    for line in chaos.stderr:
        if "orchestrator-kill 1/100" in line:
            break
    assert running_with(room)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        os.kill(chaos.pid, number)
    chaos.communicate(timeout=40)
    assert chaos.returncode == 130
    assert running_with(room) == []
    assert list(room.iterdir()) == []


def test_a_wrong_name_is_answered_with_the_nearest_and_nothing_begins(
    person: Person, room: Path
) -> None:
    refused = person.run("chaos", "node-kil")
    assert (refused.returncode, "did you mean 'node-kill'?" in refused.stderr) == (3, True)
    unwritable = person.run("chaos", "--report", str(room / "nowhere" / "page.md"))
    assert (unwritable.returncode, "config.invalid" in unwritable.stderr) == (3, True)
    elsewhere = person.run("chaos", "--home", str(room))
    assert elsewhere.returncode == 2
    assert list(room.iterdir()) == []


def test_the_scenarios_are_listed(person: Person) -> None:
    listed = person.ask("chaos", "--list")["scenarios"]
    assert [each["scenario"] for each in listed] == list(NAMES)
