"""The BMP280 as its data sheet describes it (BST-BMP280-DS001): registers and compensation. Pure.

The one rule: the formulas of chapter 3.11.3 and their inverse are here alone, so that reader and twin
agree on nothing but the data sheet. Temperatures are degrees Celsius, pressures pascal.
"""

import struct
from collections.abc import Callable
from dataclasses import astuple, dataclass

CALIBRATION, CALIBRATION_BYTES = 0x88, 24
CHIP_ID = 0xD0
#: BMP280 samples and series, and BME280, which has the same registers
CHIP_IDS = (0x58, 0x56, 0x57, 0x60)
STATUS, MEASURING = 0xF3, 0b1000
CONTROL, CONFIG = 0xF4, 0xF5
#: one measurement of both, then sleep
FORCED = 0b001_001_01
DATA, DATA_BYTES = 0xF7, 6
#: what the data registers hold when nothing was measured
SKIPPED = 0x80000
_RAW_MAX = (1 << 20) - 1
_FORMAT = "<HhhHhhhhhhhh"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The trimming values of one chip, by their names in table 17."""

    t1: int
    t2: int
    t3: int
    p1: int
    p2: int
    p3: int
    p4: int
    p5: int
    p6: int
    p7: int
    p8: int
    p9: int

    @classmethod
    def from_bytes(cls, data: bytes) -> "Calibration":
        """The 24 bytes from CALIBRATION on."""
        return cls(*struct.unpack(_FORMAT, data))

    def to_bytes(self) -> bytes:
        return struct.pack(_FORMAT, *astuple(self))

    @property
    def is_plausible(self) -> bool:
        """Whether a chip may have these: the factors that nothing works without are not 0 or -1."""
        return not {self.t1, self.p1} & {0, 0xFFFF} and self.t2 not in (0, -1)

    def temperature(self, raw: int) -> tuple[float, float]:
        """(degrees, fine temperature for the pressure) of the converter's 20 bits."""
        first = (raw / 16384 - self.t1 / 1024) * self.t2
        second = (raw / 131072 - self.t1 / 8192) ** 2 * self.t3
        return (first + second) / 5120, first + second

    def pressure(self, raw: int, fine: float) -> float:
        """Pascal of the converter's 20 bits; 0 when the trimming values make no sense."""
        first = fine / 2 - 64000
        second = first * first * self.p6 / 32768 + first * self.p5 * 2
        second = second / 4 + self.p4 * 65536
        first = (self.p3 * first * first / 524288 + self.p2 * first) / 524288
        first = (1 + first / 32768) * self.p1
        if first == 0:
            return 0.0
        pressure = (1048576 - raw - second / 4096) * 6250 / first
        first = self.p9 * pressure * pressure / 2147483648
        second = pressure * self.p8 / 32768
        return pressure + (first + second + self.p7) / 16

    def raw_of(self, temperature_c: float, pressure_pa: float) -> tuple[int, int]:
        """(pressure, temperature) as the converter would give them; found by bisection."""
        raw_temperature = _first(lambda raw: self.temperature(raw)[0] >= temperature_c)
        fine = self.temperature(raw_temperature)[1]
        # a higher pressure gives a lower number
        raw_pressure = _first(lambda raw: self.pressure(raw, fine) <= pressure_pa)
        return raw_pressure, raw_temperature


#: the worked example of chapter 3.12
EXAMPLE = Calibration(
    *(27504, 26435, -1000),
    *(36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000),
)


def _first(holds: Callable[[int], bool]) -> int:
    """The smallest of 20 bits for which `holds`, which stays true from there on."""
    low, high = 0, _RAW_MAX
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def raw_to_bytes(pressure: int, temperature: int) -> bytes:
    """The six data registers: twenty bits each, the highest first."""
    return b"".join((value << 4).to_bytes(3, "big") for value in (pressure, temperature))


def raw_from_bytes(data: bytes) -> tuple[int, int]:
    """(pressure, temperature) of the six data registers."""
    return int.from_bytes(data[:3], "big") >> 4, int.from_bytes(data[3:6], "big") >> 4
