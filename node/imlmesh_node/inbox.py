"""The way in: bytes of a topic become an event of the core, or a counted, coded refusal.

The one rule: the order of docs/PROTOCOL.md, "Acceptance"; nothing of a refused message has an
effect. A refusal is logged at most once a second for each code, however many come, and the
orchestrator hears of all counts at most once a second.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping

from imlmesh_node.core.events import (
    AckArrived,
    Arrival,
    CancelArrived,
    DelegateArrived,
    Event,
    InventoryAsked,
    QuarantineArrived,
    RebirthAsked,
)
from imlmesh_node.guard import Guard
from imlmesh_node.presence import Presence
from imlmesh_protocol.errors import Fault, MeshError, ProtocolError
from imlmesh_protocol.limits import REFUSAL_CHARS, REFUSALS_TOLD_MS
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.dispatches import decode_dispatch, name_of_dispatch
from imlmesh_protocol.wire.envelope import Opener
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.clock import boot_ms

log = logging.getLogger(__name__)


#: what was under way to an earlier session comes to the next one: counted, but no news by itself
_EARLY = "message.session"


class Refusals:
    """How often what was refused, by code; `tell(counts)` is asked once in REFUSALS_TOLD_MS at most,
    and says whether somebody listens.

    Needs a running loop.
    """

    def __init__(self, tell: Callable[[dict[str, int]], bool]) -> None:
        self.counts: Counter[str] = Counter()
        self._tell = tell
        self._logged_ms: dict[str, int] = {}
        self._untold = False
        self._timer: asyncio.TimerHandle | None = None

    def note(self, code: str, message: str, many: int = 1) -> None:
        """Count it; log it unless this code was heard of within the second."""
        self.counts[code] += many
        now_ms = boot_ms()
        if now_ms - self._logged_ms.get(code, -1_000) >= 1_000:
            self._logged_ms[code] = now_ms
            count = self.counts[code]
            log.warning("refused: %s", message, extra={"code": code, "count": count})
        if code != _EARLY:
            self._untold = True
            self.tell_soon()

    def tell_soon(self) -> None:
        """Tell all counts, now or when the second is over, if there is news."""
        if self._timer is None:
            self._on_time()

    def close(self) -> None:
        """Nothing is told any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _on_time(self) -> None:
        self._timer = None
        if self._untold and self._tell(dict(self.counts)):
            self._untold = False
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(REFUSALS_TOLD_MS / 1_000, self._on_time)


class Inbox:
    """`post` takes events, `ends_at_once(module, action)` is the executor's; `orders` are commands that
    others than the core obey, by their word."""

    def __init__(
        self,
        opener: Opener,
        presence: Presence,
        guard: Guard,
        ends_at_once: Callable[[str, str], bool],
        post: Callable[[Event], None],
        refusals: Refusals,
        orders: Mapping[str, Callable[[Message], Event | None]],
    ) -> None:
        self._opener = opener
        self._presence = presence
        self._guard = guard
        self._ends_at_once = ends_at_once
        self._post = post
        self._refusals = refusals
        self._orders = orders

    def take(self, topic: str, payload: bytes, retained: bool) -> None:
        """Take one message; it never raises what the message is to blame for."""
        try:
            event = self._read(topics.received(topic, retained), payload)
        except MeshError as exc:
            self._refusals.note(exc.code, exc.message)
            if exc.code == "message.expired":
                self._presence.ask_soon()
            elif exc.code == "message.epoch":
                self._presence.outrank()
            return
        if event is not None:
            self._post(event)

    def _read(self, topic: topics.Topic, payload: bytes) -> Event | None:
        if topic.kind is Kind.RESPONSE:
            self._presence.answer(self._opener.open(topic, payload, None))
            return None
        if not self._presence.is_open:
            if topic.kind is Kind.STATUS:
                return None  # what the broker retained comes with every new connection
            raise ProtocolError("message.session", f"{topic.kind} before the time was answered")
        message = self._opener.open(topic, payload, self._presence.clocks.mesh.now_ms())
        if message.kind is Kind.STATUS:
            return None  # a newer orchestrator asks to be told who is there, at once
        newer = self._presence.hear(message)
        at_ms = self._presence.clocks.steady.now_ms()
        match message.kind:
            case Kind.DELEGATE:
                return self._delegate(message, at_ms)
            case Kind.ACK:
                return AckArrived(
                    at_ms,
                    message.fields["beat"],
                    tuple(message.fields["settled"]),
                    message.term,
                    message.seq,
                    message.id,
                    tuple((id, index) for id, index in message.fields.get("wants", ())),
                )
            case Kind.COMMAND if message.fields["do"] == "rebirth":
                return None if newer else RebirthAsked(at_ms, message.id, message.term)
            case Kind.COMMAND if message.fields["do"] in self._orders:
                return self._orders[message.fields["do"]](message)
            case Kind.COMMAND if message.fields["do"] in ("quarantine", "release"):
                quarantined = message.fields["do"] == "quarantine"
                return QuarantineArrived(at_ms, quarantined, message.term, message.seq, message.id)
            case Kind.COMMAND:
                return CancelArrived(at_ms, tuple(message.fields.get("dispatches", ())), message.id)
            case Kind.REQUEST if message.fields["what"] == "inventory":
                return InventoryAsked(at_ms, message.fields["nonce"], message.id)
        raise ProtocolError("message.kind", f"{message.id[:80]}: a node does not serve this")

    def _delegate(self, message: Message, at_ms: int) -> DelegateArrived:
        arrivals: list[Arrival] = []
        unread: list[tuple[str, Fault]] = []
        for packed in message.fields["dispatches"]:
            try:
                dispatch, refusal = self._guard.check(decode_dispatch(packed))
            except ProtocolError as exc:
                self._refusals.note(exc.code, exc.message)
                name = name_of_dispatch(packed)
                if name is not None:
                    unread.append((name, Fault(exc.code, exc.message[:REFUSAL_CHARS])))
                continue
            arrivals.append(
                Arrival(
                    dispatch,
                    hashlib.sha256(packed).digest(),
                    refusal,
                    refusal is None and self._ends_at_once(dispatch.module, dispatch.action),
                )
            )
        term, seq = message.term, message.seq
        return DelegateArrived(at_ms, tuple(arrivals), term, seq, message.id, tuple(unread))
