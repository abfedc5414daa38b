"""Facts of the machine, read when they are asked for.

The one rule: a figure that needs two looks takes two; none is made up.
"""

import os
import platform
from typing import Any

_CPU_LOOK_S = 0.1


def cpu() -> dict[str, Any]:
    import psutil

    return {
        "count": os.cpu_count() or 1,
        "percent": psutil.cpu_percent(_CPU_LOOK_S),
        "load": [round(load, 2) for load in os.getloadavg()],
        "arch": platform.machine(),
    }


def memory() -> dict[str, Any]:
    import psutil

    found = psutil.virtual_memory()
    return {
        "total_bytes": found.total,
        "available_bytes": found.available,
        "percent": found.percent,
    }


def disk(path: str) -> dict[str, Any]:
    """Of the disk that holds `path`."""
    import psutil

    found = psutil.disk_usage(path)
    return {"total_bytes": found.total, "free_bytes": found.free, "percent": found.percent}


def network() -> dict[str, Any]:
    """Interface to its addresses."""
    import psutil

    return {
        interface: [address.address for address in addresses]
        for interface, addresses in psutil.net_if_addrs().items()
    }


def system() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "hostname": platform.node(),
        "python": platform.python_version(),
    }
