"""What a simulated process stands on: clocks, a suspend, a disk that may be full.

The one rule: the wall clock is read once, at the start of a process; a step of it changes nothing
while one runs (the twin of `imlmesh_runtime.clock`, in virtual time). While the machine sleeps time
goes on and nothing is heard; what reached its sockets meanwhile is heard when it wakes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from world import World


class Machine:
    """Outlives the processes on it."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._step_ms = 0
        self.disk_full = False
        #: it starts never again
        self.broken = False
        self.asleep_since_ms: int | None = None
        self._heard: list[Callable[[], None]] = []

    @property
    def asleep(self) -> bool:
        return self.asleep_since_ms is not None

    def wall_ms(self) -> int:
        return self._world.now_ms + self._step_ms

    def step_wall(self, by_ms: int) -> None:
        self._step_ms += by_ms

    def free_disk(self) -> None:
        self.disk_full = False

    def hear(self, act: Callable[[], None]) -> None:
        """Now, or when it wakes."""
        if self.asleep:
            self._heard.append(act)
        else:
            act()

    def sleep(self) -> None:
        if not self.asleep:
            self.asleep_since_ms = self._world.now_ms

    def wake(self) -> tuple[int, list[Callable[[], None]]]:
        """How long it slept, and what reached it meanwhile."""
        slept_ms = self._world.now_ms - (self.asleep_since_ms or self._world.now_ms)
        self.asleep_since_ms = None
        heard, self._heard = self._heard, []
        return slept_ms, heard

    def forget_heard(self) -> None:
        """The process that would have heard it is gone."""
        self._heard.clear()


class SimClock:
    """Mesh time as one process counts it: what it is ahead of the world's own time."""

    def __init__(self, world: "World", start_ms: int) -> None:
        self._world = world
        self.ahead_ms = start_ms - world.now_ms
        self.synced = False

    def now_ms(self) -> int:
        return self._world.now_ms + self.ahead_ms

    def sync(self, mesh_ms: int) -> None:
        self.ahead_ms = mesh_ms - self._world.now_ms
        self.synced = True

    def world_ms(self, mesh_ms: int | None) -> int | None:
        """When this clock will show that time, in the world's."""
        return None if mesh_ms is None else mesh_ms - self.ahead_ms
