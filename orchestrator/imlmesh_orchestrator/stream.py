"""What happens now, for those who watch: changes as they are committed, and what is not stored.

The one rule: a slow watcher is told to come back, it never holds up the mesh. Log lines, progress,
heartbeats and refusals are volatile: the latest lines of each run are kept in memory, bounded.
Deliberately absent: the past; watchers read it from the store and then go on here.
"""

import asyncio
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

from imlmesh_orchestrator.store.lifecycle import Numbered
from imlmesh_protocol import limits
from imlmesh_protocol.errors import StoreError


@dataclass(frozen=True, slots=True)
class Notice:
    """Something volatile: log, progress, source, heartbeat or refusal; `data` is plain."""

    kind: str
    run: str | None
    data: dict[str, Any]


class Subscription:
    """One watcher's queue. After `lagged` it gets nothing more."""

    def __init__(self, run: str | None) -> None:
        self.run = run
        self.lagged = False
        self._items: deque[Numbered | Notice] = deque()
        self._arrived = asyncio.Event()

    def put(self, item: Numbered | Notice) -> None:
        if len(self._items) >= limits.EVENT_QUEUE:
            self.lagged = True
        else:
            self._items.append(item)
        self._arrived.set()

    async def take(self) -> list[Numbered | Notice]:
        """Everything that waits, as soon as there is something; empty once it lagged."""
        await self._arrived.wait()
        if not self.lagged:
            self._arrived.clear()
        items = list(self._items)
        self._items.clear()
        return items


class RunLog:
    """The latest lines of one run: {n, at_ms, action, node, stream, line}; `n` counts from 1.

    When it is full, whoever wrote the most gives up a line, so that the few lines of what failed
    stay beside thousands of another action. `name` tells one count from another.
    """

    def __init__(self) -> None:
        self.name = secrets.token_hex(4)
        self._units: dict[tuple[str, str], deque[dict[str, Any]]] = {}
        self._count = 0
        self._kept = 0

    @property
    def lines(self) -> list[dict[str, Any]]:
        """What is kept, in the order in which it came."""
        return sorted(chain.from_iterable(self._units.values()), key=itemgetter("n"))

    @property
    def dropped(self) -> int:
        """How many lines came and are not kept."""
        return self._count - self._kept

    def add(self, data: dict[str, Any]) -> int:
        """Keep a line; its number."""
        self._count += 1
        line = {k: data[k] for k in ("at_ms", "action", "node", "stream", "line")}
        unit = (data["action"], data["node"])
        self._units.setdefault(unit, deque()).append({"n": self._count, **line})
        self._kept += 1
        if self._kept > limits.RUN_LOG_LINES:
            self._drop_one(unit)
        return self._count

    def _drop_one(self, unit: tuple[str, str]) -> None:
        share = max(1, limits.RUN_LOG_LINES // len(self._units))
        if len(self._units[unit]) <= share:
            unit = max(self._units, key=lambda each: len(self._units[each]))
        self._units[unit].popleft()
        if not self._units[unit]:
            del self._units[unit]
        self._kept -= 1


class Stream:
    """Hands out changes and notices to all subscriptions, and keeps the latest log lines."""

    def __init__(self) -> None:
        self._subscriptions: set[Subscription] = set()
        self._logs: OrderedDict[str, RunLog] = OrderedDict()
        self._second = 0
        self._shown = 0
        #: refused messages by code, and when each code was last heard of
        self.refused: Counter[str] = Counter()
        self.refused_at_ms: dict[str, int] = {}
        #: by node and code: what it provably sent and was refused here; what it says that it refused
        self._of_node: dict[str, Counter[str]] = {}
        self._by_node: dict[str, dict[str, int]] = {}

    def subscribe(self, run: str | None = None) -> Subscription:
        """From now on; StoreError `store.behind` when too many watch already."""
        if len(self._subscriptions) >= limits.EVENT_SUBSCRIBERS:
            raise StoreError("store.behind", f"{limits.EVENT_SUBSCRIBERS} streams are open")
        subscription = Subscription(run)
        self._subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def committed(self, numbered: Sequence[Numbered]) -> None:
        """The watcher of lifecycle."""
        for subscription in self._subscriptions:
            for item in numbered:
                if subscription.run in (None, getattr(item[1], "run", None)):
                    subscription.put(item)

    def log_line(self, run: str, data: dict[str, Any]) -> None:
        """A line of an action: {at_ms, run, action, node, dispatch, stream, line}."""
        kept = self._logs.get(run)
        if kept is None:
            kept = self._logs[run] = RunLog()
        # the run that has been silent for longest goes first, not the one that began first
        self._logs.move_to_end(run)
        if len(self._logs) > limits.RUN_LOGS:
            self._logs.popitem(last=False)
        self._notify(Notice("log", run, {**data, "n": kept.add(data)}))

    def progress(self, run: str, data: dict[str, Any]) -> None:
        self._notify(Notice("progress", run, data))

    def source(self, data: dict[str, Any]) -> None:
        """What a source of a node saw: {at_ms, node, source, values}."""
        self._notify(Notice("source", None, data))

    def heartbeat(self, data: dict[str, Any]) -> None:
        self._notify(Notice("heartbeat", None, data))

    def refusal(
        self, at_ms: int, place: dict[str, str], code: str, message: str, times: int = 1
    ) -> None:
        """A message that is not believed, or so many; `place` has a "topic", and a "node" when that node wrote it
        beyond doubt: what stands on somebody's topic says nothing about them."""
        node = place.get("node")
        if node is not None:
            self._of_node.setdefault(node, Counter())[code] += times
        self._refused(at_ms, place, code, message, times)

    def refused_there(self, at_ms: int, node: str, counts: dict[str, int]) -> None:
        """All that a node has refused since its agent started, as it says."""
        before = self._by_node.get(node, {})
        self._by_node[node] = counts
        for code, count in counts.items():
            if count != before.get(code):
                text = f"the node refused such messages, {count} so far"
                self._refused(at_ms, {"node": node}, code, text)

    def refused_of(self, node: str) -> dict[str, dict[str, int]]:
        """What is counted about one node, by code."""
        sent: dict[str, int] = dict(self._of_node.get(node, ()))
        return {"sent": sent, "received": dict(self._by_node.get(node, {}))}

    def _refused(
        self, at_ms: int, place: dict[str, str], code: str, message: str, times: int = 1
    ) -> None:
        self.refused[code] += times
        self.refused_at_ms[code] = at_ms
        if at_ms // 1_000 != self._second:
            self._second, self._shown = at_ms // 1_000, 0
        self._shown += 1
        if self._shown <= limits.REFUSALS_PER_S:
            data = {"at_ms": at_ms, **place, "code": code, "message": message}
            self._notify(Notice("refusal", None, data))

    def logs(self, run: str) -> RunLog:
        """The latest lines of a run; empty when it never wrote or was forgotten."""
        return self._logs.get(run) or RunLog()

    def _notify(self, notice: Notice) -> None:
        for subscription in self._subscriptions:
            if subscription.run in (None, notice.run):
                subscription.put(notice)
