"""`imlmesh driver new`: the package that it writes is installed, tested, and runs in a plan."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from forked import typed
from imlmesh import Client

if TYPE_CHECKING:
    from conftest import Person

#: a name that holds the example's own, and one of two words
NAMES = ["clamp", "rain_gauge"]
Uv = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv that sees the packages of this one, ours too; its interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    place = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    ours = sysconfig.get_path("purelib")
    (place / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def drivers(person: Person, environment: Path, uv: Uv) -> dict[str, Path]:
    """The folders of new drivers by name, installed without a network."""
    made = {}
    for name in NAMES:
        made[name] = Path(person.ask("driver", "new", name)["folder"])
        install = ("pip", "install", "--offline", "--no-deps", "--no-build-isolation")
        done = uv(*install, "--python", str(environment), str(made[name]))
        assert done.returncode == 0, done.stderr
    person.python = str(environment)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_its_own_tests_pass(drivers: dict[str, Path], environment: Path, name: str) -> None:
    done = subprocess.run(
        [environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"],
        cwd=drivers[name],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "15 passed" in done.stdout


def test_it_is_listed_with_its_package(person: Person, drivers: dict[str, Path]) -> None:
    found = {row["module"]: row for row in person.ask("driver", "list")["drivers"]}
    assert found["rain_gauge"] == {
        "module": "rain_gauge",
        "package": "imlmesh-driver-rain-gauge",
        "version": "0.1.0",
        "actions": ["read", "set_level"],
        "problem": None,
    }
    assert found["iot"]["package"] == "imlmesh"


def test_it_runs_in_a_plan(person: Person, drivers: dict[str, Path]) -> None:
    package = drivers["clamp"]
    up = person.open("up", "--timing", "lan", "--policy", str(package / "policy.toml"))
    own = up.expect(r"✔ node (\S+)")[1]
    up.expect("Ctrl-C stops")
    checked = person.ask("plan", "check", str(package / "plan.iml.yaml"), "--mesh")
    assert checked["errors"] == [], checked
    run = person.run("plan", "run", str(package / "plan.iml.yaml"), "--detach").stdout.strip()
    with Client.connect(person.home) as client:
        found = client.wait(run, timeout_s=30)
    assert found["state"] == "completed", found
    results = {action["action"]: action["result"] for action in found["actions"]}
    assert results == {"set_level": {"level": 80, "previous": 0}, "read": {"level": 80}}
    told = person.run("run", "logs", run).stdout
    assert "the clamp went from 0 to 80" in told
    # it came from the package and ran in a process of its own, not in the node
    assert (person.home / "nodes" / own / "files" / "clamp.level").read_text() == "80"
    up.press("\x03")
    assert up.wait(40) == 0
    # at the end of the node the driver brought it into its safe state
    assert (person.home / "nodes" / own / "files" / "clamp.level").read_text() == "0"


def test_a_new_version_serves_without_a_restart(
    person: Person, drivers: dict[str, Path], environment: Path, tmp_path: Path
) -> None:
    module = installed(environment)
    whole = module.read_text()
    newer = whole.replace('"0.1.0"', '"0.2.0-new"').replace("def read(", "def look(")
    up = person.open("up", "--timing", "lan", "--policy", str(drivers["clamp"] / "policy.toml"))
    own = up.expect(r"✔ node (\S+)")[1]
    up.expect("Ctrl-C stops")
    node, log = person.home / "nodes" / own, person.home / "logs" / f"node-{own}.log"
    number = int((node / "node.lock").read_text())
    first, second, third = (tmp_path / f"{n}.iml.json" for n in ("first", "second", "third"))
    first.write_text(plan_of("set_level", level=60, seconds=6))
    second.write_text(plan_of("look"))
    third.write_text(plan_of("set_level", level=7))
    try:
        slow = person.run("plan", "run", str(first), "--detach").stdout.strip()
        person.until(lambda: level(node) > 0)
        rewrite(module, newer)
        os.kill(number, signal.SIGHUP)
        # known to the mesh while the old one still goes its way
        person.until(lambda: not person.ask("plan", "check", str(second), "--mesh")["errors"])
        assert level(node) < 60
        quick = person.run("plan", "run", str(second), "--detach").stdout.strip()
        with Client.connect(person.home) as client:
            done = [client.wait(run, timeout_s=40) for run in (slow, quick)]
        assert [found["state"] for found in done] == ["completed"] * 2, done
        assert [found["actions"][0]["result"] for found in done] == [
            {"level": 60, "previous": 0},
            # the old one left the safe state behind
            {"level": 0},
        ]
        rewrite(module, "import no_such_library\n")
        os.kill(number, signal.SIGHUP)
        person.until(lambda: "the module clamp stays as it was" in log.read_text())
        with Client.connect(person.home) as client:
            run = person.run("plan", "run", str(third), "--detach").stdout.strip()
            assert client.wait(run, timeout_s=30)["state"] == "completed"
        assert int((node / "node.lock").read_text()) == number
    finally:
        rewrite(module, whole)
    up.press("\x03")
    assert up.wait(40) == 0


def plan_of(action: str, **params: Any) -> str:
    """A plan of one action of the clamp."""
    head = {"protocol_version": "2.0", "plan_id": "clamp", "description": "Try it"}
    one = {"id": "one", "module": "clamp", "action": action, "params": params}
    return json.dumps({**head, "actions": [one]})


def level(node: Path) -> int:
    """That of the clamp; 0 before there is one."""
    try:
        return int((node / "files" / "clamp.level").read_text() or 0)
    except FileNotFoundError:
        return 0


def installed(environment: Path) -> Path:
    """The clamp's code as it was installed."""
    place = Path(sysconfig.get_path("purelib", vars={"base": str(environment.parents[1])}))
    return place / "imlmesh_driver_clamp" / "driver.py"


