"""The loop around a core: events in, one commit, then what the core asked for.

The one rule: persist, then act. All changes of one step go into one transaction; commands are
performed after it, in order. While a commit is under way new events wait in the inbox, and the
performer already encodes and signs. The single exception is what the performer itself calls
early: repeatable work, whose doing twice is harmless, and how it ended (docs/adr/0002).
Deliberately absent: timers to re-arm; a core names its next deadline and the engine sends a tick.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.limits import HEARTBEATS_PER_TURN, TIMER_MS
from imlmesh_runtime.clock import Clock

log = logging.getLogger(__name__)

E = TypeVar("E")
C = TypeVar("C")
K = TypeVar("K")
E_contra = TypeVar("E_contra", contravariant=True)
C_co = TypeVar("C_co", covariant=True)
K_co = TypeVar("K_co", covariant=True)


class Core(Protocol[E_contra, C_co, K_co]):
    """The pure side: decides and remembers, touches nothing else."""

    def handle(self, event: E_contra) -> tuple[Sequence[C_co], Sequence[K_co]]:
        """Decide on one event; the changes are already applied to the core's state."""
        ...

    def next_deadline_ms(self) -> int | None:
        """When the core next wants a tick, in mesh time."""
        ...


class Performer(Protocol[K]):
    """The side that does things: sends messages, runs drivers, answers people."""

    def early(self, commands: Sequence[K]) -> Sequence[K]:
        """Start what need not wait for the commit; returns the rest."""
        ...

    def ahead(self, commands: Sequence[K]) -> Sequence[K]:
        """A commit is next: send what need not wait for it; returns the rest."""
        ...

    def prepare(self, commands: Sequence[K]) -> None:
        """Encode and sign while the commit runs; nothing may leave the machine yet."""
        ...

    def release(self) -> None:
        """The commit is done: let go of everything prepared, in order."""
        ...


class Engine(Generic[E, C, K]):
    """Runs one core on the current event loop.

    `commit(changes, done)` stores the changes and calls `done(error)` on the loop thread.
    `tick(at_ms)` makes the core's tick event. A failed commit, or an exception of the core, ends
    the engine: nothing is published, and `failed` holds the reason.
    """

    def __init__(
        self,
        core: Core[E, C, K],
        performer: Performer[K],
        commit: Callable[[list[C], Callable[[MeshError | None], None]], None],
        clock: Clock,
        tick: Callable[[int], E],
    ) -> None:
        self._core = core
        self._performer = performer
        self._commit = commit
        self._clock = clock
        self._tick = tick
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[E] = deque()
        self._quiet: deque[Callable[[], E | None]] = deque()
        self._awaiting_turn: list[asyncio.Future[None]] = []
        self._scheduled: asyncio.Handle | None = None
        self._committing = False
        #: while it is true, what ends or arrives is seen to by `_turn` itself
        self._turning = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_ms: int | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()
        # a failure is often noticed by a commit that ends while nobody awaits `failed` yet
        self.failed.add_done_callback(lambda future: future.cancelled() or future.exception())

    def post(self, event: E) -> None:
        """Queue an event; it is handled in this or the next turn of the loop."""
        self._inbox.append(event)
        self._schedule()

    def post_quiet(self, make_event: Callable[[], E | None]) -> None:
        """Queue what may wait behind action events: a heartbeat still to be verified."""
        self._quiet.append(make_event)
        self._schedule()

    async def turned(self) -> None:
        """Return when a turn was completed, its commit included; never, once the engine has failed.

        An idle engine takes a turn for it: so a watchdog learns that it could work.
        """
        turn: asyncio.Future[None] = self._loop.create_future()
        self._awaiting_turn.append(turn)
        self._schedule()
        await turn

    def turn_now(self) -> None:
        """Handle what was posted at once, and not in the next turn of the loop."""
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._turn()

    def stop(self) -> None:
        """Handle nothing more; what was prepared and not committed is never sent."""
        if not self.failed.done():
            self.failed.cancel()
        if self._timer:
            self._timer.cancel()

    def _schedule(self) -> None:
        busy = self._scheduled is not None or self._turning or self._committing
        if not busy and not self.failed.done():
            self._scheduled = self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = None
        if self._committing or self.failed.done():
            return
        self._turning = True
        try:
            changes, commands = self._decide()
            if changes:
                commands = self._performer.ahead(commands)
                self._committing = True
                self._commit(changes, self._committed)
            if not self.failed.done():
                self._performer.prepare(commands)
        except Exception as exc:
            self._fail(exc)
        self._turning = False
        if not self._committing:
            self._finish()

    def _decide(self) -> tuple[list[C], Sequence[K]]:
        changes: list[C] = []
        commands: list[K] = []
        for _ in range(min(len(self._quiet), HEARTBEATS_PER_TURN)):
            event = self._quiet.popleft()()
            if event is not None:
                self._inbox.append(event)
        # early work may end at once and post that; its end then rides on the same commit
        while self._inbox:
            decided, asked = self._core.handle(self._inbox.popleft())
            changes.extend(decided)
            commands.extend(self._performer.early(asked))
        return changes, commands

    def _committed(self, error: MeshError | None) -> None:
        self._committing = False
        if error is not None:
            self._fail(error)
        elif not self._turning:
            self._finish()

    def _finish(self) -> None:
        """What the turn decided is stored, or there was nothing to store: now it may leave."""
        if self.failed.done():
            return
        try:
            self._performer.release()
        except Exception as exc:
            self._fail(exc)
            return
        awaiting, self._awaiting_turn = self._awaiting_turn, []
        for turn in awaiting:
            if not turn.done():
                turn.set_result(None)
        if self._inbox or self._quiet:
            self._schedule()
        self._arm()

    def _arm(self) -> None:
        at_ms = self._core.next_deadline_ms()
        if at_ms == self._timer_at_ms:
            return
        if self._timer:
            self._timer.cancel()
        self._timer_at_ms = at_ms
        if at_ms is None:
            self._timer = None
            return
        self._wait(at_ms)

    def _wait(self, at_ms: int) -> None:
        """For a while at most: a suspended machine's clock goes on, and the loop's timers do not."""
        wait_ms = min(max(0, at_ms - self._clock.now_ms()), TIMER_MS)
        self._timer = self._loop.call_later(wait_ms / 1_000, self._on_time, at_ms)

    def _on_time(self, at_ms: int) -> None:
        now_ms = self._clock.now_ms()
        if now_ms < at_ms:
            self._wait(at_ms)
            return
        self._timer = self._timer_at_ms = None
        self.post(self._tick(now_ms))

    def _fail(self, reason: BaseException) -> None:
        log.error("the engine stops: %s", reason, exc_info=reason)
        if not self.failed.done():
            self.failed.set_exception(reason)
