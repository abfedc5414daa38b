"""What all tests share: parts that a machine may lack.

A test whose part is missing is skipped with the reason; with CI=true it fails instead, so that a
build machine cannot pass by lacking something.
"""

import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from booted import missing_program, missing_right
from imlmesh_broker import child, choose_broker
from imlmesh_broker.mosquitto import find_mosquitto
from imlmesh_orchestrator.entry import endpoint
from imlmesh_protocol.errors import LinkError
from namespaces import Lan, why_not

ROOT = Path(__file__).resolve().parents[1]
NO_MOSQUITTO = "mosquitto is not installed (apt-get install mosquitto)"
REQUIRED = os.environ.get("CI") == "true"

# fewer than the default: the whole unit layer has to stay within seconds
settings.register_profile("quick", max_examples=30, deadline=None)
settings.load_profile("quick")

# Meshes of two test processes must not wait for each other's ports: one that starts again has to find
# its own ones free. Below those that the system gives to clients.
PORTS = 10_000 + os.getpid() % 1_000 * 20
child.USUAL_PORT, child.USUAL_CONTROL_PORT = PORTS, PORTS + 1
endpoint.USUAL_PORT = PORTS + 10

# Files that take long and whose tests share nothing: all test processes take their tests in turn.
SPREAD = frozenset({"tests/sim/test_worlds.py"})
# Files that all look at the parsed checkout: parsed once, in one test process.
TOGETHER = "tests/architecture"

Uv = Callable[..., subprocess.CompletedProcess[str]]


def lack(reason: str) -> NoReturn:
    """End the test that asks: skipped on a machine of a person, failed on a build machine."""
    if REQUIRED:
        pytest.fail(f"{reason}, and CI=true requires it", pytrace=False)
    pytest.skip(reason)


def is_installed(mosquitto: Callable[[], object]) -> bool:
    try:
        mosquitto()
    except LinkError:
        return False
    return True


@pytest.fixture(scope="session")
def broker_program() -> None:
    """A broker that `up` can start; IMLMESH_BROKER may force one that is not there."""
    if not is_installed(lambda: choose_broker(os.environ)):
        lack(NO_MOSQUITTO)


@pytest.fixture(scope="session")
def namespaces_allowed() -> None:
    """The right to make network namespaces, and the programs for it."""
    if reason := why_not():
        lack(reason)


@pytest.fixture
def lan(namespaces_allowed: None) -> Iterator[Lan]:
    """A local network without computers yet."""
    made = Lan()
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_lan(namespaces_allowed: None) -> Iterator[Lan]:
    """One for all tests of a file that ask for it."""
    made = Lan()
    yield made
    made.close()


@pytest.fixture(scope="session")
def systemd_tools() -> None:
    """The programs of systemd; it need not run this machine."""
    for program in ("systemd-analyze", "systemctl", "systemd-sysusers"):
        if shutil.which(program) is None:
            lack(f"{program} is not installed (apt-get install systemd)")


@pytest.fixture(scope="session")
def cloud_init() -> str:
    """The program that checks user-data."""
    found = shutil.which("cloud-init")
    if found is None:
        lack("cloud-init is not installed (apt-get install cloud-init)")
    return found


@pytest.fixture(scope="session")
def esphome() -> Path:
    """ESPHome in a venv of its own: the first time it is installed, in about 20 s."""
    made = subprocess.run(
        [ROOT / "setup" / "esphome.sh"], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        lack(f"ESPHome cannot be installed: {made.stderr[-500:]}")
    return Path(made.stdout.strip())


@pytest.fixture(scope="session")
def as_root() -> None:
    """The right to give files away and to make namespaces."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def small_disk(as_root: None, tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 MB, empty."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ("-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", str(disk))
    made = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        lack(f"no disk can be mounted: {made.stderr.strip()}")
    yield disk
    # whoever still has a file open there is ending
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.fixture(scope="session")
def bootable(systemd_tools: None) -> None:
    """The programs to boot a machine within this one, and the rights; a container of a build machine
    may have none of these."""
    if reason := missing_program():
        lack(reason)
    if reason := missing_right():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def uv() -> Uv:
    """Runs uv as set-up does: uv(*arguments) -> the completed process, with stdout and stderr."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "setup" / "uv.sh", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def registry(uv: Uv, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package registry that answers."""
    wanted = tmp_path_factory.mktemp("registry") / "wanted.in"
    wanted.write_text("iniconfig\n")
    asked = uv("pip", "compile", "--quiet", "--no-header", "--refresh", str(wanted))
    if asked.returncode != 0:
        lack("no package registry answers")


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on another file system than `tmp_path`."""
    for place in (Path("/dev/shm"), Path("/var/tmp")):
        if place.is_dir() and place.stat().st_dev != tmp_path.stat().st_dev:
            with tempfile.TemporaryDirectory(dir=place) as folder:
                yield Path(folder)
            return
    lack("/dev/shm is no file system of its own")


@pytest.fixture(scope="session")
def mosquitto_clients() -> None:
    """Mosquitto's own clients."""
    if shutil.which("mosquitto_sub") is None:
        lack("mosquitto_sub is not installed (apt-get install mosquitto-clients)")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("mosquitto") and not is_installed(find_mosquitto):
        lack(NO_MOSQUITTO)


class _Scheduling(LoadFileScheduling):
    """The tests of a file share what its fixtures made, and so a process; but for some long ones,
    and for those of a folder that share more."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if file in SPREAD:
            return nodeid
        return TOGETHER if file.startswith(f"{TOGETHER}/") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling | None:
    return _Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_finish() -> None:
    """What was collected stays: the tests need not look through it whenever they make objects."""
    gc.collect()
    gc.freeze()
