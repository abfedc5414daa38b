"""Text to and from serial ports.

The one rule: text is UTF-8; what comes and is not stays whole in its hexadecimal form.
"""

from typing import Annotated, Literal, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import action
from imlmesh_drivers.buses import Factory
from imlmesh_drivers.iot.board import Board
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import SERIAL_WRITE_BYTES

BaudRate = Literal[9600, 19200, 38400, 57600, 115200, 230400]
Timeout = Annotated[float, Interval(ge=0.1, le=30.0)]


class UartSent(TypedDict):
    """How many bytes left."""

    port: str
    bytes_sent: int
    factory: Factory


class UartReceived(TypedDict):
    """What came, as text (what is no UTF-8 is marked in it) and in hexadecimal."""

    port: str
    data: str
    hex: str
    bytes_received: int
    factory: Factory


class UartActions(Board):
    """Actions on serial ports."""

    @action(effect="physical", impact=0.5, permission="local_worker", claims="serial:{port}")
    def send_uart(
        self,
        *,
        port: str = "/dev/ttyS0",
        data: str,
        baud_rate: BaudRate = 9600,
        timeout: Timeout = 1.0,
    ) -> UartSent:
        """Send text over a serial port; all of it left, or the action fails after `timeout` seconds."""
        sent = data.encode()
        if not 1 <= len(sent) <= SERIAL_WRITE_BYTES:
            text = f"data: {len(sent)} bytes; 1 to {SERIAL_WRITE_BYTES} may be sent"
            raise DriverError("driver.params", text)
        self.serial.send(port, sent, baud_rate, timeout)
        return {"port": port, "bytes_sent": len(sent), "factory": self.serial.factory(port)}

    @action(effect="pure", impact=0.1, permission="readonly", claims="serial:{port}")
    def receive_uart(
        self,
        port: str = "/dev/ttyS0",
        num_bytes: Annotated[int, Interval(ge=1, le=4096)] = 64,
        baud_rate: BaudRate = 9600,
        timeout: Timeout = 1.0,
    ) -> UartReceived:
        """Read from a serial port: `num_bytes`, or what came within `timeout` seconds, even nothing."""
        found = self.serial.receive(port, num_bytes, baud_rate, timeout)
        return {
            "port": port,
            "data": found.decode(errors="replace"),
            "hex": found.hex(),
            "bytes_received": len(found),
            "factory": self.serial.factory(port),
        }