def rewrite(module: Path, text: str) -> None:
    """As an update does: no cache of the one before has its time."""
    later_ns = module.stat().st_mtime_ns + 2_000_000_000
    module.write_text(text)
    os.utime(module, ns=(later_ns, later_ns))


def test_it_says_how_it_comes_beside_this_imlmesh(person: Person) -> None:
    told = person.run("driver", "new", "kettle").stderr
    line = told.partition("next:")[2]
    assert person.python in line
    assert f"-e {person.folder / 'imlmesh-driver-kettle'} pytest" in line


def test_nothing_is_written_over(person: Person, drivers: dict[str, Path]) -> None:
    before = {path: path.read_bytes() for path in drivers["clamp"].rglob("*") if path.is_file()}
    refused = person.run("driver", "new", "clamp", "--json")
    assert refused.returncode != 0
    assert '"folder.exists"' in refused.stderr
    assert {p: p.read_bytes() for p in drivers["clamp"].rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    "name", ["", "Kettle", "9lives", "a-b", "_a", "a__b", "class", "iot", "../x", "x" * 41, "é"]
)
def test_a_name_that_no_module_may_have(person: Person, name: str) -> None:
    refused = typed(("driver", "new", name, "--json"), person.folder, person.env)
    assert refused.returncode == 3, refused.stderr
    assert '"name.invalid"' in refused.stderr
    assert not list(person.folder.glob(f"imlmesh-driver-{name or '-'}"))


def test_a_driver_that_does_not_load_is_listed_with_its_reason(
    person: Person, drivers: dict[str, Path], environment: Path
) -> None:
    module = installed(environment)
    whole = module.read_text()
    try:
        rewrite(module, "import no_such_library\n")
        found = {row["module"]: row for row in person.ask("driver", "list")["drivers"]}
    finally:
        rewrite(module, whole)
    assert "no_such_library" in found["clamp"]["problem"]
    assert found["rain_gauge"]["problem"] is None
