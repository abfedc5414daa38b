"""`imlmesh up` with each broker: it says which, and a node reaches the mesh through it."""

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from imlmesh.exits import ExitCode
from imlmesh.mesh import ADDRESS, make_mesh, open_mesh
from imlmesh.running import RunningMesh
from imlmesh_broker.child import USUAL_PORT, free_port
from imlmesh_protocol.errors import InputError, LinkError
from loopback import taken

LINES = {"mosquitto": "mosquitto, client", "embedded": "embedded broker, client"}


@pytest.mark.parametrize(
    "kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]
)
def test_up_says_which_broker_serves(tmp_path: Path, kind: str) -> None:
    # a file of the makers' own, as MicroPython boards have it, where the mesh is started
    (tmp_path / "secrets.py").write_text("raise ImportError('not the library')")
    up = subprocess.Popen(
        [sys.executable, "-P", "-m", "imlmesh", "up", "--timing", "lan"],
        cwd=tmp_path,
        env={**os.environ, "IMLMESH_HOME": str(tmp_path / "home"), "IMLMESH_BROKER": kind},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert up.stdout is not None
    shown = b""
    try:
        while b"Ctrl-C stops" not in shown:
            assert select.select([up.stdout], [], [], 60)[0], shown
            read = os.read(up.stdout.fileno(), 65_536)
            assert read, shown
            shown += read
    finally:
        up.send_signal(signal.SIGTERM)
        rest, _ = up.communicate(timeout=40)
    assert LINES[kind] in shown.decode()
    assert (up.returncode, b"stopped" in rest) == (0, True)


def test_up_does_not_start_a_broker_that_cannot_know_who_is_revoked(tmp_path: Path) -> None:
    mesh, _ = make_mesh(tmp_path / "home", "lan")
    (mesh.home.ca / "node-ca.crl").write_bytes(b"torn")
    up = subprocess.run(
        [sys.executable, "-P", "-m", "imlmesh", "up"],
        env={**os.environ, "IMLMESH_HOME": str(mesh.home.root), "IMLMESH_BROKER": "embedded"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert up.returncode == ExitCode.NOT_ALLOWED
    assert "error[broker.lists]" in up.stderr
    assert "broker" not in up.stdout
    assert not (mesh.home.orchestrator / "lifecycle.db").exists()


async def test_the_port_of_a_mesh_is_settled_when_its_broker_first_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMLMESH_BROKER", "embedded")
    home = tmp_path / "home"
    mesh, _ = make_mesh(home, "lan")
    with pytest.raises(InputError) as never_started:
        _ = mesh.broker_address
    assert never_started.value.code == "home.missing"
    # another program takes the usual port between the making of the mesh and its start
    usual = free_port(ADDRESS, USUAL_PORT)
    with taken(usual):
        running = RunningMesh(mesh, lambda line: None)
        try:
            await running.start_broker()
        finally:
            await running.stop()
        settled, control = running.mesh.port, running.mesh.control_port
        assert None not in (settled, control)
        assert len({usual, settled, control}) == 3
    found = open_mesh(home)
    assert (found.port, found.control_port) == (settled, control)
    assert found.broker_address != found.control_address
    assert settled is not None
    with taken(settled):
        again = RunningMesh(open_mesh(home), lambda line: None)
        try:
            with pytest.raises(LinkError) as moved:
                await again.start_broker()
        finally:
            await again.stop()
    assert moved.value.code == "broker.failed"
    assert moved.value.message == f"another program listens on the port {settled} of this mesh"
    # what the hint says helps
    settings = home / "orchestrator" / "mesh.toml"
    assert "remove port and control_port from orchestrator/mesh.toml" in moved.value.hint
    assert re.search(r"(?m)^port = ", settings.read_text())
    settings.write_text(re.sub(r"(?m)^(port|control_port) = .*\n", "", settings.read_text()))
    with taken(settled):
        elsewhere = RunningMesh(open_mesh(home), lambda line: None)
        try:
            await elsewhere.start_broker()
        finally:
            await elsewhere.stop()
    assert elsewhere.mesh.port not in (None, settled)
