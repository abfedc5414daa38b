"""The shipped units, as systemd's own programs judge them, and a reason for each line that narrows."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imlmesh.units import (
    ACCESS,
    HARDWARE,
    HARDWARE_GROUPS,
    KINDS,
    Kind,
    access_text,
    hardware_text,
    unit_name,
    unit_text,
)
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_runtime.paths import SERVICE_API, SERVICE_HOME
from systemd_exposure import exposure

SHIPPED = Path(__file__).resolve().parents[2] / "systemd"
#: tenths
WORST = {"node": 25, "orchestrator": 20}

pytestmark = pytest.mark.usefixtures("systemd_tools")


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["systemd-analyze", "--no-pager", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def written(folder: Path, kind: Kind) -> Path:
    """The unit of this installation."""
    path = folder / unit_name(kind)
    lan = kind == "orchestrator"
    path.write_text(unit_text(kind, sys.executable, "127.0.0.1:8884", lan=lan))
    return path


def settings(text: str) -> Iterator[tuple[str, str, str]]:
    """(name, value, the line before) of every setting of a unit."""
    before = ""
    for line in text.splitlines():
        if found := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            yield found[1], found[2], before
        before = line


@pytest.mark.parametrize("kind", KINDS)
def test_systemd_finds_nothing_wrong(tmp_path: Path, kind: Kind) -> None:
    done = analyze("verify", "--man=no", str(written(tmp_path, kind)))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_would_find_a_wrong_line(tmp_path: Path) -> None:
    path = written(tmp_path, "node")
    path.write_text(path.read_text().replace("ProtectSystem=strict", "ProtectSystem=firmly"))
    assert "firmly" in analyze("verify", "--man=no", str(path)).stderr


@pytest.mark.parametrize("kind", KINDS)
def test_the_exposure_is_low(tmp_path: Path, kind: Kind) -> None:
    path = written(tmp_path, kind)
    assert exposure(path) <= WORST[kind]
    done = analyze("security", "--offline=true", f"--threshold={WORST[kind]}", str(path))
    assert done.returncode == 0, done.stdout


def test_the_exposure_is_low_with_hardware_too(tmp_path: Path) -> None:
    path = written(tmp_path, "node")
    bare = exposure(path)
    (tmp_path / HARDWARE).parent.mkdir()
    (tmp_path / HARDWARE).write_text(hardware_text(HARDWARE_GROUPS))
    assert bare < exposure(path) <= WORST["node"]
    assert analyze("verify", "--man=no", str(path)).stderr == ""


def test_the_unit_that_tells_mosquitto_is_right_and_closed(tmp_path: Path) -> None:
    path = tmp_path / ACCESS
    path.write_text(access_text(sys.executable))
    done = analyze("verify", "--man=no", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # root's, for it writes into /etc and signals another user's process
    assert exposure(path) <= 35


@pytest.mark.parametrize("name", [*map(unit_name, KINDS), HARDWARE, ACCESS])
def test_every_line_that_narrows_or_opens_has_a_reason(name: str) -> None:
    text = (SHIPPED / name).read_text()
    narrowing = text.partition("# Limits." if name.endswith("service") else "[Service]")[2]
    found = list(settings(narrowing.partition("[Install]")[0]))
    assert len(found) > 5
    unexplained = []
    explained: set[str] = set()
    for setting, value, before in found:
        # a setting of several lines is explained once; AmbientCapabilities goes with its set
        if before.startswith("#") or before.partition("=")[0] in explained:
            explained.add(setting)
        else:
            unexplained.append(f"{setting}={value}")
    assert unexplained == []


def test_the_watchdog_and_readiness_are_systemds_to_use() -> None:
    for kind in KINDS:
        said = {name: value for name, value, _ in settings(unit_text(kind, "/usr/bin/python3"))}
        assert (said["Type"], said["NotifyAccess"]) == ("notify", "main")
        assert int(said["WatchdogSec"]) >= 30
        assert said["User"] in (SHIPPED / "sysusers.conf").read_text()


def test_a_node_may_start_what_its_own_limits_allow() -> None:
    text = (SHIPPED / "imlmesh-node@.service").read_text()
    most = int(re.findall(r"(?m)^TasksMax=(\d+)$", text)[0])
    commands = limits.NODE_SLOTS * limits.COMMAND_PROCESSES
    assert most >= commands + limits.APPLICATION_PROCESSES


def test_a_node_leaves_memory_for_the_rest_of_the_machine() -> None:
    said = {name: value for name, value, _ in settings(unit_text("node", "/usr/bin/python3"))}
    assert 50 <= int(said["MemoryMax"].removesuffix("%")) < 100
    # what took it is ended alone, not the node with it
    assert said["OOMPolicy"] == "continue"


def test_units_use_the_places_of_services() -> None:
    node = unit_text("node", "/usr/bin/python3")
    assert f"-m imlmesh_node {SERVICE_HOME}/nodes/%i\n" in node
    orchestrator = unit_text("orchestrator", "/usr/bin/python3", "10.0.0.2:8883")
    assert f"--home {SERVICE_HOME} --api {SERVICE_API.parent} " in orchestrator
    assert "--broker 10.0.0.2:8883\n" in orchestrator
    assert f"RuntimeDirectory={SERVICE_API.parent.name}\n" in orchestrator


def test_a_unit_for_the_network_lets_nodes_join_from_there() -> None:
    near = unit_text("orchestrator", "/usr/bin/python3")
    assert "--join 127.0.0.1:8766 --broker 127.0.0.1:8884\n" in near
    lan = unit_text("orchestrator", "/usr/bin/python3", lan=True)
    assert "--join 0.0.0.0:8766 --broker 127.0.0.1:8884 --lan\n" in lan
    other = unit_text("orchestrator", "/usr/bin/python3", join="192.168.1.2:9000", lan=True)
    assert "--join 192.168.1.2:9000 --broker 127.0.0.1:8884 --lan\n" in other


@pytest.mark.parametrize(
    ("python", "word"),
    [
        ("/opt/i m/python", '"/opt/i m/python"'),
        ("/opt/100%/python", "/opt/100%%/python"),
    ],
)
def test_an_odd_path_of_the_interpreter_stays_one_word(
    tmp_path: Path, python: str, word: str
) -> None:
    text = unit_text("node", python)
    assert f"ExecStart={word} -P -m imlmesh_node " in text
    path = tmp_path / unit_name("node")
    path.write_text(text)
    # systemd itself reads that word: it misses exactly this program
    assert f"Command {python} is not executable" in analyze("verify", "--man=no", str(path)).stderr


@pytest.mark.parametrize(
    "python", ["bin/python", '/a"/python', "/a$b/python", "/a\nb", "/a\\b", ""]
)
def test_a_path_that_systemd_does_not_take_is_refused(python: str) -> None:
    with pytest.raises(MeshError) as caught:
        unit_text("node", python)
    assert caught.value.code == "service.interpreter"


def test_only_groups_of_the_machine_are_asked_for() -> None:
    assert "SupplementaryGroups=gpio dialout\n" in hardware_text(["dialout", "wheel", "gpio"])
    assert "SupplementaryGroups=\n" in hardware_text([])


def test_security_lists_each_setting_once(tmp_path: Path) -> None:
    done = analyze("security", "--offline=true", "--json=short", str(written(tmp_path, "node")))
    rows = {row["json_field"]: row for row in json.loads(done.stdout)}
    for name in ("NoNewPrivileges", "ProtectSystem", "MemoryDenyWriteExecute", "UserOrDynamicUser"):
        assert rows[name]["set"] is True, rows[name]
