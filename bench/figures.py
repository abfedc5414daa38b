"""Percentiles, medians, and facts of the machine."""

import json
import os
import platform
import sqlite3
import ssl
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0..1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def ms(seconds: float) -> float:
    return round(seconds * 1_000, 3)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99 in milliseconds."""
    return {
        "p50_ms": ms(percentile(seconds, 0.50)),
        "p95_ms": ms(percentile(seconds, 0.95)),
        "p99_ms": ms(percentile(seconds, 0.99)),
    }


def line(name: str, **figures: Any) -> dict[str, Any]:
    """Print one result and return it."""
    result = {"bench": name, **figures}
    print(json.dumps(result), flush=True)
    return result


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = platform.machine()
    try:
        rows = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [row.split(":")[1].strip() for row in rows if row.startswith("model name")]
        model = names[0] if names else model
    except OSError:
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "openssl": ssl.OPENSSL_VERSION,
        "gmqtt": version("gmqtt"),
    }


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (Linux)."""
    rows = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (resident,) = [row.split()[1] for row in rows if row.startswith("VmRSS")]
    return round(int(resident) / 1024, 1)
