"""DHT11 and DHT22 as trains of pulses, beneath adafruit-circuitpython-dht's own classes.

The one rule: only the wire is replaced; start, bits, checksum and range are the library's work. Its
Blinka is told that this machine has no pins, which it would else refuse to be loaded on.
"""

import array
import os

os.environ.setdefault("BLINKA_OS_AGNOSTIC", "1")

import adafruit_dht

from imlmesh_drivers.iot.twins.world import World

#: microseconds of a low, of the high of a 0 and of a 1 (data sheets: 50, 26 to 28, 70)
_LOW, _ZERO, _ONE = 50, 27, 70


def make(kind: str, world: World) -> adafruit_dht.DHTBase:
    """The library's sensor of this kind on a wire of the world."""
    return (_Dht11 if kind == "DHT11" else _Dht22)(world)


class _Wire:
    """Stands before one of the library's classes: no pin, but a world."""

    def __init__(self, world: World) -> None:
        super().__init__(None, use_pulseio=False)  # type: ignore[call-arg]
        self.world = world


class _Dht11(_Wire, adafruit_dht.DHT11):  # type: ignore[misc]
    def _get_pulses_bitbang(self) -> "array.array[int]":
        now = self.world.readings()
        tenths = round(now.temperature_c * 10)
        return pulses(bytes([round(now.humidity), 0, tenths // 10, tenths % 10]))


class _Dht22(_Wire, adafruit_dht.DHT22):  # type: ignore[misc]
    def _get_pulses_bitbang(self) -> "array.array[int]":
        now = self.world.readings()
        tenths = round(now.temperature_c * 10)
        sign = 0x8000 if tenths < 0 else 0
        words = (round(now.humidity * 10), sign | abs(tenths))
        return pulses(b"".join(word.to_bytes(2, "big") for word in words))


def pulses(data: bytes) -> "array.array[int]":
    """The lengths of lows and highs that carry four bytes and their checksum."""
    found = array.array("H")
    for byte in (*data, sum(data) & 0xFF):
        for bit in range(7, -1, -1):
            found.extend((_LOW, _ONE if byte >> bit & 1 else _ZERO))
    found.append(_LOW)
    return found
