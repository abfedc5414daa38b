"""A greenhouse as numbers: a day's temperature, air, soil that dries, a valve that waters it.

The one rule: pure; time comes in as minutes that pass, chance from a seed. The figures are plausible
for a small house in spring, not measured. Deliberately absent: clocks, pins, sensors.
"""

import math
import random
from dataclasses import dataclass

_DAY = 24 * 60.0
_COLDEST = 5 * 60.0  # of a day: shortly before sunrise
_MEAN_C, _SWING_C = 18.0, 6.0
_SOIL_DRY, _SOIL_FULL = 0.05, 0.95


@dataclass(frozen=True, slots=True)
class Readings:
    """What is true at one moment, before any sensor rounds it. `soil` is 0 (dust) to 1 (mud)."""

    temperature_c: float
    humidity: float
    pressure_hpa: float
    soil: float


#: what twins say that follow no simulation
STILL = Readings(20.0, 50.0, 1013.25, 0.5)


class Greenhouse:
    """Begins at eight in the morning with dry beds."""

    def __init__(self, seed: int = 1) -> None:
        self._dice = random.Random(seed)  # noqa: S311 - noise, no secret
        self._minutes = 8 * 60.0
        self._soil = 0.35

    def advance(self, minutes: float, valve_open: bool) -> None:
        """Let time pass; while the valve is open a bed gains 2 % of water a minute."""
        self._minutes += minutes
        drying = 0.0002 * (1 + (self._air_c() - _MEAN_C) / 20)
        change = (0.02 if valve_open else 0.0) - drying
        self._soil = min(_SOIL_FULL, max(_SOIL_DRY, self._soil + change * minutes))

    def readings(self) -> Readings:
        """Now, with the noise of real sensors: 0.05 degrees, 0.3 % of air, 0.1 hPa, 0.2 % of soil."""
        air_c = self._air_c()
        noise = self._dice.gauss
        return Readings(
            temperature_c=air_c + noise(0, 0.05),
            humidity=min(100.0, max(0.0, 70 - 1.8 * (air_c - _MEAN_C) + noise(0, 0.3))),
            pressure_hpa=1013 + 4 * math.sin(self._minutes / 1_860 * math.tau) + noise(0, 0.1),
            soil=min(1.0, max(0.0, self._soil + noise(0, 0.002))),
        )

    def _air_c(self) -> float:
        return _MEAN_C - _SWING_C * math.cos((self._minutes - _COLDEST) / _DAY * math.tau)
