"""The IML module `lamp`: read its level and change it, at once or slowly.

The one rule: whatever happens, the lamp ends in its safe state, which is off.
"""

import time
from pathlib import Path
from typing import Annotated, TypedDict

from imlmesh_driver_lamp.device import Device
from imlmesh_drivers import Call, Driver, DriverError, Interval, Site, Undo, action

Level = Annotated[int, Interval(ge=0, le=100)]
Seconds = Annotated[float, Interval(ge=0, le=600)]


class LevelRead(TypedDict):
    """What `read` returns: 0 is off, 100 is full."""

    level: int


class LevelSet(LevelRead):
    """What `set_level` returns: the new level and the one before it."""

    previous: int


class LampDriver(Driver):
    """Read and set the level of the lamp."""

    module = "lamp"
    version = "0.1.0"
    # In a process of its own: the node stops it when an action takes too long.
    runs = "process"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._device = Device(Path(site.files) / "lamp.level")

    @action(effect="pure", impact=0.1, permission="readonly", claims="lamp")
    def read(self) -> LevelRead:
        """Read the level: 0 is off, 100 is full."""
        return {"level": self._level()}

    @action(
        effect="physical",
        impact=0.5,
        permission="local_worker",
        claims="lamp",
        undo=Undo("set_level", {"level": "{{result.previous}}"}),
    )
    def set_level(self, call: Call, level: Level, seconds: Seconds = 0.0) -> LevelSet:
        """Go to a level, one by one over `seconds`; `previous` is the level before."""
        previous = self._level()
        try:
            self._go(call, previous, level, seconds)
        except OSError:
            # half a way is no effect: back, if the device still listens
            self._device.set_level(previous)
            raise
        call.log(f"the lamp went from {previous} to {level}")
        return {"level": level, "previous": previous}

    def _go(self, call: Call, start: int, end: int, seconds: float) -> None:
        way = range(start, end, 1 if end > start else -1)
        for done, between in enumerate(way):
            call.progress(done / len(way), f"at {between}")
            self._device.set_level(between)
            time.sleep(seconds / len(way))
        self._device.set_level(end)

    def safe(self) -> None:
        """Off: before the first action, at the end, and after an action was killed."""
        self._device.set_level(0)

    def _level(self) -> int:
        try:
            return self._device.level()
        except OSError as exc:
            raise DriverError("driver.unavailable", f"the lamp: {exc}") from exc
        except ValueError as exc:
            raise DriverError("driver.reading", str(exc)) from exc
