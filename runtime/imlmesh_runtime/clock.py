"""Mesh time: milliseconds that never run backwards while a process lives.

The one rule: the wall clock is read once, at start; from then on only the boot clock counts, so a
step of the wall clock changes nothing. A node's clock is set by the orchestrator's answer.
"""

import time
from functools import cache
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Where `at_ms` of every event comes from."""

    def now_ms(self) -> int:
        """Mesh time in milliseconds since 1970 as the orchestrator counts it."""
        ...


def boot_ms() -> int:
    """Milliseconds since boot, suspend included where the system counts it."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    return time.monotonic_ns() // 1_000_000


@cache
def machine_boot() -> str:
    """What tells this boot of the machine from all others; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class MeshClock:
    """The orchestrator's own clock, and a node's once it was synced."""

    def __init__(self, not_before_ms: int = 0) -> None:
        start_ms = max(time.time_ns() // 1_000_000, not_before_ms)
        self._offset_ms = start_ms - boot_ms()
        self.synced = False

    def now_ms(self) -> int:
        return boot_ms() + self._offset_ms

    @property
    def offset_ms(self) -> int:
        """What to add to milliseconds since boot."""
        return self._offset_ms

    def sync(self, mesh_ms: int) -> int:
        """Set mesh time, as the orchestrator answered; returns by how much it moved."""
        moved = mesh_ms - self.now_ms()
        self._offset_ms += moved
        self.synced = True
        return moved


class ManualClock:
    """Virtual time for tests and the simulator: it moves when it is told to."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, by_ms: int) -> None:
        self._now_ms += by_ms
