"""How much room the disk of the stores has left, looked at once a second.

The one rule: what runs may end, what is new must not begin. Below the floor new plans are refused and
telemetry is dropped; below half of it nothing is dispatched either. Deliberately absent: a commit that finds
no room at all; `store/lifecycle` waits.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from imlmesh_protocol import limits
from imlmesh_protocol.errors import StoreError
from imlmesh_runtime.sqlite import free_space

log = logging.getLogger(__name__)


class Room:
    """Of the disk that `folder` lies on; without one there is always room. `changed` is called when
    `scarce()` became another."""

    def __init__(self, folder: Path | None, changed: Callable[[], None]) -> None:
        self._folder = folder
        self._changed = changed
        self._timer: asyncio.TimerHandle | None = None
        self._floor = 0
        self._is_low = self._is_scarce = False

    def start(self) -> None:
        """Look, and look again."""
        pause_s = limits.ROOM_LOOK_MS / 1_000
        self._timer = asyncio.get_running_loop().call_later(pause_s, self.start)
        self.look()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def low(self) -> bool:
        """Whether nothing new is taken, and telemetry is dropped."""
        return self._is_low

    def scarce(self) -> bool:
        """Whether nothing is dispatched either."""
        return self._is_scarce

    def check(self) -> None:
        """Raise `store.full` when nothing new may be taken, as the disk is now."""
        self.look()
        if self._is_low:
            text = f"{self._folder}: less than {self._floor >> 10} KB of the disk are free"
            raise StoreError("store.full", text)

    def look(self) -> None:
        """See how much there is; where the disk does not say, it is as it was."""
        if self._folder is None:
            return
        try:
            free, self._floor = free_space(self._folder)
        except OSError as exc:
            log.error("%s: how much room there is cannot be seen: %s", self._folder, exc)
            return
        low, scarce = free < self._floor, free < self._floor // 2
        if low != self._is_low:
            self._is_low = low
            log.warning("%s: %d KB free: %s", self._folder, free >> 10, "low" if low else "enough")
        if scarce != self._is_scarce:
            self._is_scarce = scarce
            self._changed()
