"""Seeded worlds of one node's spool: it is cut off, dies, is switched off, and comes back.

Whatever happens, in every order: what was written down is delivered, lies there, or is counted as
dropped; telemetry goes before events; the bounds hold; and in the end everything arrives.
"""

import random
from collections import deque

import msgpack
import pytest

from imlmesh_node import stock
from imlmesh_node.drain import Drain
from imlmesh_node.spool import MIGRATIONS, Kept, Spool
from imlmesh_node.stock import Sort
from imlmesh_protocol import limits
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.sqlite import MemoryStore

WORLDS = 100
END_MS = 120_000


class Node:
    """A spool over rows that survive, a drain in virtual time, a link that loses what it carries."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now_ms = 0
        self.store = MemoryStore(MIGRATIONS)
        self.clock = MeshClock()
        self.clock.sync(5_000_000)
        self.sessions = 0
        self.session: int | None = None
        self.unacked = self.unsettled = 0
        #: on the way to the broker: (arrives at, records)
        self._way: deque[tuple[int, list[int]]] = deque()
        self.kept: dict[int, Sort] = {}
        self.delivered: set[int] = set()
        self.repeats = 0
        self._next = 0
        self.boot()

    def boot(self) -> None:
        self.spool = Spool(lambda: self.store, self.clock, lambda: None, lambda *_: None)
        self.spool.load()
        self.drain = Drain(self.spool, self, self._send)

    def cut(self) -> None:
        self.session, self.unacked = None, 0
        self._way.clear()

    def kill(self) -> None:
        self.cut()
        self.boot()

    def connect(self) -> None:
        self.sessions += 1
        self.session, self.unsettled = self.sessions, self.dice.choice((0, 0, 5))

    def measure(self, sort: Sort) -> None:
        """Something is written down, as those do who waited too long."""
        count = self.dice.randint(1, 20)
        numbers = range(self._next, self._next + count)
        self._next += count
        self.kept |= dict.fromkeys(numbers, sort)
        assert self.spool.keep(
            sort, [(0, number, "x" * self.dice.choice((1, 50))) for number in numbers]
        )

    def _send(self, sort: Sort, records: list[Kept]) -> None:
        assert self.session is not None
        numbers = [kept.values[0] for kept in records]
        assert all(self.kept[number] is sort for number in numbers)
        self.unacked += 1
        self._way.append((self.now_ms + self.dice.choice((5, 50, 900)), numbers))

    def advance(self, by_ms: int) -> None:
        end_ms = self.now_ms + by_ms
        while self.now_ms < end_ms:
            self.now_ms += limits.SPOOL_TURN_MS
            while self._way and self._way[0][0] <= self.now_ms:
                arrived = self._way.popleft()[1]
                self.repeats += not self.delivered.isdisjoint(arrived)
                self.delivered.update(arrived)
                self.unacked -= 1
            if self.dice.random() < 0.1:
                self.unsettled = 0
            self.drain.turn(self.now_ms)
        self.check()

    def check(self) -> None:
        there = self.there()
        gone = set(self.kept) - there - self.delivered
        dropped = self.spool.dropped
        for sort in Sort:
            lost = sum(self.kept[number] is sort for number in gone)
            # what was dropped while it was on its way may have arrived all the same
            assert lost <= dropped[sort]
        counts = self.spool.stock.counts
        assert self.spool.stock.size <= stock.SPOOL_BYTES
        assert all(counts[sort] <= stock._MOST[sort] for sort in Sort)
        assert len(self.spool.stock) == len(there), "the file and its account differ"

    def there(self) -> set[int]:
        rows = self.store.database.execute("SELECT body FROM records").fetchall()
        return {record[1] for (body,) in rows for record in stock_records(body)}


def stock_records(body: bytes) -> list[list[int]]:
    found: list[list[int]] = msgpack.unpackb(body)
    return found


@pytest.mark.parametrize("first", range(0, WORLDS, 25))
def test_nothing_is_lost_uncounted_and_everything_comes(
    first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "SPOOL_BYTES", 6_000)
    monkeypatch.setattr(stock, "_MOST", {Sort.EVENTS: 120, Sort.READINGS: 200})
    drops = repeats = 0
    for seed in range(first, first + 25):
        node = Node(seed)
        while node.now_ms < END_MS // 4:
            act = node.dice.choice((node.cut, node.connect, node.connect, node.kill, None, None))
            if act is not None:
                act()
            for _ in range(node.dice.randint(0, 4)):
                node.measure(node.dice.choice(list(Sort)))
            node.advance(node.dice.choice((100, 400, 2_000)))
        node.connect()
        node.unsettled = 0
        node.advance(END_MS)
        assert len(node.spool.stock) == 0, seed
        missing = len(set(node.kept) - node.delivered)
        assert missing <= node.spool.dropped.total(), seed
        drops += node.spool.dropped.total()
        repeats += node.repeats
    assert drops, "no world was full"
    assert repeats, "no link broke with something on its way"
