"""The session of a node: a will, a question for the time, then everything else.

The one rule: until the orchestrator has answered this session's nonce nothing else is accepted
and nothing but the question is sent. The answer proves freshness by its nonce, so no clock is
needed to believe it, and the dates of the broker's certificate are judged by it. An answer may say
that this start's number is not higher than those of before, which a lost journal forgot: then the start gets
a higher one and another session asks; once one was open, only a second machine can be why. A start that the
answer names and the journal does not know was of a newer journal: ours is an older copy, which forgot as much.
Deliberately absent: what a session is good for; the core decides that.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable

from imlmesh_node.core.events import Event, RebirthAsked, SessionClosed, SessionOpened
from imlmesh_node.journal import Loaded
from imlmesh_node.outbox import Letter, Outbox
from imlmesh_protocol.errors import MeshError, ProtocolError
from imlmesh_protocol.limits import TIME_AGAIN_MS, TIME_ASK_MS, TIME_ASKED, TIME_SYNC_MS
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.clock import MeshClock, boot_ms
from imlmesh_runtime.link.base import Will

log = logging.getLogger(__name__)

#: store(boot, done): calls done when that number of this start is kept, or with why it is not
StoreBoot = Callable[[int, Callable[[MeshError | None], None]], None]


class Clocks:
    """Two views of time. `mesh` follows the orchestrator and dates messages; `steady` is set by the
    first answer alone, and not while work runs, so that no time limit of it ever jumps."""

    def __init__(self) -> None:
        self.mesh = MeshClock()
        self.steady = MeshClock()
        #: whether something runs; before the first answer only what a permit allows does
        self.busy: Callable[[], bool] = lambda: False

    def sync(self, mesh_ms: int) -> None:
        """The orchestrator's time is `mesh_ms` now."""
        if not self.steady.synced:
            self.steady.sync(self.steady.now_ms() if self.busy() else mesh_ms)
        self.mesh.sync(mesh_ms)

    def heard(self, at_ms: int, round_trip_ms: int) -> None:
        """The orchestrator said `at_ms` within such a round trip.

        Of a slow one nobody knows which way took the time, and a broker may choose that: it only bounds the
        time, and puts nobody ahead of it. Who dates messages later than now is blamed for that.
        """
        told_ms = at_ms + min(round_trip_ms, TIME_ASK_MS) // 2
        if round_trip_ms > TIME_ASK_MS and self.mesh.synced:
            told_ms = min(max(told_ms, self.mesh.now_ms()), at_ms + round_trip_ms)
        self.sync(told_ms)


