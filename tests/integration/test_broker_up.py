"""`imlmesh up` with each broker: it says which, and a node reaches the mesh through it."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LINES = {"mosquitto": "mosquitto, client", "embedded": "embedded broker, client"}


@pytest.mark.alone
@pytest.mark.parametrize(
    "kind", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]
)
def test_up_says_which_broker_serves(tmp_path: Path, kind: str) -> None:
    up = subprocess.Popen(
        [sys.executable, "-m", "imlmesh", "up", "--timing", "lan"],
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
