"""A demonstration that goes wrong ends all the same, says why, and has the exit code for it."""

import asyncio
from pathlib import Path

import pytest

from imlmesh import demo
from imlmesh.exits import ExitCode
from imlmesh.mesh import make_mesh
from imlmesh.settings import settings
from imlmesh.shipped import shipped
from imlmesh_protocol.errors import InputError
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


def files_of(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize("timing", ["lan", "wan"])
async def test_a_mesh_that_no_demonstration_made_is_left_as_it_is(
    timing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "home", None)
    home = tmp_path / "home"
    make_mesh(home, timing)
    before = files_of(home)
    with pytest.raises(InputError, match="has a mesh that no demonstration made") as caught:
        await demo.run_demo(str(home))
    assert caught.value.code == "folder.exists"
    assert "--home" in caught.value.hint
    assert files_of(home) == before


async def test_a_machine_that_joined_another_mesh_keeps_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "home", None)
    policy = tmp_path / "home" / "nodes" / demo.DESK / "policy.toml"
    policy.parent.mkdir(parents=True)
    policy.write_text('profile = "readonly"\n')
    with pytest.raises(InputError, match=r"folder\.exists"):
        await demo.run_demo(str(tmp_path / "home"))
    assert list(files_of(tmp_path / "home")) == [str(policy)]


@pytest.mark.usefixtures("broker_program")
async def test_in_its_own_home_it_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "greenhouse.iml.yaml"
    file.write_text(IDLE)
    monkeypatch.setattr(
        demo, "shipped", lambda *names: file if names[-1] == file.name else shipped(*names)
    )
    monkeypatch.setattr(settings, "home", None)
    for _ in range(2):
        async with asyncio.timeout(60):
            await demo.run_demo(str(tmp_path / "home"))
        assert "completed" in "".join(capsys.readouterr())
    assert running_with(tmp_path / "home") == []
