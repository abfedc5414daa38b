"""The in-process twin of the broker, with faults that a seeded random decides.

The one rule: time is what the caller says. The hub keeps a heap of what is under way and
`deliver(now_ms)` hands over what is due; it reads no clock and has no loop. `MemoryPump`
drives a hub in real time. Deliberately absent: access rules, bytes on a wire, QoS 2.
"""

import asyncio
import heapq
import logging
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from imlmesh_protocol.errors import LinkError, MeshError
from imlmesh_runtime.link.base import CountedEvents, LinkEvents, Will, check_size, retry_ms

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on the way from the broker to a client.

    `loss` and `repeat` are probabilities of one delivery; each delivery takes between
    `delay_ms` and `delay_ms + jitter_ms`, so that a jitter reorders.
    """

    loss: float = 0.0
    repeat: float = 0.0
    delay_ms: int = 0
    jitter_ms: int = 0


@dataclass(slots=True)
class _Session:
    """One connection of a client, from CONNECT to its end."""

    will: Will | None
    open: bool = True


@dataclass(order=True, slots=True)
class _Due:
    at_ms: int
    order: int
    act: Callable[[], None] = field(compare=False)


class MemoryHub:
    """A broker in memory: filters, retained messages, wills, one session per client id.

    `now_ms` is the time of the last `deliver`; what is published goes out at that time plus
    the delay. `on_scheduled` is called when something new is under way (a pump sets it).
    """

    def __init__(self, dice: random.Random, faults: Faults | None = None) -> None:
        self.now_ms = 0
        self.faults = faults or Faults()
        self.retained: dict[str, bytes] = {}
        self.on_scheduled: Callable[[], None] | None = None
        self.running = True
        self._dice = dice
        self._under_way: list[_Due] = []
        self._order = 0
        self._clients: dict[str, MemoryLink] = {}
        self._deaf: set[str] = set()
        self._mute: set[str] = set()

    @property
    def next_ms(self) -> int | None:
        """When the next delivery or connection attempt is due; None when nothing is under way."""
        return self._under_way[0].at_ms if self._under_way else None

    def deliver(self, now_ms: int) -> int:
        """Hand over all that is due at `now_ms`, in order; returns how many things that were."""
        self.now_ms = max(self.now_ms, now_ms)
        count = 0
        while self._under_way and self._under_way[0].at_ms <= self.now_ms:
            heapq.heappop(self._under_way).act()
            count += 1
        return count

    def publish(self, sender: str, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Take a message of `sender` as the broker would, and send it to every subscriber."""
        if sender not in self._mute:
            self._route(topic, payload, retain)

    def partition(
        self, client_id: str, *, to_client: bool = True, from_client: bool = True
    ) -> None:
        """Lose everything on the way to or from one client, silently, until `heal`."""
        if to_client:
            self._deaf.add(client_id)
        if from_client:
            self._mute.add(client_id)

    def heal(self, client_id: str) -> None:
        """End the partition of one client."""
        self._deaf.discard(client_id)
        self._mute.discard(client_id)

    def drop(self, client_id: str) -> None:
        """Break the connection of a client: its will goes out, and it begins to reconnect."""
        client = self._clients.get(client_id)
        if client is not None:
            self._end(client_id, with_will=True)
            client.lost(LinkError("link.down", "the connection broke"))

    def stop(self) -> None:
        """The broker dies: no wills, retained messages are gone, nobody can connect."""
        self.running = False
        self.retained.clear()
        for client_id, client in list(self._clients.items()):
            self._end(client_id, with_will=False)
            client.lost(LinkError("link.down", "the broker ended"))

    def restart(self) -> None:
        """The broker is there again, with nothing remembered."""
        self.running = True

    def schedule(self, delay_ms: int, act: Callable[[], None]) -> None:
        """Do `act` in a later `deliver`; what is scheduled first is done first at equal times."""
        self._order += 1
        heapq.heappush(self._under_way, _Due(self.now_ms + delay_ms, self._order, act))
        if self.on_scheduled is not None:
            self.on_scheduled()

    def schedule_retry(self, attempt: int, connect: Callable[[], None]) -> None:
        """Let a client try again after the pause that its attempt number (from 0) asks for."""
        self.schedule(retry_ms(attempt, self._dice.random()), connect)

    def admit(self, client: "MemoryLink") -> None:
        """Register a session; an older one of the same client id ends as if it had died."""
        if not self.running or client.client_id in self._mute | self._deaf:
            raise LinkError("link.down", "the broker cannot be reached")
        older = self._clients.get(client.client_id)
        if older is not None:
            self._end(client.client_id, with_will=True)
            older.lost(LinkError("link.down", "another client came with the same id"))
        self._clients[client.client_id] = client

    def replay(self, client: "MemoryLink") -> None:
        """Send what is retained on the topics of a client that just subscribed."""
        for topic, payload in self.retained.items():
            if client.wants(topic):
                self._send(client, topic, payload, retained=True)

    def leave(self, client_id: str, *, goodbye: bool) -> None:
        """A client ends for good; without a goodbye its will goes out."""
        self._end(client_id, with_will=not goodbye)

    def _end(self, client_id: str, *, with_will: bool) -> None:
        client = self._clients.pop(client_id, None)
        if client is None or client.session is None:
            return
        client.session.open = False
        will = client.session.will
        client.session = None
        if with_will and will is not None:
            self._route(will.topic, will.payload, will.retain)

    def _route(self, topic: str, payload: bytes, retain: bool) -> None:
        if retain and payload:
            self.retained[topic] = payload
        elif retain:
            self.retained.pop(topic, None)
        for client in self._clients.values():
            if client.connected and client.wants(topic):
                self._send(client, topic, payload)

    def _send(
        self, client: "MemoryLink", topic: str, payload: bytes, *, retained: bool = False
    ) -> None:
        if self._dice.random() < self.faults.loss:
            return
        copies = 2 if self._dice.random() < self.faults.repeat else 1
        session = client.session
        for _ in range(copies):
            delay_ms = self.faults.delay_ms + self._dice.randint(0, self.faults.jitter_ms)
            self.schedule(delay_ms, lambda: self._arrive(client, session, topic, payload, retained))

    def _arrive(
        self,
        client: "MemoryLink",
        session: _Session | None,
        topic: str,
        payload: bytes,
        retained: bool,
    ) -> None:
        if session is not None and session.open and client.client_id not in self._deaf:
            client.receive(topic, payload, retained)


