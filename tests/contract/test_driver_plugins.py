"""Drivers of third parties, found by their entry points; and pins without their libraries."""

import sys
from pathlib import Path

import pytest

from imlmesh_drivers.base import PinRules, Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import perform, perform_now
from imlmesh_drivers.iot import Iot
from imlmesh_drivers.registry import driver_class, module_of, modules
from imlmesh_node.config import Policy
from imlmesh_node.shell import node_manifest
from imlmesh_protocol.errors import DriverError

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


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kettle_plugin.py").write_text(SOURCE)
    (tmp_path / "broken_plugin.py").write_text("class Broken(")
    (tmp_path / "raising_plugin.py").write_text("1 / 0")
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
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("plugin")
async def test_an_installed_driver_is_found_and_works() -> None:
    assert "kettle" in modules()
    kettle = driver_class("kettle")
    boil = module_of(kettle).actions["boil"]
    assert (boil.claims, boil.permission) == (("kettle",), "local_worker")
    assert kettle.runs_of("boil") == "process"
    assert await perform(kettle(Site(files="/")), "boil", {"cups": 2}, Call("d")) == {"cups": 2}


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("module", ["teapot", "gone", "broken", "raising", "untyped"])
def test_an_entry_point_that_is_no_driver_of_its_module(module: str) -> None:
    with pytest.raises(DriverError) as caught:
        driver_class(module)
    assert caught.value.code == "driver.missing"


@pytest.mark.usefixtures("plugin")
def test_a_plug_in_that_does_not_load_costs_a_node_that_module_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    modules = ("filesystem", "broken", "kettle", "raising")
    found = node_manifest(Policy("local_worker", modules, Site(files="/"))).modules
    assert set(found) == {"filesystem", "kettle"}
    assert [record.code for record in caplog.records] == ["driver.missing"] * 2  # type: ignore[attr-defined]
    assert "SyntaxError" in caplog.text


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
    assert "imlmesh[gpio]" in caught.value.message


def test_a_pin_that_the_board_lacks_is_unavailable() -> None:
    driver = Iot(Site(files="/", pins=PinRules("mock", (50,))))
    with pytest.raises(DriverError) as caught:
        perform_now(driver, "digital_read", {"pin": 50}, Call("d"))
    assert caught.value.code == "driver.unavailable"