class Presence:
    """`post` takes the core's events; `loaded` is what the journal held at this start."""

    def __init__(
        self,
        outbox: Outbox,
        clocks: Clocks,
        post: Callable[[Event], None],
        loaded: Loaded,
        store_boot: StoreBoot,
    ) -> None:
        self.clocks = clocks
        self._outbox = outbox
        self._post = post
        #: the number of this start, of the one that began the journal, of the last one that it knows
        self._boot, self._since, self._last = loaded.boot, loaded.since, loaded.last
        self._epoch = loaded.floor[0]
        self._store_boot = store_boot
        self._loop = asyncio.get_running_loop()
        #: number of the session, of which there may be none open
        self.session = 0
        #: when we asked with each nonce; a slow answer is still one, and knows how slow it is
        self._asked_ms: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.is_open = self._was_open = False
        #: whether an older orchestrator spoke since the last answer that counted
        self._outranks = False

    def begin(self) -> Will:
        """A connection is attempted: a new session, and what the broker says if it breaks."""
        self.session += 1
        return self._outbox.new_session(self._boot, self.session)

    def link_up(self) -> None:
        self._stop_asking()
        self._ask()

    def link_down(self, reason: str) -> None:
        self._stop_asking()
        if self.is_open:
            self.is_open = False
            self._post(SessionClosed(self.clocks.steady.now_ms(), reason))

    def close(self) -> None:
        """Nothing is accepted any more."""
        self._stop_asking()
        self.is_open = False

    def answer(self, message: Message) -> None:
        """A believed time response; `message.session` when its nonce is not the one asked with."""
        asked_ms = self._asked_ms.get(message.fields["nonce"])
        if asked_ms is None:
            raise ProtocolError("message.session", f"{message.id[:80]} answers nothing asked now")
        at_ms = message.fields.get("at_ms")
        if message.fields["what"] != "time" or at_ms is None:
            raise ProtocolError("message.invalid", f"{message.id[:80]} tells no time")
        self.hear(message)
        self._outranks = False
        known = message.fields.get("boot")
        if known is not None and known >= self._boot:
            if self._was_open:
                # nothing that we forgot: who counted on would only hide the other machine
                text = f"boot {known} of ours was heard, and this is {self._boot}"
                raise ProtocolError("message.two_senders", text)
            text = "boot %d is not higher than those of before: it becomes %d"
            log.warning(text, self._boot, known + 1)
            self._count_on(known + 1)
            return
        if known is not None and known > max(self._last, self._since) and not self._was_open:
            text = "the journal is older than what this node did: boot %d of it was heard, its last is %d"
            log.error(text, known, self._last, extra={"code": "journal.lost"})
            self._count_on(self._boot + 1)
            return
        round_trip_ms = boot_ms() - asked_ms
        self.clocks.heard(at_ms, round_trip_ms)
        self._stop_asking()
        if not self.is_open and not self._outbox.check_broker():
            return
        # a slow answer tells the time badly
        wait_ms = TIME_SYNC_MS if round_trip_ms < TIME_ASK_MS else TIME_AGAIN_MS
        self._timer = self._loop.call_later(wait_ms / 1_000, self._ask)
        if not self.is_open:
            self.is_open = self._was_open = True
            opened = SessionOpened(
                self.clocks.steady.now_ms(),
                self.session,
                message.term,
                message.id,
                secrets.randbits(64),
                self.clocks.mesh.now_ms(),
                known is not None and known < self._since,
            )
            self._post(opened)

    def hear(self, message: Message) -> bool:
        """Every believed message says who rules: an older orchestrator is refused, a newer one met, and
        then we introduce ourselves to it; whether it is a newer one. Raises `message.epoch`.
        """
        if message.term < self._epoch:
            text = f"{message.id[:80]} is of epoch {message.term}, now is {self._epoch}"
            raise ProtocolError("message.epoch", text)
        if message.term > self._epoch:
            self._epoch = message.term
            if self.is_open:
                now_ms = self.clocks.steady.now_ms()
                self._post(RebirthAsked(now_ms, message.id, message.term))
                self.ask_soon()
                return True
        return False

    def outrank(self) -> None:
        """An older orchestrator was refused: it learns whom we obey from our next question, for nothing else
        of ours reaches one that answers no question."""
        self._outranks = True
        self.ask_soon()

    def ask_soon(self) -> None:
        """Something makes our clock doubtful; a question under way is enough."""
        if self.is_open and not self._asked_ms:
            self._ask()

    def _count_on(self, boot: int) -> None:
        """This start gets that number, and the journal begins with it; once that is stored another session
        begins."""
        self._stop_asking()

        def stored(error: MeshError | None) -> None:
            if error is not None:
                log.error("boot %d cannot be stored: %s", boot, error, extra={"code": error.code})
                self._timer = self._loop.call_later(TIME_ASK_MS / 1_000, self._ask)
            elif boot > self._boot:
                self._boot = self._since = boot
                self._outbox.begin_anew()

        self._store_boot(boot, stored)

    def _ask(self) -> None:
        """Ask, and ask again after twice as long: who is slow to answer a fleet is not helped by more."""
        nonce, tries = secrets.token_hex(16), len(self._asked_ms)
        self._asked_ms[nonce] = boot_ms()
        if tries >= TIME_ASKED:
            del self._asked_ms[next(iter(self._asked_ms))]
        # before it is sent: whoever asks no more is cut off for good, whatever went wrong
        wait_ms = TIME_ASK_MS << min(tries, TIME_ASKED - 1)
        self._timer = self._loop.call_later(wait_ms / 1_000, self._ask)
        named = {"obeys": self._epoch} if self._outranks else {}
        self._outbox.send(Letter(Kind.REQUEST, {"what": "time", "nonce": nonce, **named}))

    def _stop_asking(self) -> None:
        self._asked_ms.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
