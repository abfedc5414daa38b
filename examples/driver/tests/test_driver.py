"""The driver alone, and as a node runs it: in a child process, found by its entry point."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from imlmesh_driver_lamp.device import Device
from imlmesh_driver_lamp.driver import LampDriver
from imlmesh_drivers import Call, DriverError, Site
from imlmesh_drivers.child import Child
from imlmesh_drivers.invoke import perform_now
from imlmesh_drivers.registry import driver_class, module_of


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """What a node's policy would give: a folder for files."""
    return Site(files=str(tmp_path))


@pytest.fixture
def driver(site: Site) -> LampDriver:
    made = LampDriver(site)
    made.safe()
    return made


def call(driver: LampDriver, action: str, **params: Any) -> Any:
    """Call an action as a node does: params are checked, every error is a coded one."""
    return perform_now(driver, action, params, Call("test"))


def test_it_goes_to_a_level_and_tells_the_one_before(driver: LampDriver) -> None:
    assert call(driver, "set_level", level=40) == {"level": 40, "previous": 0}
    assert call(driver, "set_level", level=30) == {"level": 30, "previous": 40}
    assert call(driver, "read") == {"level": 30}


@pytest.mark.parametrize("params", [{}, {"level": 101}, {"level": "40"}, {"level": 4, "x": 1}])
def test_wrong_params_are_refused(driver: LampDriver, params: dict[str, Any]) -> None:
    with pytest.raises(DriverError) as caught:
        call(driver, "set_level", **params)
    assert caught.value.code == "driver.params"
    assert call(driver, "read") == {"level": 0}


@pytest.mark.parametrize("said", ["", "lots", "101", "-1", "\udcff"])
def test_nonsense_of_the_device_is_never_a_value(driver: LampDriver, site: Site, said: str) -> None:
    Path(site.files, "lamp.level").write_text(said, errors="surrogateescape")
    with pytest.raises(DriverError) as caught:
        call(driver, "read")
    assert caught.value.code == "driver.reading"


def test_a_device_that_is_gone_is_told(driver: LampDriver, site: Site) -> None:
    Path(site.files, "lamp.level").unlink()
    with pytest.raises(DriverError) as caught:
        call(driver, "set_level", level=1)
    assert caught.value.code == "driver.unavailable"


def test_half_a_way_is_gone_back(driver: LampDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def set_level(_device: Device, level: int) -> None:
        asked.append(level)
        if level == 3:
            raise OSError("the wire is loose")

    monkeypatch.setattr(Device, "set_level", set_level)
    with pytest.raises(DriverError) as caught:
        call(driver, "set_level", level=5)
    assert caught.value.code == "driver.unavailable"
    assert asked == [0, 1, 2, 3, 0]


def test_it_declares_what_a_mesh_must_know() -> None:
    actions = module_of(LampDriver).actions
    assert actions["read"].effect == "pure"
    assert actions["set_level"].effect == "physical"
    assert actions["set_level"].claims == ("lamp",)


def test_it_is_found_and_runs_in_a_process_of_its_own(site: Site) -> None:
    assert driver_class("lamp") is LampDriver

    async def in_child() -> Any:
        child = Child("lamp", site.to_wire())
        try:
            return await child.call("set_level", {"level": 7}, Call("test"), timeout_s=10)
        finally:
            await child.close()

    assert asyncio.run(in_child()) == {"level": 7, "previous": 0}
    # the child ended, so the lamp is off
    assert Path(site.files, "lamp.level").read_text() == "0"


def test_an_action_that_takes_too_long_is_killed_and_the_lamp_is_off(site: Site) -> None:
    async def too_slow() -> None:
        child = Child("lamp", site.to_wire())
        try:
            await child.start()
            slow = {"level": 100, "seconds": 600.0}
            await child.call("set_level", slow, Call("test"), timeout_s=0.2)
        finally:
            await child.close()

    with pytest.raises(DriverError) as caught:
        asyncio.run(too_slow())
    assert caught.value.code == "driver.timeout"
    assert Path(site.files, "lamp.level").read_text() == "0"
