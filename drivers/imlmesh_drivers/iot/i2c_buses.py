"""I2C buses through smbus2, or their twins behind the same messages.

The one rule: bus and address must stand in the policy, and one transaction at a time goes over a bus.
smbus2 is imported when the first bus is used. Deliberately absent: what the bytes mean.
"""

import threading
from collections.abc import Mapping
from typing import Any

from imlmesh_drivers.buses import I2cRules
from imlmesh_drivers.iot.libraries import library
from imlmesh_drivers.iot.twins.world import World
from imlmesh_protocol.errors import DriverDenied, DriverError


class I2cBuses:
    """`rules` by bus number."""

    def __init__(self, rules: Mapping[int, I2cRules], world: World) -> None:
        self._rules = rules
        self._world = world
        self._opened: dict[int, Any] = {}
        self._lock = threading.Lock()

    def rules(self, bus: int) -> I2cRules:
        """`policy.bus` when the policy has none for it."""
        if bus not in self._rules:
            raise DriverDenied("policy.bus", f"bus: the policy of this node has no [i2c.{bus}]")
        return self._rules[bus]

    def transfer(self, bus: int, address: int, data: bytes, count: int = 0) -> bytes:
        """Write `data`, if there is any, then read `count` bytes, in one transaction.

        `policy.bus`; `driver.missing` without smbus2; `driver.unavailable` when the bus cannot be
        opened or nobody answers at the address.
        """
        if address not in self.rules(bus).allow:
            text = f"address: 0x{address:02x} is not in [i2c.{bus}] allow of the policy"
            raise DriverDenied("policy.bus", text)
        with self._lock:
            opened = self._open(bus)
            from smbus2 import i2c_msg

            messages = [i2c_msg.write(address, data)] if data else []
            if count:
                messages.append(i2c_msg.read(address, count))
            try:
                opened.i2c_rdwr(*messages)
            except OSError as exc:
                text = f"address: nobody answers at 0x{address:02x} of bus {bus}: {exc.strerror}"
                self._forget(bus)
                raise DriverError("driver.unavailable", text) from exc
            return bytes(messages[-1]) if count else b""

    def close(self) -> None:
        with self._lock:
            for bus in list(self._opened):
                self._forget(bus)

    def _open(self, bus: int) -> Any:
        if bus not in self._opened:
            try:
                with library("bus", "i2c"):
                    if self.rules(bus).factory == "mock":
                        from imlmesh_drivers.iot.twins.i2c import I2cTwin

                        self._opened[bus] = I2cTwin(self._world)
                    else:
                        from smbus2 import SMBus

                        self._opened[bus] = SMBus(bus)
            except OSError as exc:
                text = f"bus: /dev/i2c-{bus} cannot be opened: {exc.strerror}"
                raise DriverError("driver.unavailable", text) from exc
        return self._opened[bus]

    def _forget(self, bus: int) -> None:
        """A twin is kept: its registers are its memory."""
        if self.rules(bus).factory == "native":
            self._opened.pop(bus).close()
