"""How this machine does: what every heartbeat says, and the facts of its birth.

The one rule: cheap, and never an error: what a machine cannot tell is left out. Percentages are
0 to 100, sizes whole megabytes, temperatures degrees Celsius.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

_MB = 1024 * 1024


def health(folder: Path) -> dict[str, Any]:
    """CPU since the last call, memory, the disk of `folder`, the hottest sensor, load of a minute."""
    readings: dict[str, Callable[[], float | None]] = {
        "cpu_percent": psutil.cpu_percent,
        "memory_percent": lambda: psutil.virtual_memory().percent,
        "disk_percent": lambda: psutil.disk_usage(str(folder)).percent,
        "load": lambda: round(os.getloadavg()[0], 2),
        "temperature_c": _temperature_c,
    }
    told: dict[str, Any] = {}
    for name, read in readings.items():
        # a card that was pulled, a sensor that hangs off a bus: psutil passes on what it met
        with contextlib.suppress(OSError, ValueError, psutil.Error):
            value = read()
            if value is not None:
                told[name] = value
    return told


def facts(modules: Iterable[str]) -> dict[str, Any]:
    """What placement may ask for; `cpu` counts cores."""
    return {
        "os": platform.system().lower(),
        "arch": platform.machine(),
        "cpu": os.cpu_count() or 1,
        "memory_mb": psutil.virtual_memory().total // _MB,
        "modules": sorted(modules),
        "version": version("imlmesh"),
    }


def _temperature_c() -> float | None:
    # macOS and Windows builds of psutil lack the function
    sensors: dict[str, list[Any]] = getattr(psutil, "sensors_temperatures", dict)()
    readings = [reading.current for group in sensors.values() for reading in group]
    return max((round(r, 1) for r in readings if r is not None), default=None)
