"""Bytes to and from devices on I2C.

The one rule: an action is one transaction: it is acknowledged as a whole, or fails.
"""

from typing import Annotated, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import action
from imlmesh_drivers.buses import Factory
from imlmesh_drivers.iot.board import Board
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import I2C_WRITE_BYTES

Address = Annotated[int, Interval(ge=0, le=127)]
Bus = Annotated[int, Interval(ge=0, le=10)]


class I2cSent(TypedDict):
    """How many bytes a device acknowledged."""

    bus: int
    address: int
    bytes_sent: int
    factory: Factory


class I2cReceived(TypedDict):
    """What a device said, as numbers from 0 to 255."""

    bus: int
    address: int
    data: list[int]
    factory: Factory


class I2cActions(Board):
    """Actions of one transaction each."""

    @action(effect="physical", impact=0.5, permission="local_worker", claims="i2c:{bus}")
    def send_i2c(
        self, address: Address, data: list[Annotated[int, Interval(ge=0, le=255)]], bus: Bus = 1
    ) -> I2cSent:
        """Write bytes to a device on an I2C bus; usually the first one names a register."""
        if not 1 <= len(data) <= I2C_WRITE_BYTES:
            text = f"data: {len(data)} bytes; 1 to {I2C_WRITE_BYTES} may be written"
            raise DriverError("driver.params", text)
        self.i2c.transfer(bus, address, bytes(data))
        return {
            "bus": bus,
            "address": address,
            "bytes_sent": len(data),
            "factory": self.i2c.rules(bus).factory,
        }

    @action(effect="pure", impact=0.1, permission="readonly", claims="i2c:{bus}")
    def receive_i2c(
        self, address: Address, num_bytes: Annotated[int, Interval(ge=1, le=256)], bus: Bus = 1
    ) -> I2cReceived:
        """Read bytes from a device on an I2C bus, from where it stands."""
        data = self.i2c.transfer(bus, address, b"", num_bytes)
        return {
            "bus": bus,
            "address": address,
            "data": list(data),
            "factory": self.i2c.rules(bus).factory,
        }
