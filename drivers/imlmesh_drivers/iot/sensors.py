"""Sensors of four kinds, and anything else that a pin or an I2C address can tell.

The one rule: a value is reported when the sensor's own check and its physical range allow it; garbage is
`driver.reading`, never a number. Deliberately absent: averages and history.
"""

import time
from typing import Annotated, Any, Literal

from annotated_types import Interval

from imlmesh_drivers.base import Guard, Site, action
from imlmesh_drivers.call import Call
from imlmesh_drivers.iot import bmp280, onewire
from imlmesh_drivers.iot.board import Board
from imlmesh_drivers.iot.dht import DhtSensors
from imlmesh_drivers.iot.i2c import Address
from imlmesh_protocol.errors import DriverDenied, DriverError

SensorPin = Annotated[int, Interval(ge=1, le=40)]
Unit = Literal["celsius", "fahrenheit"]
#: the I2C bus of the header, to which sensors are wired
_BUS = 1
_BMP280_AT = 0x76
_MEASURED_S = 0.1  # a BMP280 needs 6.4 ms for one of each
_LOOK_S = 0.002
#: what becomes telemetry, with its unit
_REPORTED = {"temperature": "°C", "humidity": "%", "pressure_hpa": "hPa"}
#: the data sheet's ranges: degrees Celsius, pascal
_BMP280_C, _BMP280_PA = (-40.0, 85.0), (30_000.0, 110_000.0)


