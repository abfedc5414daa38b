"""The world that twins measure: standing still, or the greenhouse with time passing in it.

The one rule: all twins of a driver share one world, so that water let in by a pin is wet for the
sensors. A minute passes there in a second. Deliberately absent: any bus.
"""

import threading
import time
from collections.abc import Callable

from imlmesh_drivers.iot.twins.greenhouse import STILL, Greenhouse, Readings

#: how much faster time passes in the greenhouse
SPEED = 60.0
#: BCM pins: two probes that are 1 in wet enough soil, and the relay of the valve
PROBES = {4: 0.40, 5: 0.45}
VALVE = 17
_TURN_S = 0.2


class World:
    """`clock` gives seconds that only rise."""

    def __init__(self, simulate: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._greenhouse = Greenhouse() if simulate else None
        self._clock = clock
        self._then_s = clock()
        self._lock = threading.Lock()
        #: whether the valve is open; set by who has the pins
        self.valve_open: Callable[[], bool] = lambda: False

    def readings(self) -> Readings:
        """What is true now."""
        if self._greenhouse is None:
            return STILL
        valve_open = self.valve_open()
        with self._lock:
            now_s = self._clock()
            self._greenhouse.advance((now_s - self._then_s) / 60 * SPEED, valve_open)
            self._then_s = now_s
            return self._greenhouse.readings()

    def watch(self, turn: Callable[[Readings], None]) -> None:
        """Call `turn` several times a second from a thread, if anything ever changes here."""
        if self._greenhouse is None:
            return

        def run() -> None:
            while True:
                turn(self.readings())
                time.sleep(_TURN_S)

        threading.Thread(target=run, name="greenhouse", daemon=True).start()
