"""Edges of pins: what is told, what is not, and that watching survives the end of a child."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.base import PinRules, Site
from imlmesh_drivers.buses import BusRules
from imlmesh_drivers.call import Call
from imlmesh_drivers.child import Child
from imlmesh_drivers.iot.edges import Watch
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import DRIVER_RESTARTS, SOURCE_EVENTS_PER_S
from waiting import eventually

WITHIN_S = 20


def test_each_edge_is_told_once_with_the_level_after_it(iot: Any) -> None:
    done = iot.do("add_event_detect", pin=4, bouncetime_ms=0)
    assert done == {
        "pin": 4,
        "edge": "both",
        "bouncetime_ms": 0,
        "source": "gpio-4",
        "factory": "mock",
    }
    iot.pin(4).drive_high()
    iot.pin(4).drive_high()
    iot.pin(4).drive_low()
    assert iot.seen == [
        ("gpio-4", {"pin": 4, "edge": "rising", "value": 1, "count": 1}),
        ("gpio-4", {"pin": 4, "edge": "falling", "value": 0, "count": 2}),
    ]


@pytest.mark.parametrize(("edge", "levels"), [("rising", [1, 1]), ("falling", [0, 0])])
def test_only_the_wanted_edge_is_told(iot: Any, edge: str, levels: list[int]) -> None:
    iot.do("add_event_detect", pin=4, edge=edge, bouncetime_ms=0)
    for _ in range(2):
        iot.pin(4).drive_high()
        iot.pin(4).drive_low()
    assert [values["value"] for _, values in iot.seen] == levels


def test_a_bouncing_contact_is_told_once(iot: Any) -> None:
    iot.do("add_event_detect", pin=4, bouncetime_ms=10_000)
    for _ in range(50):
        iot.pin(4).drive_high()
        iot.pin(4).drive_low()
    assert [values["edge"] for _, values in iot.seen] == ["rising"]


def test_a_flood_of_edges_is_told_at_its_rate_and_shows_its_gap() -> None:
    told: list[int] = []
    seconds = [5.0]
    watch = Watch(
        4,
        "both",
        0,
        "r-1/a/n/1",
        "none",
        lambda _, values: told.append(values["count"]),
        lambda: seconds[0],
    )
    for number in range(10_000):
        watch.changed(0, number % 2)
    assert told == list(range(1, SOURCE_EVENTS_PER_S + 1))
    seconds[0] = 6.0
    watch.changed(0, 1)
    assert told[-1] == 10_001


def test_a_watched_pin_is_read_and_keeps_its_pull(iot: Any) -> None:
    iot.do("set_pin_mode", pin=4, mode="input", pull="up")
    iot.do("add_event_detect", "r-3/door/n/1", pin=4)
    assert iot.do("digital_read", pin=4)["value"] == 1
    code, text = iot.refusal("add_event_detect", pin=4)
    assert (code, "r-3/door/n/1" in text) == ("driver.busy", True)
    assert iot.refusal("digital_write", pin=4, value=1)[0] == "driver.busy"


def test_a_pull_outlives_the_process(iot: Any, make_iot: Any) -> None:
    iot.do("set_pin_mode", pin=4, mode="input", pull="up")
    iot.do("add_event_detect", pin=4)
    successor = make_iot()
    successor.driver.restore(iot.kept)
    # a button to ground would else float, and tell edges that nobody made
    assert successor.do("digital_read", pin=4)["value"] == 1
    assert successor.kept == iot.kept


def test_removed_means_silent(iot: Any) -> None:
    iot.do("add_event_detect", pin=4, bouncetime_ms=0)
    assert iot.kept == [[4, "both", 0, "r-1/a/n/1", "none"]]
    assert iot.do("remove_event_detect", pin=4) == {"pin": 4, "removed": True}
    iot.pin(4).drive_high()
    assert iot.seen == []
    assert iot.kept == []
    assert iot.do("remove_event_detect", pin=4) == {"pin": 4, "removed": False}
    iot.do("digital_write", pin=4, value=1)


@pytest.mark.parametrize("wrong", [{"bouncetime_ms": 10_001}, {"edge": "up"}, {"pin": 54}])
def test_a_wrong_field_is_named(iot: Any, wrong: dict[str, Any]) -> None:
    code, text = iot.refusal("add_event_detect", **({"pin": 4} | wrong))
    assert code == "driver.params"
    assert f"{next(iter(wrong))}: " in text


def test_what_cannot_be_watched_any_more_says_so(make_iot: Any) -> None:
    iot = make_iot(pins=PinRules("mock", (4,)))
    iot.driver.restore([[4, "both", 0, "r-1/a/n/1", "none"], [5, "both", 0, "r-1/b/n/1", "up"]])
    iot.pin(4).drive_high()
    assert iot.seen == [
        ("gpio-5", {"pin": 5, "lost": "policy.pin"}),
        ("gpio-4", {"pin": 4, "edge": "rising", "value": 1, "count": 1}),
    ]


class Greenhouse:
    """A child over the simulated greenhouse, whose probe on pin 4 tells when its bed is wet."""

    def __init__(self, files: Path) -> None:
        self.edges: list[dict[str, Any]] = []
        self.some = asyncio.Event()
        site = Site(
            files=str(files),
            pins=PinRules("mock", (4, 17), {17: 0}),
            buses=BusRules(simulate=True),
        )
        self.child = Child("iot", site.to_wire(), self._take)

    async def do(self, action: str, **params: Any) -> Any:
        return await self.child.call(action, params, Call("r-1/a/n/1"), WITHIN_S)

    async def until(self, fits: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not fits():
                self.some.clear()
                await self.some.wait()

    async def until_replaced(self, pid: int | None) -> None:
        await eventually(lambda: self.child.pid not in (None, pid), WITHIN_S)

    def _take(self, name: str, values: Any) -> None:
        self.edges.append({"source": name, **values})
        self.some.set()


@pytest.fixture
async def greenhouse(tmp_path: Path) -> AsyncIterator[Greenhouse]:
    made = Greenhouse(tmp_path)
    yield made
    await made.child.close()


async def test_water_reaches_the_probe_and_a_killed_child_watches_again(
    greenhouse: Greenhouse,
) -> None:
    await greenhouse.do("add_event_detect", pin=4, edge="rising", bouncetime_ms=1_000)
    pid = greenhouse.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await greenhouse.until_replaced(pid)
    # the greenhouse began anew, dry, with its valve closed
    assert (await greenhouse.do("digital_read", pin=17))["value"] == 0
    assert (await greenhouse.do("digital_read", pin=4))["value"] == 0
    await greenhouse.do("digital_write", pin=17, value=1)
    await greenhouse.until(lambda: bool(greenhouse.edges))
    assert greenhouse.edges[0] == {
        "source": "gpio-4",
        "pin": 4,
        "edge": "rising",
        "value": 1,
        "count": 1,
    }
    with pytest.raises(DriverError) as caught:
        await greenhouse.do("digital_write", pin=4, value=1)
    assert caught.value.code == "driver.busy"


async def test_a_child_that_ends_again_and_again_is_left_alone(greenhouse: Greenhouse) -> None:
    await greenhouse.child.start()
    for _ in range(DRIVER_RESTARTS):
        pid = greenhouse.child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await greenhouse.until_replaced(pid)
        await greenhouse.child.start()
    os.kill(greenhouse.child.pid or 0, signal.SIGKILL)
    await eventually(lambda: greenhouse.child.pid is None, WITHIN_S)
    # until somebody calls it
    assert (await greenhouse.do("digital_read", pin=17))["value"] == 0
