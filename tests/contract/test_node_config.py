"""mesh.toml and policy.toml: good ones are read, bad ones are refused with every place."""

import json
import logging
from pathlib import Path

import pytest

from imlmesh_drivers.base import CommandRule, PinRules, Site
from imlmesh_drivers.buses import BusRules, I2cRules
from imlmesh_node.config import load_config, load_policy
from imlmesh_node.simulated import simulated
from imlmesh_protocol.errors import InputErrors, TrustError
from imlmesh_protocol.limits import LAN, WAN

MESH = """
mesh = "home"
id = "pi-garden"
orchestrator = "control"
brokers = ["192.0.2.7:8883", "[2001:db8::1]:8884"]
timing = "lan"
"""

POLICY = """
profile = "local_worker"
[roots]
read = ["/var/log"]
write = ["files", "/srv/data"]
[commands.date]
argv0 = "/usr/bin/date"
args = ["[+]%[A-Za-z]+"]
processes = 4
memory_mb = 64

[commands.uptime]
argv0 = "/usr/bin/uptime"
[pins]
factory = "mock"
allow = [17, 27]
safe = { 17 = 0 }
[i2c.1]
factory = "native"
allow = [0x48, 0x76]
[i2c.0]
factory = "mock"
[serial]
native = ["/dev/ttyS0", "/dev/ttyUSB0"]
mock = ["/dev/ttyACM0"]
[onewire]
factory = "mock"
[mqtt]
allow = ["192.0.2.9:1883", "[2001:db8::9]:8883", "broker.home:1883"]
[modules]
allow = ["fake", "iot"]
[env]
LANG = "C"
"""


def write(folder: Path, name: str, text: str, mode: int = 0o600) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(mode)


def pointers(folder: Path) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load_policy(folder)
    assert {error.code for error in caught.value.errors} == {"policy.invalid"}
    return sorted(error.place.pointer for error in caught.value.errors if error.place)


def test_a_node_knows_itself_and_its_brokers(tmp_path: Path) -> None:
    write(tmp_path, "mesh.toml", MESH)
    config = load_config(tmp_path)
    assert (config.mesh, config.id, config.orchestrator) == ("home", "pi-garden", "control")
    assert config.brokers == (("192.0.2.7", 8883), ("2001:db8::1", 8884))
    assert config.timing == LAN


def test_timing_is_wan_unless_said(tmp_path: Path) -> None:
    write(tmp_path, "mesh.toml", MESH.replace('timing = "lan"', ""))
    assert load_config(tmp_path).timing == WAN


def test_a_bad_mesh_file_is_refused_with_every_place(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mesh.toml",
        'mesh = "Home!"\nid = 3\norchestrator = "c"\nbrokers = ["nowhere"]\ntiming = "x"\ny = 1',
    )
    with pytest.raises(InputErrors) as caught:
        load_config(tmp_path)
    found = {error.place.pointer for error in caught.value.errors if error.place}
    assert found == {"/mesh", "/id", "/brokers/0", "/timing", "/y"}
    assert {error.code for error in caught.value.errors} == {"config.invalid"}


def test_a_missing_mesh_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustError) as caught:
        load_config(tmp_path)
    assert "mesh.toml" in caught.value.message


def test_a_whole_policy(tmp_path: Path) -> None:
    write(tmp_path, "policy.toml", POLICY)
    policy = load_policy(tmp_path)
    assert policy.profile == "local_worker"
    assert policy.modules == ("fake", "iot")
    site = policy.site
    assert site.files == str(tmp_path / "files")
    assert site.write_roots == (str(tmp_path / "files"), "/srv/data")
    assert site.read_roots == ("/var/log",)
    assert site.commands == {
        "date": CommandRule("/usr/bin/date", ("[+]%[A-Za-z]+",), processes=4, memory_mb=64),
        "uptime": CommandRule("/usr/bin/uptime", None),
    }
    assert site.pins == PinRules("mock", (17, 27), {17: 0})
    assert site.buses == BusRules(
        i2c={0: I2cRules("mock"), 1: I2cRules("native", (0x48, 0x76))},
        serial={"/dev/ttyS0": "native", "/dev/ttyUSB0": "native", "/dev/ttyACM0": "mock"},
        onewire="mock",
        brokers=("192.0.2.9:1883", "[2001:db8::9]:8883", "broker.home:1883"),
    )
    assert Site.from_wire(json.loads(json.dumps(site.to_wire()))) == site
    assert site.env == {"LANG": "C"}


def test_a_policy_may_name_pins_in_every_way(tmp_path: Path) -> None:
    write(
        tmp_path,
        "policy.toml",
        """
[pins]
factory = "mock"
allow = [17, "GPIO17", "BOARD13", "J8:7"]
safe = { GPIO17 = 0, "27" = 1 }
""",
    )
    rules = PinRules("mock", (17, 27, 4), {17: 0, 27: 1})
    assert load_policy(tmp_path).site.pins == rules


