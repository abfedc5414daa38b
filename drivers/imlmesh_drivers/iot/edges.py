"""Edges of pins as a source of events: `source/gpio-N` on the wire.

The one rule: an edge is told once, with the level after it; for `bouncetime_ms` after one that was told
others are ignored, on mock and real pins alike. What is watched survives the end of this process, not
the end of the agent. Deliberately absent: what follows from an edge.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import Pin, Site, action
from imlmesh_drivers.buses import Factory
from imlmesh_drivers.call import Call
from imlmesh_drivers.iot.digital import PinActions
from imlmesh_drivers.iot.pins import Pull, hardware
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import SOURCE_EVENTS_PER_S
from imlmesh_protocol.manifest import Undo

Edge = Literal["rising", "falling", "both"]
Emit = Callable[[str, Mapping[str, Any]], None]


class Watched(TypedDict):
    """What is watched; edges come as events of `source`."""

    pin: int
    edge: Edge
    bouncetime_ms: int
    source: str
    factory: Factory


class Unwatched(TypedDict):
    """`removed` is false when nothing was watched."""

    pin: int
    removed: bool


class Watch:
    """The edges of one pin; `clock` gives seconds that only rise.

    gpiozero keeps no reference of its own to it: whoever made it must.
    """

    def __init__(
        self,
        pin: int,
        edge: Edge,
        bouncetime_ms: int,
        owner: str,
        pull: Pull,
        emit: Emit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.pin = pin
        self.edge = edge
        self.bouncetime_ms = bouncetime_ms
        self.owner = owner
        self.pull = pull
        self._emit = emit
        self._clock = clock
        self._lock = threading.Lock()
        self._told_ms: float | None = None
        #: edges that were seen; a gap in what is told means that there were too many
        self._count = 0
        #: the second that runs, and how many were told in it
        self._second = (0, 0)

    @property
    def source(self) -> str:
        return f"gpio-{self.pin}"

    def changed(self, _ticks: Any, level: Any) -> None:
        """gpiozero's call, on a thread of its own, with the level after the edge."""
        edge = "rising" if level else "falling"
        if self.edge not in (edge, "both"):
            return
        with self._lock:
            now_ms = self._clock() * 1_000
            if self._told_ms is not None and now_ms - self._told_ms < self.bouncetime_ms:
                return
            self._count += 1
            now_s = int(now_ms // 1_000)
            told = self._second[1] + 1 if self._second[0] == now_s else 1
            self._second = (now_s, told)
            if told > SOURCE_EVENTS_PER_S:
                return
            self._told_ms = now_ms
            values = {
                "pin": self.pin,
                "edge": edge,
                "value": int(bool(level)),
                "count": self._count,
            }
        self._emit(self.source, values)

    def to_keep(self) -> list[Any]:
        """What another process needs to watch the same."""
        return [self.pin, self.edge, self.bouncetime_ms, self.owner, self.pull]


class EdgeActions(PinActions):
    """Actions on edges of pins, and what is watched."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._watches: dict[int, Watch] = {}

    @action(
        effect="once",
        impact=0.5,
        permission="local_worker",
        claims="gpio:{pin}",
        undo=Undo("remove_event_detect", {"pin": "{{params.pin}}"}),
    )
    def add_event_detect(
        self,
        call: Call,
        pin: Pin,
        edge: Edge = "both",
        bouncetime_ms: Annotated[int, Interval(ge=0, le=10000)] = 200,
    ) -> Watched:
        """Tell every edge of an input as an event of the source gpio-PIN, until removed."""
        with self.pins.lock:
            self._watch(pin, edge, bouncetime_ms, call.dispatch)
            self._keep_watches()
        return {
            "pin": pin,
            "edge": edge,
            "bouncetime_ms": bouncetime_ms,
            "source": self._watches[pin].source,
            "factory": self.pins.rules.factory,
        }

    @action(effect="once", impact=0.5, permission="local_worker", claims="gpio:{pin}")
    def remove_event_detect(self, pin: Pin) -> Unwatched:
        """Watch the edges of a pin no more; it stays an input."""
        with self.pins.lock:
            self.pins.check(pin)
            return {"pin": pin, "removed": self.stop_watching(pin)}

    def restore(self, kept: Any) -> None:
        """Watch what the process before this one watched; what cannot be watched says so."""
        for pin, edge, bouncetime_ms, owner, pull in kept:
            try:
                with self.pins.lock:
                    self._watch(pin, edge, bouncetime_ms, owner, pull)
            except DriverError as exc:
                self.emit(f"gpio-{pin}", {"pin": pin, "lost": exc.code})
        self._keep_watches()

    def stop_watching(self, pin: int) -> bool:
        if self._watches.pop(pin, None) is None:
            return False
        self._keep_watches()
        # setting the safe state may have taken the pin away
        if (use := self.pins.use_of(pin, "edges")) is not None:
            with hardware(f"pin: gpio:{pin}"):
                use.device.pin.when_changed = None
            use.kind = "input"
        return True

    def _watch(
        self, pin: int, edge: Edge, bouncetime_ms: int, owner: str, pull: Pull | None = None
    ) -> None:
        """Without `pull` the pin keeps the one that it has."""
        before = self.pins.free(pin)
        if pull is None:
            pull = before.pull if before and before.kind == "input" else self.pins.own_pull(pin)
        use = self.pins.make_input(pin, pull, owner)
        watch = Watch(pin, edge, bouncetime_ms, owner, pull, self._tell)
        with hardware(f"pin: gpio:{pin}"):
            use.device.pin.edges = edge
            use.device.pin.when_changed = watch.changed
        use.kind = "edges"
        self._watches[pin] = watch

    def _tell(self, source: str, values: Mapping[str, Any]) -> None:
        self.emit(source, values)

    def _keep_watches(self) -> None:
        self.keep([watch.to_keep() for watch in self._watches.values()])
