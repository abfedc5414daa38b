"""`plan run --local` in a terminal: keys, waves and gates as on a mesh, but leaving means stopping."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Person

GATE = """\
protocol_version: "2.0"
plan_id: gate
description: Ask first
execution_mode: sequential
actions:
  - {id: look, module: os_exec, action: get_system_info, params: {include: [os]}, requires_approval: true}
"""


@pytest.fixture
def plan(person: Person) -> str:
    file = person.folder / "gate.iml.yaml"
    file.write_text(GATE)
    return str(file)


def test_a_gate_is_approved_with_a_key(person: Person, plan: str) -> None:
    terminal = person.open("plan", "run", plan, "--local")
    terminal.expect(r"\[a\]pprove or \[d\]eny a-1 .*\[q\] stop")
    terminal.press("a")
    assert terminal.wait() == 0
    assert "1 completed" in terminal.text


def test_it_is_answered_from_another_terminal_and_stopped_with_a_key(
    person: Person, plan: str
) -> None:
    home = str(Path(person.folder) / "kept")
    first = person.open("plan", "run", plan, "--local", "--home", home)
    first.expect(r"\[d\]eny a-1")
    assert person.run("approval", "deny", "a-1", "--home", home).returncode == 0
    assert first.wait() == 7
    second = person.open("plan", "run", plan, "--local", "--home", home)
    second.expect(r"\[d\]eny a-2")
    second.press("q")
    assert second.wait() == 130
    assert "cancelled" in second.text
    assert "keeps running" not in second.text
