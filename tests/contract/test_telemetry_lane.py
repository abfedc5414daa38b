"""The lane of telemetry on a real loop: fair, bounded, behind everything else."""

import asyncio
import itertools
from collections import Counter
from types import SimpleNamespace

import pytest

from imlmesh_orchestrator.lane import Lane
from imlmesh_protocol import limits
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind, Topic

WITHIN_S = 5


class Taken:
    """A lane, what came out of it, and whose messages were dropped."""

    def __init__(self) -> None:
        self.order: list[tuple[str, bytes]] = []
        self.lost: Counter[str] = Counter()
        self.full = False
        self.fault: RuntimeError | None = None
        self.raised: RuntimeError | None = None
        self.lane = Lane(self._take, lambda node: self.lost.update([node]), lambda: self.full)

    def _take(self, topic: Topic, payload: bytes) -> None:
        self.raised, self.fault = self.fault or self.raised, None
        if self.raised and not self.order and payload == b"0":
            raise self.raised
        self.order.append((topic.name, payload))

    def put(self, node: str, payload: bytes) -> None:
        topic = topics.from_node("home", node, Kind.EVENT, "telemetry/iot")
        self.lane.put(topics.parse(topic), payload)

    async def wait(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while len(self.order) < count:  # noqa: ASYNC110 - the loop's turns are what is tested
                await asyncio.sleep(0)


async def test_nodes_take_turns_and_each_keeps_its_order() -> None:
    taken = Taken()
    for number in range(3):
        taken.put("evil", b"e%d" % number)
    taken.put("pi", b"p0")
    assert taken.order == [], "nothing is looked at before its turn"
    await taken.wait(4)
    assert taken.order == [("evil", b"e0"), ("pi", b"p0"), ("evil", b"e1"), ("evil", b"e2")]


async def test_who_sends_too_much_loses_its_own_oldest_messages() -> None:
    taken = Taken()
    taken.put("pi", b"p" * 1_000)
    size = 100_000
    for number in range(30):
        taken.put("evil", bytes([number]) * size)
    taken.put("pi", b"q" * 1_000)
    kept = limits.TELEMETRY_LANE_NODE_BYTES // size
    assert taken.lost == {"evil": 30 - kept}
    await taken.wait(kept + 2)
    assert [payload[0] for node, payload in taken.order if node == "evil"] == list(
        range(30 - kept, 30)
    )
    assert [payload[:1] for node, payload in taken.order if node == "pi"] == [b"p", b"q"]


async def test_a_node_that_floods_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TELEMETRY_MESSAGES_BURST", 10)
    # no time passes, so nobody earns another share
    monkeypatch.setattr("imlmesh_orchestrator.lane.boot_ms", lambda: 0)
    taken = Taken()
    for _ in range(1_000):
        taken.put("evil", b"x")
    taken.put("pi", b"x")
    await taken.wait(11)
    taken.lane.empty()
    assert Counter(node for node, _ in taken.order) == {"evil": 10, "pi": 1}
    assert taken.lost == {"evil": 990}


async def test_all_nodes_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TELEMETRY_LANE_BYTES", 1_000)
    taken = Taken()
    for number in range(20):
        taken.put(f"n{number}", b"x" * 100)
    assert sum(taken.lost.values()) == 10
    await taken.wait(10)


async def test_a_flood_lets_everything_else_have_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    # half a turn passes between any two looks at the clock
    looks = itertools.count(step=limits.TELEMETRY_TURN_MS * 500_000)
    clock = SimpleNamespace(monotonic_ns=lambda: next(looks))
    monkeypatch.setattr("imlmesh_orchestrator.lane.time", clock)
    taken = Taken()
    for number in range(1_000):
        taken.put(f"n{number % 50}", b"x")
    turns = 0
    async with asyncio.timeout(WITHIN_S):
        while len(taken.order) < 1_000:
            await asyncio.sleep(0)
            turns += 1
    assert turns >= 1_000, "the lane ends its turn after TELEMETRY_TURN_MS"


async def test_a_writer_that_lags_is_waited_for() -> None:
    taken = Taken()
    taken.full = True
    taken.put("pi", b"x")
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.03, later.set)
    await asyncio.wait_for(later.wait(), WITHIN_S)
    assert taken.order == []
    taken.full = False
    await taken.wait(1)


async def test_a_fault_costs_one_message() -> None:
    told: list[BaseException] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: told.append(context["exception"])
    )
    taken = Taken()
    taken.fault = RuntimeError("ours")
    taken.put("pi", b"0")
    taken.put("pi", b"1")
    await taken.wait(1)
    assert (taken.order, told) == ([("pi", b"1")], [taken.raised])


async def test_at_the_end_everything_is_taken() -> None:
    taken = Taken()
    for number in range(5):
        taken.put("pi", b"%d" % number)
    taken.lane.empty()
    assert len(taken.order) == 5
