"""What all actions of `iot` share: one set of pins, buses and twins for each driver.

The one rule: nothing is opened before an action needs it. Deliberately absent: actions; they stand by
kind in files of their own, each a class upon `Board`.
"""

from typing import ClassVar

from imlmesh_drivers.base import Driver, Runs, Site
from imlmesh_drivers.iot.i2c_buses import I2cBuses
from imlmesh_drivers.iot.pins import Pins
from imlmesh_drivers.iot.serial_ports import SerialPorts
from imlmesh_drivers.iot.twins.world import World


class Board(Driver):
    """The driver's parts."""

    module = "iot"
    version = "0.2.0"
    runs: ClassVar[Runs] = "process"
    platforms = ("linux",)  # its character devices for GPIO, I2C and SPI, 1-Wire in /sys

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.world = World(site.buses.simulate)
        self.pins = Pins(site.pins, self.world)
        self.i2c = I2cBuses(site.buses.i2c, self.world)
        self.serial = SerialPorts(site.buses.serial, self.world)

    @classmethod
    def stands_guard(cls, site: Site) -> bool:
        """A machine that lost its power may come back with a pump running."""
        return site.pins is not None and bool(site.pins.safe)

    def safe(self) -> None:
        """Set every pin that the policy gives a safe level to that level; stop what moves."""
        self.pins.safe()

    def close(self) -> None:
        self.serial.close()
        self.i2c.close()
