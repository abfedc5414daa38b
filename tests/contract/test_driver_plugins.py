"""Drivers of third parties, found by their entry points; and pins without their libraries."""

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from imlmesh.main import run
from imlmesh_drivers import Driver, action, apart, registry
from imlmesh_drivers.base import PinRules, Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import perform, perform_now
from imlmesh_drivers.iot import Iot
from imlmesh_drivers.registry import driver_class, module_of, modules, shipped_manifest
from imlmesh_node.config import Policy
from imlmesh_node.guard import Guard
from imlmesh_node.offering import Offering
from imlmesh_protocol.errors import DriverError, Fault
from imlmesh_protocol.wire.dispatches import Dispatch
from waiting import ended, eventually

SOURCE = """
from imlmesh_drivers import Call, Driver, action

class Kettle(Driver):
    module = "kettle"
    version = "0.3.0"

    @action(effect="physical", impact=0.6, permission="local_worker", claims="kettle")
    async def boil(self, call: Call, cups: int = 1) -> dict[str, int]:
        \"\"\"Boil water.\"\"\"
        call.progress(1)
        return {"cups": cups}
"""


#: what no `except` of ours would catch; the last two leave a mark of who imported them
DEADLY = {
    "ending": "import os\nos._exit(0)",
    "breaking": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "endless": """
import os, pathlib, subprocess, time
started = subprocess.Popen(["sleep", "600"])
pathlib.Path(__file__).with_name("endless.pid").write_text(f"{os.getpid()} {started.pid}")
time.sleep(600)
""",
    "greedy": "bytearray(4 << 30)",
    "loud": "print('noise ' * 100_000)\n" + SOURCE.replace("kettle", "loud"),
}


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kettle_plugin.py").write_text(SOURCE)
    (tmp_path / "broken_plugin.py").write_text("class Broken(")
    (tmp_path / "raising_plugin.py").write_text("1 / 0")
    (tmp_path / "exiting_plugin.py").write_text("import sys\nsys.exit(3)")
    (tmp_path / "untyped_plugin.py").write_text(SOURCE.replace("int = 1", "Cups = 1"))
    info = tmp_path / "kettle_plugin-0.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kettle-plugin\nVersion: 0.3.0\n")
    (info / "entry_points.txt").write_text(
        "[imlmesh.drivers]\n"
        "kettle = kettle_plugin:Kettle\n"
        "teapot = kettle_plugin:Kettle\n"
        "gone = no_such_package:Gone\n"
        "iot = kettle_plugin:Kettle\n"
        "broken = broken_plugin:Broken\n"
        "raising = raising_plugin:Raising\n"
        "untyped = untyped_plugin:Kettle\n"
        "exiting = exiting_plugin:Kettle\n"
        "foreign = foreign_plugin:Kettle\n"
        + "".join(f"{name} = {name}_plugin:Kettle\n" for name in DEADLY)
    )
    for name, text in DEADLY.items():
        (tmp_path / f"{name}_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("plugin")
async def test_an_installed_driver_is_found_and_works() -> None:
    assert "kettle" in modules()
    kettle = driver_class("kettle")
    boil = module_of(kettle).actions["boil"]
    assert (boil.claims, boil.permission) == (("kettle",), "local_worker")
    assert kettle.runs_of("boil") == "process"
    assert await perform(kettle(Site(files="/")), "boil", {"cups": 2}, Call("d")) == {"cups": 2}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("module", ["teapot", "gone", "broken", "raising", "untyped", "exiting"])
def test_an_entry_point_that_is_no_driver_of_its_module(module: str) -> None:
    with pytest.raises(DriverError) as caught:
        driver_class(module)
    assert caught.value.code == "driver.missing"


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_that_does_not_load_costs_a_node_that_module_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    modules = ("filesystem", "broken", "kettle", "raising", "exiting")
    found = Offering(modules).manifest.modules
    assert set(found) == {"filesystem", "kettle"}
    assert found["kettle"] == module_of(driver_class("kettle"))
    assert [record.code for record in caplog.records] == ["driver.missing"] * 3  # type: ignore[attr-defined]
    assert "SyntaxError" in caplog.text


@pytest.mark.usefixtures("plugin")
async def test_a_plug_in_that_ends_breaks_or_hangs_its_process_costs_a_node_that_module_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(apart, "DRIVER_LOAD_MS", 4_000)
    modules = ("filesystem", "loud", *DEADLY)
    found = Offering(modules).manifest.modules
    assert set(found) == {"filesystem", "loud"}
    codes = sorted(record.code for record in caplog.records)  # type: ignore[attr-defined]
    assert codes == [*["driver.missing"] * 3, "driver.timeout"]
    assert "MemoryError" in caplog.text
    assert f"ended with {-signal.SIGSEGV}" in caplog.text
    # what hung is gone, with what it started
    hung = [int(pid) for pid in (tmp_path / "endless.pid").read_text().split()]
    await eventually(lambda: all(ended(pid) for pid in hung))
    assert os.getpid() not in hung


@pytest.mark.usefixtures("plugin")
def test_the_list_of_drivers_survives_every_plug_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(apart, "DRIVER_LOAD_MS", 4_000)
    assert run(["driver", "list", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)["drivers"]
    problems = {row["module"]: row["problem"] for row in listed}
    assert problems["kettle"] is None
    assert problems["exiting"].startswith("driver.missing: ")
    assert problems["endless"].startswith("driver.timeout: ")


class Leaving(Driver):
    """Its actions end the process that runs them, as a script would."""

    module = "leaving"
    version = "0.1.0"

    @action(effect="pure", impact=0.1, permission="readonly")
    def now(self) -> dict[str, int]:
        sys.exit(1)

    @action(effect="pure", impact=0.1, permission="readonly")
    async def later(self) -> dict[str, int]:
        sys.exit(1)


async def test_an_action_that_would_end_the_process_fails_alone() -> None:
    driver = Leaving(Site(files="/"))
    with pytest.raises(DriverError) as caught:
        perform_now(driver, "now", {}, Call("d"))
    assert caught.value.code == "driver.failed"
    with pytest.raises(DriverError) as caught:
        await perform(driver, "later", {}, Call("d"))
    assert caught.value.code == "driver.failed"


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of another system."""
    monkeypatch.setattr(registry, "sys", SimpleNamespace(platform="darwin"))


@pytest.mark.usefixtures("elsewhere")
def test_a_node_of_another_system_offers_nothing_that_does_not_work_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    policy = Policy("local_worker", ("iot", "os_exec"), Site(files="/"))
    manifest = Offering(policy.modules).manifest
    assert manifest.modules == {}
    assert [record.code for record in caplog.records] == ["driver.platform"] * 2  # type: ignore[attr-defined]
    told = "without the module iot: driver.platform: the driver of 'iot' works on linux, and this is darwin"
    assert told in caplog.text
    effect = shipped_manifest().modules["os_exec"].actions["get_system_info"].effect
    asked = Dispatch("r/a/pi/1", "os_exec", "get_system_info", {}, effect, 1, 1, "finish")
    refusal = Guard(policy, manifest).check(asked)[1]
    assert refusal == Fault("action.unknown", "this node does not offer os_exec.get_system_info")


@pytest.mark.usefixtures("elsewhere")
def test_the_list_of_drivers_says_what_does_not_work_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["driver", "list", "-o", "json"]) == 0
    listed = {row["module"]: row for row in json.loads(capsys.readouterr().out)["drivers"]}
    assert listed["iot"]["actions"] == []
    assert listed["iot"]["problem"].startswith("driver.platform: ")
    # plans for nodes of other systems are checked all the same
    assert "iot" in shipped_manifest().modules


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_of_another_system_is_not_offered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    line = 'version = "0.3.0"'
    (tmp_path / "foreign_plugin.py").write_text(
        SOURCE.replace("kettle", "foreign").replace(
            line, f"{line}\n    platforms = ('win32', 'os2')"
        )
    )
    # those that hang or end their process would only cost the list its time
    (tmp_path / "kettle_plugin-0.3.0.dist-info" / "entry_points.txt").write_text(
        "[imlmesh.drivers]\nkettle = kettle_plugin:Kettle\nforeign = foreign_plugin:Kettle\n"
    )
    policy = Policy("local_worker", ("foreign", "kettle"), Site(files="/"))
    assert set(Offering(policy.modules).manifest.modules) == {"kettle"}
    assert [record.code for record in caplog.records] == ["driver.platform"]  # type: ignore[attr-defined]
    assert "works on win32, os2, and this is linux" in caplog.text
    assert run(["driver", "list", "-o", "json"]) == 0
    listed = {row["module"]: row for row in json.loads(capsys.readouterr().out)["drivers"]}
    assert listed["foreign"]["problem"].startswith("driver.platform: ")
    with pytest.raises(DriverError) as caught:
        driver_class("foreign")
    assert caught.value.code == "driver.platform"


def test_platforms_that_are_one_text_are_refused() -> None:
    with pytest.raises(ValueError, match="must be a tuple"):
        type("Wrong", (Driver,), {"module": "wrong", "version": "0.1.0", "platforms": "linux"})


@pytest.mark.usefixtures("plugin")
def test_a_built_in_driver_is_not_replaced() -> None:
    assert driver_class("iot") is Iot


@pytest.mark.parametrize(
    ("factory", "library"), [("mock", "gpiozero.pins.mock"), ("native", "gpiozero.pins.lgpio")]
)
def test_a_missing_pin_library_is_named_and_nothing_else_is_tried(
    factory: str, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "imlmesh_drivers.iot.twins.pins", raising=False)
    driver = Iot(Site(files="/", pins=PinRules(factory, (4,))))  # type: ignore[arg-type]
    with pytest.raises(DriverError) as caught:
        perform_now(driver, "digital_write", {"pin": 4, "value": 1}, Call("d"))
    assert caught.value.code == "driver.missing"
    assert caught.value.message.startswith("pin: a library is not installed (")
    assert library in caught.value.message
    assert "pip install 'imlmesh[gpio]'" in caught.value.message
    assert ("python3-lgpio" in caught.value.message) is (factory == "native")


def test_a_pin_that_the_board_lacks_is_unavailable() -> None:
    driver = Iot(Site(files="/", pins=PinRules("mock", (50,))))
    with pytest.raises(DriverError) as caught:
        perform_now(driver, "digital_read", {"pin": 50}, Call("d"))
    assert caught.value.code == "driver.unavailable"