def test_a_pin_with_two_safe_levels_is_refused(tmp_path: Path) -> None:
    text = '[pins]\nfactory = "mock"\nallow = [17, "BOARD1"]\nsafe = { 17 = 0, BOARD11 = 1 }\n'
    write(tmp_path, "policy.toml", text)
    assert pointers(tmp_path) == ["/pins/allow/1", "/pins/safe/BOARD11"]


def test_without_a_policy_a_node_is_readonly(tmp_path: Path) -> None:
    policy = load_policy(tmp_path)
    assert policy.profile == "readonly"
    assert "fake" not in policy.modules
    assert "filesystem" in policy.modules
    assert policy.site.write_roots == ()
    assert policy.site.pins is None
    assert policy.site.buses == BusRules()
    assert policy.site.commands == {}


def test_a_bad_policy_is_refused_with_every_place(tmp_path: Path) -> None:
    write(
        tmp_path,
        "policy.toml",
        """
profile = "root"
color = "red"
[roots]
read = ["/ok", "../up", 3]
execute = []
[commands.x]
argv0 = "date"
args = ["(", "ok"]
shell = true
processes = 0
memory_mb = "1G"
[pins]
factory = "guess"
allow = [17, 99, true]
safe = { 17 = 2, 4 = 0, led = 1 }
[modules]
allow = ["no_such_module"]
[env]
"A=B" = "1"
C = 2
""",
    )
    assert pointers(tmp_path) == sorted(
        [
            *("/profile", "/color", "/roots/read/1", "/roots/read/2", "/roots/execute"),
            *("/commands/x/argv0", "/commands/x/args/0", "/commands/x/shell"),
            *("/commands/x/processes", "/commands/x/memory_mb"),
            *("/pins/factory", "/pins/allow/1", "/pins/allow/2"),
            *("/pins/safe/17", "/pins/safe/4", "/pins/safe/led"),
            *("/modules/allow/0", "/env/A=B", "/env/C"),
        ]
    )


@pytest.mark.parametrize("text", ["profile = ", "profile = 1\nprofile = 2", "\udcff"])
def test_what_is_not_toml_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "policy.toml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputErrors) as caught:
        load_policy(tmp_path)
    assert caught.value.place is not None
    assert caught.value.place.file == str(tmp_path / "policy.toml")


@pytest.mark.parametrize("text", ["roots = 1", "roots = []", "commands = 'x'", "[commands]\nx = 1"])
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path, "policy.toml", text)
    assert pointers(tmp_path)


def test_a_policy_that_others_could_change_is_told_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "policy.toml", POLICY, mode=0o666)
    with caplog.at_level(logging.WARNING):
        assert load_policy(tmp_path).profile == "local_worker"
    assert "policy.toml" in caplog.text
    with pytest.raises(TrustError) as caught:
        load_policy(tmp_path, strict=True)
    assert caught.value.code == "trust.mode"


def test_bad_buses_are_refused_with_every_place(tmp_path: Path) -> None:
    write(
        tmp_path,
        "policy.toml",
        """
[i2c.1]
allow = [128, "0x48", true]
speed = 400
[i2c.11]
factory = "mock"
[i2c.two]
factory = "guess"
[serial]
native = ["ttyS0", "/dev/ttyS1"]
mock = ["/dev/ttyS1", 3]
baud = 9600
[onewire]
factory = "real"
[mqtt]
allow = ["broker", "mqtt://broker:1883", "broker:70000"]
brokers = []
""",
    )
    assert pointers(tmp_path) == sorted(
        [
            *("/i2c/1/factory", "/i2c/1/allow/0", "/i2c/1/allow/1", "/i2c/1/allow/2"),
            *("/i2c/1/speed", "/i2c/11", "/i2c/two", "/i2c/two/factory"),
            *("/serial/native/0", "/serial/mock/0", "/serial/mock/1", "/serial/baud"),
            *(
                "/onewire/factory",
                "/mqtt/allow/0",
                "/mqtt/allow/1",
                "/mqtt/allow/2",
                "/mqtt/brokers",
            ),
        ]
    )


def test_a_simulated_node_touches_nothing_and_may_no_more(tmp_path: Path) -> None:
    write(
        tmp_path,
        "policy.toml",
        POLICY.replace('factory = "mock"\nallow', 'factory = "native"\nallow'),
    )
    policy = load_policy(tmp_path)
    twin = simulated(policy)
    assert (twin.profile, twin.modules) == (policy.profile, policy.modules)
    site, buses = twin.site, twin.site.buses
    assert (site.commands, site.write_roots, site.env) == (
        policy.site.commands,
        policy.site.write_roots,
        policy.site.env,
    )
    assert site.pins is not None
    assert site.pins.factory == "mock"
    assert {17, 27} < set(site.pins.allow)
    assert site.pins.safe == {17: 0}
    assert {rules.factory for rules in buses.i2c.values()} == {"mock"}
    assert set(buses.serial.values()) == {"mock"}
    assert (buses.onewire, buses.simulate) == ("mock", True)
    assert buses.brokers == policy.site.buses.brokers
    assert simulated(twin) == twin
    assert simulated(load_policy(tmp_path / "nothing")).profile == "readonly"
