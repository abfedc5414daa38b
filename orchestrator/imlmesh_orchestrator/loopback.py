"""Whether we can hear: a probe of our own goes through the broker and comes back, once a second.

The one rule: who does not hear itself must not call others silent. The same clock tells when this
machine or process stood still. Deliberately absent: what follows from either; `core/silence` knows.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

from imlmesh_orchestrator.core.events import Event, LoopbackMeasured, StoodStill
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.link.base import Link

log = logging.getLogger(__name__)


class Loopback:
    """Needs a running loop. `topic` is subscribed by `link`, and nobody else may write to it."""

    def __init__(self, topic: str, link: Link, clock: Clock, post: Callable[[Event], None]) -> None:
        self.topic = topic
        self._link = link
        self._clock = clock
        self._post = post
        self._loop = asyncio.get_running_loop()
        #: the probe under way, when it left, and whether we are known to hear
        self._probe = b""
        self._sent_ms = 0
        self._hears = True
        self._seen_ms = clock.now_ms()
        self._timer = self._loop.call_later(limits.LOOPBACK_EVERY_MS / 1_000, self._look)

    def link_up(self) -> None:
        """A new session: what the core thinks of it begins anew."""
        self._probe, self._hears = b"", True
        self._send()

    def came(self, payload: bytes) -> None:
        """Something arrived on our topic; only the probe under way counts."""
        if not self._probe or payload != self._probe:
            return
        self._probe = b""
        if self._clock.now_ms() - self._sent_ms <= limits.LOOPBACK_MS:
            self._measured(hears=True)

    def close(self) -> None:
        """Probe no more."""
        self._timer.cancel()

    def _look(self) -> None:
        now_ms = self._clock.now_ms()
        self._timer = self._loop.call_later(limits.LOOPBACK_EVERY_MS / 1_000, self._look)
        still_ms = now_ms - self._seen_ms - limits.LOOPBACK_EVERY_MS
        self._seen_ms = now_ms
        if still_ms > limits.TICK_LATE_MS:
            log.warning("nothing was done here for %d ms", still_ms)
            self._post(StoodStill(now_ms, "loopback", still_ms))
        if not self._link.connected:
            return
        if self._probe and now_ms - self._sent_ms > limits.LOOPBACK_MS:
            self._measured(hears=False)
            self._probe = b""
        if not self._probe:
            self._send()

    def _send(self) -> None:
        self._probe, self._sent_ms = secrets.token_bytes(16), self._clock.now_ms()
        try:
            self._link.publish(self.topic, self._probe, qos=0)
        except LinkError:
            return  # it will not come back, and that is what it is for
        self._link.flush()

    def _measured(self, *, hears: bool) -> None:
        if hears is self._hears:
            return
        self._hears = hears
        if not hears:
            log.warning("what we send through the broker does not come back: nobody is judged")
        self._post(LoopbackMeasured(self._clock.now_ms(), "loopback", hears))
