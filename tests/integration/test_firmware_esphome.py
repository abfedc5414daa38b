"""The ESPHome nodes, as ESPHome itself reads them: valid, and safe where it matters."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

SHIPPED = Path(__file__).resolve().parents[2] / "firmware-configs" / "esphome"
NODES = ("sensor-node", "relay-node")
Read = Callable[[Path], subprocess.CompletedProcess[str]]

# the first of them may install ESPHome
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def read(esphome: Path) -> Read:
    """Let `esphome config` read a file, without a network where that can be arranged."""
    alone = ["unshare", "--net"] if os.geteuid() == 0 and shutil.which("unshare") else []

    def run(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*alone, esphome, "config", path],
            env={**os.environ, "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configurations, with the example's secrets filled in."""
    folder = tmp_path_factory.mktemp("esphome")
    for path in SHIPPED.glob("*.yaml"):
        shutil.copy(path, folder)
    (folder / "secrets.example.yaml").rename(folder / "secrets.yaml")
    return folder


@pytest.fixture(scope="module")
def expanded(read: Read, folder: Path) -> dict[str, Any]:
    """What ESPHome makes of each of NODES, with all that it fills in."""
    found = {}
    for name in NODES:
        done = read(folder / f"{name}.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Configuration is valid!" in done.stdout + done.stderr
        found[name] = YAML().load(done.stdout)
    return found


def test_every_shipped_configuration_is_read() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == {*NODES, "secrets.example"}


@pytest.mark.parametrize("name", NODES)
def test_it_speaks_to_the_users_own_broker(expanded: dict[str, Any], name: str) -> None:
    mqtt = expanded[name]["mqtt"]
    assert mqtt["topic_prefix"].startswith("garden/")
    assert mqtt["discovery"] is False
    assert mqtt["clean_session"] is True
    assert mqtt["will_message"]["payload"] == "offline"
    assert mqtt["will_message"]["topic"] == mqtt["birth_message"]["topic"]
    assert "api" not in expanded[name]
    assert "ap" not in expanded[name]["wifi"]


def test_no_secret_is_in_a_configuration() -> None:
    for name in NODES:
        text = (SHIPPED / f"{name}.yaml").read_text()
        wanted = [line for line in text.splitlines() if "password:" in line or "ssid:" in line]
        assert len(wanted) == 4
        assert all("!secret " in line for line in wanted)


def test_nonsense_of_a_sensor_is_left_out(expanded: dict[str, Any]) -> None:
    measured = []
    for sensor in expanded["sensor-node"]["sensor"]:
        parts = [sensor[key] for key in ("temperature", "pressure") if key in sensor]
        measured += parts or [sensor]
    assert len(measured) == 4
    for one in measured:
        clamps = [row["clamp"] for row in one["filters"] if "clamp" in row]
        assert [clamp["ignore_out_of_range"] for clamp in clamps] == [True], one["name"]


def test_a_relay_is_off_whenever_nobody_holds_it_on(expanded: dict[str, Any]) -> None:
    node = expanded["relay-node"]
    relays = {switch["id"]: switch for switch in node["switch"]}
    assert set(relays) == {"valve", "pump"}
    assert {relay["restore_mode"] for relay in relays.values()} == {"ALWAYS_OFF"}
    assert turned_off(node["mqtt"]["on_disconnect"]) == set(relays)
    limits = {script["id"]: script["then"] for script in node["script"]}
    for name in relays:
        wait, off = limits[f"{name}_limit"]
        assert wait["delay"] == "20min"
        assert turned_off(off) == {name}
        assert f"{name}_limit" in str(relays[name]["on_turn_on"])


def turned_off(found: Any) -> set[str]:
    """The ids that actions somewhere in `found` turn off."""
    if isinstance(found, list):
        return set().union(*map(turned_off, found))
    if isinstance(found, dict):
        below = set().union(*map(turned_off, found.values()))
        return below | (
            {str(found["switch.turn_off"]["id"])} if "switch.turn_off" in found else set()
        )
    return set()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("sensor-node", "platform: bmp280_i2c", "platform: bmp280_iic"),
        ("relay-node", "restore_mode: ALWAYS_OFF", "restore_mode: NEVER_ON"),
        ("relay-node", "pin: GPIO25", "pin: GPIO99"),
    ],
)
def test_esphome_would_find_a_wrong_line(
    read: Read, folder: Path, name: str, old: str, new: str
) -> None:
    text = (folder / f"{name}.yaml").read_text()
    assert old in text
    wrong = folder / "wrong.yaml"
    wrong.write_text(text.replace(old, new, 1))
    done = read(wrong)
    assert done.returncode != 0
    assert new.partition(": ")[2].removeprefix("GPIO") in done.stdout + done.stderr
