"""A demonstration that goes wrong ends all the same, says why, and has the exit code for it."""

import asyncio
from pathlib import Path

import pytest

from imlmesh import demo
from imlmesh.exits import ExitCode
from imlmesh.settings import settings
from imlmesh.shipped import shipped
from waiting import running_with

BROKEN = """\
protocol_version: "2.0"
plan_id: greenhouse
description: It ends before pi-roof has anything to do
actions:
  - {id: pump, module: os_exec, action: run_command, params: {command: [no-such-rule]}, target_node: desk}
"""
IDLE = """\
protocol_version: "2.0"
plan_id: greenhouse
description: It ends well without pi-roof
actions:
  - {id: look, module: os_exec, action: get_system_info, params: {include: [os]}, target_node: desk}
"""


@pytest.mark.parametrize(("plan", "said"), [(BROKEN, "policy.command"), (IDLE, "completed")])
@pytest.mark.usefixtures("broker_program")
async def test_a_run_that_ends_before_the_kill_ends_the_demonstration(
    plan: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "greenhouse.iml.yaml"
    file.write_text(plan)
    monkeypatch.setattr(
        demo, "shipped", lambda *names: file if names[-1] == file.name else shipped(*names)
    )
    monkeypatch.setattr(settings, "home", None)
    async with asyncio.timeout(60):
        code = await demo.run_demo(str(tmp_path / "home"))
    shown = "".join(capsys.readouterr())
    assert code == ExitCode.FAILED
    assert said in shown
    assert "nothing was killed" in shown
    assert running_with(tmp_path / "home") == []
