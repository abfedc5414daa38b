"""firmware-configs/ as their readers read them: boot files of a Pi, cloud-init, Mosquitto."""

import asyncio
import os
import re
import shutil
import ssl
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from ruamel.yaml import YAML

from imlmesh.main import run
from imlmesh_broker import EVERYWHERE
from imlmesh_broker.config import Layout, acl_text, config_text
from imlmesh_broker.mosquitto import find_mosquitto
from imlmesh_broker.probe import Cast, Probe
from imlmesh_orchestrator.ca import Authority
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from loopback import own_port
from node_folders import make_node
from systemd_exposure import exposure
from waiting import eventually

SHIPPED = Path(__file__).resolve().parents[2] / "firmware-configs"
PI = SHIPPED / "raspberry-pi"
MOSQUITTO = SHIPPED / "mosquitto"
FRAGMENTS = sorted(PI.glob("*.txt"))
WITHIN_S = 30

known = tomllib.loads((PI / "known.toml").read_text())


# boot files of a Raspberry Pi


def fits(value: str | None, wanted: str) -> bool:
    """Whether a parameter may have this value; None: it stands alone."""
    if wanted == "flag" or value is None:
        return wanted == "flag" and value is None
    if wanted == "number":
        return value.isdecimal()
    if wanted == "pin":
        return value.isdecimal() and int(value) <= 27
    return value in wanted.split("|")


def findings(text: str) -> Iterator[str]:
    """What the firmware of a Pi would not understand."""
    filters = set(known["filters"]["names"])
    for line in text.splitlines():
        if len(line) > known["lines"]["characters"]:
            yield f"too long: {line}"
        if line.startswith("#") or not line:
            continue
        if section := re.fullmatch(r"\[(.+)\]", line):
            if section[1] not in filters:
                yield f"no such filter: {line}"
            continue
        name, _, value = line.partition("=")
        if name == "dtoverlay":
            yield from overlay_findings(*value.split(","))
        elif name == "dtparam":
            param, _, setting = value.partition("=")
            row = known["dtparam"].get(param)
            if row is None or not fits(setting or None, row["value"]):
                yield f"no such parameter or value: {line}"
        elif name not in known["options"] or not fits(value, known["options"][name]["value"]):
            yield f"no such option or value: {line}"


def overlay_findings(overlay: str, *params: str) -> Iterator[str]:
    row = known["dtoverlay"].get(overlay)
    if row is None:
        yield f"no such overlay: {overlay}"
        return
    for param in params:
        name, equals, value = param.partition("=")
        if name not in row or not fits(value if equals else None, row[name]["value"]):
            yield f"no such parameter or value of {overlay}: {param}"


def pins(text: str) -> set[int]:
    """The pins of the header that a fragment takes on any board."""
    found: set[int] = set()
    for line in text.splitlines():
        name, _, value = line.partition("=")
        if name == "dtparam":
            param, _, setting = value.partition("=")
            found |= set(known["dtparam"][param].get("pins", ())) if setting != "off" else set()
        elif name == "dtoverlay":
            overlay, *params = value.split(",")
            given = dict(param.partition("=")[::2] for param in params)
            for param, row in known["dtoverlay"][overlay].items():
                if row["value"] == "pin":
                    found.add(int(given.get(param, row["default"])))
        elif name in known["options"]:
            found |= set(known["options"][name].get("pins", ()))
    return found


def test_there_is_a_fragment_for_each_bus() -> None:
    names = {path.stem for path in FRAGMENTS}
    assert names == {"i2c", "spi", "one-wire", "uart", "watchdog"}
    assert {"parameters", "commit", "options", "seen"} == set(known["source"])


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.stem)
def test_a_pi_understands_the_fragment(path: Path) -> None:
    text = path.read_text()
    assert list(findings(text)) == []
    sections = re.findall(r"(?m)^\[(.+)\]", text)
    # what is appended behind it must count for every board
    assert sections == [] or sections[-1] == "all"


