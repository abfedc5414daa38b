"""Serial ports through pyserial, real ones or the twin's pseudo-terminal.

The one rule: a port must stand in the policy, and once opened it stays open, so that an answer which
comes between two actions is not lost. What did not leave in time is thrown away and told, never sent
later. pyserial is imported when the first port is used.
"""

import threading
import time
from collections.abc import Mapping
from typing import Any

from imlmesh_drivers.buses import Factory
from imlmesh_drivers.iot.libraries import library
from imlmesh_drivers.iot.twins.world import World
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverTimeout

_LOOK_S = 0.005  # how often what still has to leave is looked at


class SerialPorts:
    """`rules` by path. One action at a time uses a port.

    All raise `policy.bus`; `driver.missing` without pyserial; `driver.unavailable` when a port cannot
    be opened, also because another process has it, or goes away.
    """

    def __init__(self, rules: Mapping[str, Factory], world: World) -> None:
        self._rules = rules
        self._world = world
        self._opened: dict[str, Any] = {}
        self._twins: dict[str, Any] = {}
        self._locks = {port: threading.Lock() for port in rules}

    def factory(self, port: str) -> Factory:
        """`policy.bus` when the policy does not list the port."""
        if port not in self._rules:
            raise DriverDenied(
                "policy.bus", f"port: {port[:200]!r} is not in [serial] of the policy"
            )
        return self._rules[port]

    def send(self, port: str, data: bytes, baud_rate: int, timeout_s: float) -> None:
        """Send all of it; `driver.timeout` when it did not leave within `timeout_s`."""
        factory = self.factory(port)
        with self._locks[port]:
            opened = self._open(port, factory, baud_rate, timeout_s)
            deadline_s = time.monotonic() + timeout_s
            from serial import SerialTimeoutException

            try:
                opened.write(data)
                while left := opened.out_waiting:
                    if time.monotonic() > deadline_s:
                        raise SerialTimeoutException(f"{left} bytes did not leave")
                    time.sleep(_LOOK_S)
            except SerialTimeoutException as exc:
                opened.reset_output_buffer()
                text = f"data: {port} took only a part within {timeout_s} s: {exc}"
                raise DriverTimeout("driver.timeout", text) from exc
            except OSError as exc:
                raise self._lost(port, exc) from exc

    def receive(self, port: str, count: int, baud_rate: int, timeout_s: float) -> bytes:
        """`count` bytes, or what came within `timeout_s`."""
        factory = self.factory(port)
        with self._locks[port]:
            opened = self._open(port, factory, baud_rate, timeout_s)
            try:
                found: bytes = opened.read(count)
            except OSError as exc:
                raise self._lost(port, exc) from exc
            return found

    def close(self) -> None:
        for opened in self._opened.values():
            opened.close()
        self._opened.clear()

    def _open(self, port: str, factory: Factory, baud_rate: int, timeout_s: float) -> Any:
        with library("port", "serial"):
            from serial import Serial
        opened = self._opened.get(port)
        if opened is None:
            path = self._twin(port) if factory == "mock" else port
            try:
                opened = Serial(path, baud_rate, exclusive=True)
            except (OSError, ValueError) as exc:
                text = f"port: {port} cannot be opened: {exc}"
                raise DriverError("driver.unavailable", text) from exc
            self._opened[port] = opened
        try:
            opened.baudrate = baud_rate
            opened.timeout = opened.write_timeout = timeout_s
        except OSError as exc:
            raise self._lost(port, exc) from exc
        return opened

    def _lost(self, port: str, exc: Exception) -> DriverError:
        """The error of a port that went away; it is opened anew the next time."""
        self._opened.pop(port).close()
        return DriverError("driver.unavailable", f"port: {port} went away: {exc}")

    def _twin(self, port: str) -> str:
        from imlmesh_drivers.iot.twins.serial_line import SerialTwin

        if port not in self._twins:
            self._twins[port] = SerialTwin(self._world)
        path: str = self._twins[port].path
        return path