class SensorActions(Board):
    """Reads sensors of every kind by one action."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._dht = DhtSensors(self.world)
        self._onewire: Any = None

    def close(self) -> None:
        super().close()
        if self._onewire is not None:
            self._onewire.close()

    @action(
        effect="pure",
        impact=0.1,
        permission="readonly",
        claims=(
            "gpio:{pin}",
            f"i2c:{_BUS} if address",
            f"i2c:{_BUS} if sensor_type=BMP280",
            "onewire if sensor_type=DS18B20",
        ),
    )
    def read_sensor(
        self,
        call: Call,
        sensor_type: Literal["DHT11", "DHT22", "DS18B20", "BMP280", "generic"] = "generic",
        pin: Annotated[SensorPin | None, Guard("pin")] = None,
        address: Address | None = None,
        unit: Unit = "celsius",
    ) -> dict[str, Any]:
        """Read a sensor: DHT on a pin, BMP280 on I2C bus 1, DS18B20 on one-wire, or a bare value.

        `temperature` is in `unit`, `humidity` in per cent, `pressure_hpa` in hectopascal; these three
        are telemetry too, named by kind and place, always in degrees Celsius. generic
        gives the level of a pin, or the next two bytes of an I2C device as `raw`.
        """
        if sensor_type in ("DHT11", "DHT22"):
            found = self._read_dht(sensor_type, pin)
        elif sensor_type == "DS18B20":
            found = self._read_onewire()
        elif sensor_type == "BMP280":
            found = self._read_bmp280(_BMP280_AT if address is None else address)
        else:
            found = self._read_bare(pin, address, call.dispatch)
        _report(call, sensor_type, found)
        if "temperature" in found:
            found["temperature"] = _in_unit(found["temperature"], unit)
            found["unit"] = unit
        if "all" in found:
            found["all"] = {name: _in_unit(each, unit) for name, each in found["all"].items()}
        return {"sensor_type": sensor_type, **found}

    def _read_dht(self, kind: Literal["DHT11", "DHT22"], pin: int | None) -> dict[str, Any]:
        if pin is None:
            raise DriverError("driver.params", f"pin: a {kind} is read from a pin")
        with self.pins.lock:
            if (use := self.pins.free(pin)) is not None and use.kind == "output":
                text = f"pin: gpio:{pin} is held by {use.owner} (output); cleanup lets go of it"
                raise DriverError("driver.busy", text)
            self.pins.release(pin)
            factory = self.pins.rules.factory
            celsius, humidity = self._dht.read(kind, pin, factory)
        return {
            "pin": pin,
            "temperature": celsius,
            "humidity": round(humidity, 1),
            "factory": factory,
        }

    def _read_onewire(self) -> dict[str, Any]:
        factory = self.site.buses.onewire
        if factory is None:
            text = "sensor_type: the policy of this node has no [onewire]"
            raise DriverDenied("policy.bus", text)
        folder = onewire.SYSTEM
        if factory == "mock":
            from imlmesh_drivers.iot.twins.onewire import OneWireTwin

            if self._onewire is None:
                self._onewire = OneWireTwin(self.world)
            self._onewire.measure()
            folder = self._onewire.folder
        names = onewire.sensors(folder)
        if not names:
            raise DriverError("driver.unavailable", "sensor_type: no DS18B20 on the one-wire bus")
        values = {name: onewire.read_celsius(folder, name) for name in names}
        found: dict[str, Any] = {"temperature": values[names[0]], "sensor": names[0]}
        if len(names) > 1:
            found["all"] = values
        return {**found, "factory": factory}

    def _read_bmp280(self, address: int) -> dict[str, Any]:
        def registers(first: int, count: int) -> bytes:
            return self.i2c.transfer(_BUS, address, bytes([first]), count)

        where = f"address: 0x{address:02x}"
        chip = registers(bmp280.CHIP_ID, 1)[0]
        if chip not in bmp280.CHIP_IDS:
            raise DriverError("driver.reading", f"{where} is no BMP280: its id is 0x{chip:02x}")
        data = registers(bmp280.CALIBRATION, bmp280.CALIBRATION_BYTES)
        calibration = bmp280.Calibration.from_bytes(data)
        if not calibration.is_plausible:
            raise DriverError("driver.reading", f"{where}: its calibration makes no sense")
        self.i2c.transfer(_BUS, address, bytes([bmp280.CONTROL, bmp280.FORCED]))
        deadline_s = time.monotonic() + _MEASURED_S
        while registers(bmp280.STATUS, 1)[0] & bmp280.MEASURING:
            if time.monotonic() > deadline_s:
                raise DriverError("driver.reading", f"{where} does not end its measurement")
            time.sleep(_LOOK_S)
        raw = bmp280.raw_from_bytes(registers(bmp280.DATA, bmp280.DATA_BYTES))
        celsius, fine = calibration.temperature(raw[1])
        pascal = calibration.pressure(raw[0], fine)
        for value, (low, high), what in (
            (celsius, _BMP280_C, "degrees"),
            (pascal, _BMP280_PA, "Pa"),
        ):
            if bmp280.SKIPPED in raw or not low <= value <= high:
                text = f"{where} says {value:.1f} {what}; it measures {low} to {high}"
                raise DriverError("driver.reading", text)
        return {
            "address": address,
            "temperature": celsius,
            "pressure_hpa": round(pascal / 100, 2),
            "factory": self.i2c.rules(_BUS).factory,
        }

    def _read_bare(self, pin: int | None, address: int | None, owner: str) -> dict[str, Any]:
        if pin is not None and address is None:
            level = self.pins.read(pin, owner)
            return {"pin": pin, "value": level, "factory": self.pins.rules.factory}
        if address is not None and pin is None:
            raw = int.from_bytes(self.i2c.transfer(_BUS, address, b"", 2), "big")
            return {"address": address, "raw": raw, "factory": self.i2c.rules(_BUS).factory}
        raise DriverError("driver.params", "pin, address: a generic sensor has one of the two")


def _report(call: Call, kind: str, found: dict[str, Any]) -> None:
    """As telemetry: one metric for each sensor, in one unit, however it was asked for."""
    place = found.get("sensor") or found.get("pin") or f"{found.get('address', 0):02x}"
    for name, unit in _REPORTED.items():
        if name in found:
            for each, value in found.get("all", {place: found[name]}).items():
                call.telemetry(f"{kind}.{each}.{name}".lower(), round(value, 2), unit)


def _in_unit(celsius: float, unit: Unit) -> float:
    return round(celsius if unit == "celsius" else celsius * 9 / 5 + 32, 2)
