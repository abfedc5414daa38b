"""gpiozero's own mock pins, wired to the world: soil probes, a valve, and an MCP3008 converter.

The one rule: gpiozero sees pins like any other; only this side drives them.
"""

import threading
from typing import Any

from gpiozero.pins.mock import MockFactory, MockPin, MockPWMPin, MockSPIDevice

from imlmesh_drivers.iot.twins.greenhouse import Readings
from imlmesh_drivers.iot.twins.world import PROBES, VALVE, World

_BITS = 10  # of a conversion
#: where a request's channel ends: start bit, single-ended, three bits of channel
_REQUEST_BITS = 5


class TwinFactory(MockFactory):  # type: ignore[misc]
    """Pins that can do PWM, but for those that a converter is wired to."""

    def __init__(self, world: World, lock: threading.RLock) -> None:
        """`lock` is held by whoever changes pins, so that the world does not do so meanwhile."""
        super().__init__()
        self._world = world
        self._lock = lock
        #: gpiozero's names of the pins of the converter
        self._wired: frozenset[str] = frozenset()
        #: BCM number to pin, of those that the world looks at or drives
        self._ends = {number: self.pin(number) for number in (*PROBES, VALVE)}
        world.valve_open = self._valve_is_open
        world.watch(self._drive_probes)

    def pin(self, name: Any, pin_class: type[MockPin] | None = None) -> MockPin:
        if pin_class is None:
            wired = any(info.name in self._wired for _, info in self.board_info.find_pin(name))
            pin_class = MockPin if wired else MockPWMPin
        return super().pin(name, pin_class)

    def wire_converter(self, clock: int, mosi: int, miso: int, select: int) -> None:
        """Put an MCP3008 on four pins that nothing uses."""
        ends = [
            next(info for _, info in self.board_info.find_pin(number))
            for number in (clock, mosi, miso, select)
        ]
        for info in ends:
            self.pins.pop(info, None)
        self._wired = frozenset(info.name for info in ends)
        Mcp3008(self._world, clock, mosi, miso, select, pin_factory=self)

    def _valve_is_open(self) -> bool:
        """A pin that nobody drives holds no relay, whatever level it still shows."""
        valve = self._ends[VALVE]
        return valve.function == "output" and bool(valve.state)

    def _drive_probes(self, readings: Readings) -> None:
        with self._lock:
            for number, enough in PROBES.items():
                pin = self._ends[number]
                if pin.function == "input":
                    (pin.drive_high if readings.soil >= enough else pin.drive_low)()


class Mcp3008(MockSPIDevice):  # type: ignore[misc]
    """Channel 0 measures the soil, all others lie on ground. Frames as in the data sheet, 5.0."""

    def __init__(self, world: World, *pins: int, pin_factory: TwinFactory) -> None:
        super().__init__(*pins, pin_factory=pin_factory)
        self._world = world

    def on_start(self) -> None:
        super().on_start()
        self._begun = False

    def on_bit(self) -> None:
        if not self._begun:
            # zeros may come before the start bit
            self._begun = bool(self.rx_buf[-1])
            del self.rx_buf[: len(self.rx_buf) - self._begun]
        elif len(self.rx_buf) == _REQUEST_BITS:
            channel = self.rx_word() & 0b111
            soil = self._world.readings().soil if channel == 0 else 0.0
            # one bit to sample in and a null bit come before the conversion
            self.tx_word(round(soil * (2**_BITS - 1)), _BITS + 2)