def test_all_fragments_fit_on_one_header() -> None:
    taken: dict[int, str] = {}
    for path in FRAGMENTS:
        for pin in pins(path.read_text()):
            assert pin not in taken, f"pin {pin}: {path.name} and {taken[pin]}"
            taken[pin] = path.name
    assert {2, 3, 4, 8, 14, 15} <= set(taken)


@pytest.mark.parametrize(
    "line",
    [
        "dtparam=i2c_arms=on",
        "dtparam=spi=yes",
        "dtparam=i2c_arm_baudrate=fast",
        "dtoverlay=w1-gpoi",
        "dtoverlay=w1-gpio,gpiopin=40",
        "dtoverlay=w1-gpio,pin=4",
        "dtoverlay=uart0-pi5,ctsrts=1",
        "enable_uart=2",
        "enable_uarts=1",
        "[pi6]",
        "#" + "x" * 98,
    ],
)
def test_a_wrong_line_is_found(line: str) -> None:
    assert len(list(findings(f"# before\n{line}\n"))) == 1


# the first boot


def schema(cloud_init: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [cloud_init, "schema", "--config-file", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_cloud_init_takes_the_user_data(cloud_init: str) -> None:
    done = schema(cloud_init, PI / "user-data")
    assert done.returncode == 0, done.stderr
    assert "Valid" in done.stdout


def test_cloud_init_would_find_a_wrong_line(cloud_init: str, tmp_path: Path) -> None:
    text = (PI / "user-data").read_text()
    for old, new in (("packages:", "packages: 7\nx:"), ("runcmd:", "runcmd: {a: 1}\ny:")):
        assert old in text
        (tmp_path / "wrong").write_text(text.replace(old, new, 1))
        assert schema(cloud_init, tmp_path / "wrong").returncode != 0


@pytest.mark.usefixtures("systemd_tools")
def test_its_commands_are_ours_and_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = YAML(typ="safe").load((PI / "user-data").read_text())
    *_, pip, install = data["runcmd"]
    extras = set(pip[-1].removeprefix("imlmesh[").removesuffix("]").split(","))
    declared = tomllib.loads((SHIPPED.parent / "pyproject.toml").read_text())["project"]
    # --hardware opens all buses of the board
    assert {"gpio", "i2c", "serial"} <= extras <= set(declared["optional-dependencies"])
    program, *words = install
    assert program == "/opt/imlmesh/bin/imlmesh"
    make_node(
        Authority.create(Home(tmp_path / "mesh"), "home", "orchestrator"),
        data["hostname"],
        tmp_path / "node",
        brokers=("127.0.0.1:8883",),
    )
    (tmp_path / "image").mkdir()
    tried = [
        str(tmp_path / "node") if word == "/boot/firmware/imlmesh-node" else word for word in words
    ]
    code = run([*tried, "--dry-run", "--root", str(tmp_path / "image")])
    assert code == 0
    assert f"imlmesh-node@{data['hostname']}.service" in capsys.readouterr().out


# the broker


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition(" ")
            found.setdefault(name, []).append(value)
    return found


def test_mosquitto_is_told_the_same_as_by_up() -> None:
    shipped = directives((MOSQUITTO / "mosquitto.conf").read_text())
    place = Path("/etc/mosquitto/imlmesh")
    ours = directives(
        config_text(Layout(place, (EVERYWHERE, 8883), ("127.0.0.1", 8884), "mosquitto"))
    )
    assert shipped == ours


def test_the_access_rules_are_those_of_up() -> None:
    rules = re.sub(r"(?m)^#.*\n", "", (MOSQUITTO / "mesh.acl").read_text())
    assert rules == acl_text("home", "orchestrator")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    authority = Authority.create(home, "home", "orchestrator")
    for name in ("a", "b"):
        make_node(authority, name, home.node(name), brokers=("127.0.0.1:8883",))
    return home


@asynccontextmanager
async def serving(home: Home, folder: Path) -> AsyncIterator[tuple[int, int]]:
    """Mosquitto with the shipped files, in `folder` instead of /etc, on free ports of loopback; its
    lists are brought there as imlmesh-access.service does it."""
    place = folder / "etc"
    place.mkdir()
    shutil.copy(MOSQUITTO / "openssl.cnf", place)
    ports = own_port(), own_port()
    number = folder / "pid"
    number.write_text("0")
    access = ["--home", str(home.root), "--to", str(place), "--control", f"127.0.0.1:{ports[1]}"]
    told = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imlmesh_broker.access", *access, "--pid", "cat", str(number))
    )
    await eventually((home.broker / "applied.json").exists)
    text = (MOSQUITTO / "mosquitto.conf").read_text()
    assert text.count("/etc/mosquitto/imlmesh/") == 9
    text = text.replace("/etc/mosquitto/imlmesh/", f"{place}/")
    text = text.replace("listener 8883", f"listener {ports[0]} 127.0.0.1")
    text = text.replace("listener 8884", f"listener {ports[1]}")
    # its own user could not read what a test may write
    text = text.replace("user mosquitto", "user root")
    (place / "mosquitto.conf").write_text(text)
    with (folder / "log").open("wb") as log:
        command = [find_mosquitto(), "-c", str(place / "mosquitto.conf")]
        variables = {**os.environ, "OPENSSL_CONF": str(place / "openssl.cnf")}
        broker = await asyncio.create_subprocess_exec(
            *command, stderr=log, stdout=log, env=variables
        )
    number.write_text(str(broker.pid))
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await answers(ports[0]):
                assert broker.returncode is None, (folder / "log").read_text()
                await asyncio.sleep(0.02)
        yield ports
    finally:
        told.terminate()
        await told.wait()
        if broker.returncode is None:
            broker.terminate()
        await broker.wait()


async def answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


@pytest.mark.mosquitto
async def test_mosquitto_starts_with_it_and_passes_the_probe(home: Home, tmp_path: Path) -> None:
    async with serving(home, tmp_path) as ports:
        places = [("127.0.0.1", port) for port in ports]
        found = await Probe("home", *places, cast_of(home, tmp_path / "other")).run()
    assert len(found) == 17
    assert [finding for finding in found if not finding.passed] == []


def cast_of(home: Home, elsewhere: Path) -> Cast:
    other = Home(elsewhere)
    make_node(Authority.create(other, "home", "orchestrator"), "a", other.node("a"))
    for name in ("root.pub", "trust"):
        shutil.copy(home.ca / name, other.node("a") / "keys" / name)
    anonymous = ssl.create_default_context(cafile=str(home.ca / "control-ca.pem"))
    anonymous.check_hostname = False

    async def revoke() -> None:
        pem = (home.node("a") / "keys" / "node.pem").read_bytes()
        Authority.open(home).revoke([x509.load_pem_x509_certificate(pem).serial_number])

    return Cast(
        anonymous=anonymous,
        stranger=NodeKeys.load(other.node("a"), "home").context(),
        control=ControlKeys.load(home.ca, "home").context(),
        node=("a", NodeKeys.load(home.node("a"), "home").context()),
        other=("b", NodeKeys.load(home.node("b"), "home").context()),
        revoke=revoke,
    )


@pytest.mark.usefixtures("systemd_tools")
def test_the_drop_in_closes_the_unit_of_mosquitto(tmp_path: Path) -> None:
    unit = tmp_path / "mosquitto.service"
    unit.write_text(
        "[Service]\nType=notify\nExecStart=/bin/true -c /etc/mosquitto/mosquitto.conf\n"
    )
    bare = exposure(unit)
    (tmp_path / "mosquitto.service.d").mkdir()
    shutil.copy(MOSQUITTO / "hardening.conf", tmp_path / "mosquitto.service.d" / "imlmesh.conf")
    verified: Any = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, b"")
    assert bare > 90
    assert exposure(unit) <= 20