class MemoryLink:
    """A `Link` to a hub in the same process."""

    def __init__(self, hub: MemoryHub, client_id: str, subscriptions: tuple[str, ...]) -> None:
        self.client_id = client_id
        self.session: _Session | None = None
        self.last_error: MeshError | None = None
        self._hub = hub
        self._wanted = matching(subscriptions)
        self._events: CountedEvents | None = None
        self._attempt = 0

    @property
    def connected(self) -> bool:
        return self.session is not None

    @property
    def unacked(self) -> int:
        """Always 0: the hub acknowledges at once."""
        return 0

    @property
    def faults(self) -> int:
        return 0 if self._events is None else self._events.faults

    def start(self, events: LinkEvents) -> None:
        self._events = CountedEvents(events)
        self._hub.schedule(0, self._connect)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if self.session is None:
            raise LinkError("link.down", "no session with the broker")
        check_size(topic, payload)
        self._hub.publish(self.client_id, topic, payload, retain=retain)

    def flush(self) -> None:
        """Nothing waits here: the hub has it already."""

    def begin_anew(self) -> None:
        if self.session is not None and self._events is not None:
            self._hub.leave(self.client_id, goodbye=True)
            self._hub.schedule(0, self._connect)
            self._events.link_down("link.down: a new session begins")

    def check_peer(self, at_ms: int) -> bool:
        """Nobody needs a certificate here."""
        return True

    async def close(self) -> None:
        self._leave(goodbye=True)

    def kill(self) -> None:
        """End as if the process died: no goodbye, nothing is heard any more."""
        self._leave(goodbye=False)

    def _leave(self, *, goodbye: bool) -> None:
        self._events = None
        if self.session is not None:
            self._hub.leave(self.client_id, goodbye=goodbye)

    def wants(self, topic: str) -> bool:
        """True when one of the subscriptions matches `topic`."""
        return self._wanted.fullmatch(topic) is not None

    def receive(self, topic: str, payload: bytes, retained: bool) -> None:
        """A delivery of the hub."""
        events = self._events
        if events is not None:
            events.message(topic, payload, retained)
            events.handed_over()

    def lost(self, error: MeshError) -> None:
        """The session or the attempt ended: tell it, and try again after a pause."""
        if self._events is None:
            return
        self.last_error = error
        self._hub.schedule_retry(self._attempt, self._connect)
        self._attempt += 1
        self._events.link_down(str(error))

    def _connect(self) -> None:
        if self._events is None or self.session is not None:
            return
        try:
            will = self._events.will()
            self._hub.admit(self)
        except LinkError as exc:
            self.lost(exc)
            return
        self.session = _Session(will)
        self._attempt = 0
        self._events.link_up()
        self._hub.replay(self)


class MemoryPump:
    """Drives a hub on the running loop: every delivery happens when it is due, in real time."""

    def __init__(self, hub: MemoryHub) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        hub.on_scheduled = self._arm
        self._arm()

    def close(self) -> None:
        """Stop driving; what is under way stays under way."""
        self._hub.on_scheduled = None
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._hub.next_ms is not None:
            self._timer = self._loop.call_at(
                self._started_s + self._hub.next_ms / 1000, self._deliver
            )

    def _deliver(self) -> None:
        self._timer = None
        # Rounded, so that a timer that fires at its very millisecond finds its delivery due.
        self._hub.deliver(round((self._loop.time() - self._started_s) * 1000))
        self._arm()


def matching(filters: Iterable[str]) -> re.Pattern[str]:
    """MQTT's rule for topic filters: `+` is one level, a last `#` is the rest, parent included."""
    ways = []
    for filter_ in filters:
        way = re.escape(filter_).replace(r"\+", "[^/]*")
        if filter_ == "#":
            way = ".*"
        elif filter_.endswith("/#"):
            way = way.removesuffix(r"/\#") + "(/.*)?"
        ways.append(way)
    return re.compile("|".join(ways), re.DOTALL)
