"""A node process and plug-ins that would end it, on a real broker."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from imlmesh_protocol.wire.topics import Kind
from scripted_control import (
    POLICY,
    WITHIN_S,
    Control,
    dispatch,
    is_birth,
    opened_control,
    opened_home,
    opened_node,
)


@pytest.fixture
def deadly(tmp_path: Path) -> dict[str, str]:
    """The environment of a node beside which such a plug-in is installed."""
    info = tmp_path / "ending_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ending-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[imlmesh.drivers]\nending = ending_plugin:Ending\n")
    (tmp_path / "ending_plugin.py").write_text("import os\nos._exit(0)\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


@pytest.fixture
async def control(
    tmp_path: Path, deadly: dict[str, str]
) -> AsyncIterator[tuple[Control, asyncio.subprocess.Process]]:
    policy = POLICY.replace('["fake"', '["ending", "fake"')
    async with (
        opened_home(tmp_path) as home,
        opened_control(*home) as control,
        opened_node(*home, policy, begun=False) as node,
    ):
        words = (sys.executable, "-P", "-m", "imlmesh_node", str(node.folder))
        with node.log.open("w") as log:
            process = await asyncio.create_subprocess_exec(*words, env=deadly, stderr=log)
        yield control, process
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), WITHIN_S)


async def test_a_plug_in_that_ends_who_imports_it_ends_no_node(
    control: tuple[Control, asyncio.subprocess.Process],
) -> None:
    mesh, process = control
    birth = await mesh.wait(is_birth)
    assert set(birth.fields["manifest"]["modules"]) == {"fake", "filesystem"}
    # a beat later drivers have been warmed up, and after a signal they are read anew
    await mesh.wait(lambda m: m.kind is Kind.HEARTBEAT and m.fields["beat"] > 2)
    process.send_signal(signal.SIGHUP)
    one = dispatch(1, value=1)
    mesh.delegate(one)
    assert (await mesh.result(one))["result"] == {"value": 1}
    assert process.returncode is None
