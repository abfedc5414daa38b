"""Voltages through an MCP3008 converter on the four pins of SPI 0.

The one rule: all four pins must be allowed, and nothing else may use them. Deliberately absent: other
converters; those on I2C are read with send_i2c and receive_i2c.
"""

from typing import Annotated, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import action
from imlmesh_drivers.buses import Factory
from imlmesh_drivers.iot.board import Board
from imlmesh_drivers.iot.pins import hardware

#: BCM numbers of SPI 0 with the first select line
_SPI = {"clock_pin": 11, "mosi_pin": 10, "miso_pin": 9, "select_pin": 8}


class Converted(TypedDict):
    """`raw` is 0 to 1023, `value` the same as 0 to 1, of the converter's reference voltage."""

    channel: int
    raw: int
    value: float
    factory: Factory
    #: "hardware", or "software" where gpiozero makes SPI from plain pins, which is slower
    spi: str


class AnalogActions(Board):
    """Actions on the converter."""

    @action(
        effect="pure",
        impact=0.1,
        permission="readonly",
        claims=tuple(f"gpio:{pin}" for pin in _SPI.values()),
    )
    def read_adc(self, channel: Annotated[int, Interval(ge=0, le=7)]) -> Converted:
        """Read one channel of an MCP3008 on SPI 0 (BCM 8 to 11)."""
        rules = self.pins.rules
        with self.pins.lock:
            self.pins.check_unused(_SPI.values())
            if rules.factory == "mock":
                self.pins.factory.wire_converter(*_SPI.values())
            with self.pins.open("MCP3008", channel=channel, **_SPI) as device, hardware("channel"):
                raw = device.raw_value
                from gpiozero.pins.spi import SPISoftware

                software = isinstance(device._spi, SPISoftware)
        return {
            "channel": channel,
            "raw": raw,
            "value": round(raw / 1023, 4),
            "factory": rules.factory,
            "spi": "software" if software else "hardware",
        }
