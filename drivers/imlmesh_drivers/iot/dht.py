"""DHT11 and DHT22 through adafruit-circuitpython-dht, or their twins beneath the same class.

The one rule: the library checks the checksum; what it gives counts only within the data sheet's range.
It is imported when the first sensor is read.
"""

from typing import Any, Literal

from imlmesh_drivers.buses import Factory
from imlmesh_drivers.iot.libraries import library
from imlmesh_drivers.iot.twins.world import World
from imlmesh_protocol.errors import DriverError

DhtKind = Literal["DHT11", "DHT22"]
#: (lowest, highest) degrees Celsius and per cent of humidity, by the data sheets
RANGES: dict[DhtKind, tuple[tuple[float, float], tuple[float, float]]] = {
    "DHT11": ((-20.0, 60.0), (5.0, 95.0)),
    "DHT22": ((-40.0, 80.0), (0.0, 100.0)),
}


class DhtSensors:
    """One object for each sensor, since the library remembers when it last asked (2 s)."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._opened: dict[tuple[DhtKind, int], Any] = {}

    def read(self, kind: DhtKind, pin: int, factory: Factory) -> tuple[float, float]:
        """(degrees Celsius, per cent of humidity).

        `driver.missing`; `driver.unavailable` for a pin that this board has not; `driver.reading`
        when nobody answers or with nonsense.
        """
        sensor = self._opened.get((kind, pin))
        if sensor is None:
            sensor = self._opened[kind, pin] = self._open(kind, pin, factory)
        try:
            sensor.measure()
            celsius, humidity = sensor.temperature, sensor.humidity
        except RuntimeError as exc:
            # all that the library has to say of a bad answer is of this class
            raise DriverError("driver.reading", f"pin: the {kind} on gpio:{pin}: {exc}") from exc
        # forty zeros have a right checksum; air without any water at freezing point does not exist
        if celsius is None or humidity is None or celsius == humidity == 0:
            text = f"pin: the {kind} on gpio:{pin} gave nothing; it answers every 2 s"
            raise DriverError("driver.reading", text)
        for value, (low, high) in zip((celsius, humidity), RANGES[kind], strict=True):
            if not low <= value <= high:
                text = f"pin: the {kind} on gpio:{pin} says {value}; it measures {low} to {high}"
                raise DriverError("driver.reading", text)
        return float(celsius), float(humidity)

    def _open(self, kind: DhtKind, pin: int, factory: Factory) -> Any:
        try:
            with library("pin", "dht"):
                if factory == "mock":
                    from imlmesh_drivers.iot.twins.dht import make

                    return make(kind, self._world)
                import adafruit_dht
                import board
        except NotImplementedError as exc:
            # Blinka's word for a machine that it does not know
            text = f"pin: this board has no pins for a {kind}: {exc}"
            raise DriverError("driver.unavailable", text) from exc
        try:
            return getattr(adafruit_dht, kind)(getattr(board, f"D{pin}"))
        except Exception as exc:  # Blinka lets errors of its pin libraries through
            raise DriverError("driver.unavailable", f"pin: gpio:{pin}: {exc}") from exc
