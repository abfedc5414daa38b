"""Log lines and progress on a real loop: a flood is bounded, little things come at once."""

import asyncio
from collections.abc import Callable

import pytest

from imlmesh_node import streams
from imlmesh_node.outbox import Letter
from imlmesh_node.readings import Readings
from imlmesh_node.streams import EventStreams
from imlmesh_protocol.limits import LOG_LINES_BURST, LOG_LINES_PER_S
from imlmesh_runtime.clock import MeshClock

WITHIN_S = 5


class Sent:
    """What was sent, and a way to wait until there is enough."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.is_open = True
        self._more = asyncio.Event()

    def send(self, letter: Letter) -> None:
        self.letters.append(letter)
        self._more.set()

    def lines(self) -> list[str]:
        return [letter.fields["line"] for letter in self.letters if letter.channel == "log"]

    async def wait(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not enough():
                self._more.clear()
                await self._more.wait()


def streams_of(sent: Sent) -> EventStreams:
    def is_open() -> bool:
        return sent.is_open

    readings = Readings(sent.send, is_open, MeshClock(), lambda code, text, count: None)
    return EventStreams(sent.send, is_open, readings)


async def test_a_few_lines_come_at_once_and_in_order() -> None:
    sent = Sent()
    streams = streams_of(sent)
    for number in range(5):
        streams.log("d", f"line {number}", "stdout")
    await sent.wait(lambda: len(sent.letters) == 5)
    assert sent.lines() == [f"line {number}" for number in range(5)]
    assert sent.letters[0].fields["stream"] == "stdout"
    assert sent.letters[0].qos == 0
    streams.close()


async def test_a_flood_leaves_at_its_rate() -> None:
    sent = Sent()
    streams = streams_of(sent)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    count = LOG_LINES_BURST + LOG_LINES_PER_S // 2
    for number in range(count):
        streams.log("d", str(number), "log")
    await sent.wait(lambda: len(sent.letters) >= count)
    assert loop.time() - began_s > 0.4
    assert sent.lines() == [str(number) for number in range(count)]
    streams.close()


async def test_too_many_lines_drop_the_oldest_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "LOG_LINES_WAITING", 10)
    sent = Sent()
    flooded = streams_of(sent)
    for number in range(25):
        flooded.log("d", str(number), "log")
    await sent.wait(lambda: len(sent.letters) >= 11)
    assert sent.lines() == [
        "15",
        "15 lines before this one were dropped",
        *(str(number) for number in range(16, 25)),
    ]
    flooded.close()


async def test_of_progress_only_the_latest_is_sent() -> None:
    sent = Sent()
    streams = streams_of(sent)
    for fraction in (0.1, 0.5, 0.9):
        streams.progress("d", fraction, "measuring")
    await sent.wait(lambda: bool(sent.letters))
    assert [letter.fields["fraction"] for letter in sent.letters] == [0.9]
    streams.close()


async def test_without_a_session_lines_wait_for_one() -> None:
    sent = Sent()
    sent.is_open = False
    streams = streams_of(sent)
    streams.log("d", "kept", "log")
    turns = asyncio.Event()
    asyncio.get_running_loop().call_later(0.12, turns.set)
    await asyncio.wait_for(turns.wait(), WITHIN_S)
    assert sent.letters == []
    sent.is_open = True
    await sent.wait(lambda: sent.lines() == ["kept"])
    streams.close()


def told(sent: Sent) -> list[tuple[str, object]]:
    return [
        (letter.channel, letter.fields["values"])
        for letter in sent.letters
        if letter.channel.startswith("source/")
    ]


async def test_what_a_source_saw_leaves_in_order_with_qos_1() -> None:
    sent = Sent()
    streams = streams_of(sent)
    for number in range(20):
        streams.source("gpio-4", {"value": number})
    await sent.wait(lambda: len(sent.letters) == 20)
    assert told(sent) == [("source/gpio-4", {"value": number}) for number in range(20)]
    assert {letter.qos for letter in sent.letters} == {1}
    streams.close()


async def test_a_flood_of_a_source_keeps_the_latest_and_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "SOURCE_EVENTS_WAITING", 3)
    sent = Sent()
    sent.is_open = False
    flooded = streams_of(sent)
    for number in range(10):
        flooded.source("gpio-4", {"value": number})
    flooded.source("Gpio 4", {"value": 1})
    flooded.source("gpio-4", {"value": [1]})
    flooded.source("gpio-4", {"text": "x" * 257})
    sent.is_open = True
    await sent.wait(lambda: len(sent.letters) == 3)
    assert told(sent) == [
        ("source/gpio-4", {"value": 7, "missed": 10}),
        ("source/gpio-4", {"value": 8}),
        ("source/gpio-4", {"value": 9}),
    ]
    flooded.close()


async def test_what_waited_says_how_old_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_LATE_MS", 0)
    sent = Sent()
    late = streams_of(sent)
    late.source("gpio-4", {"value": 1})
    await sent.wait(lambda: bool(sent.letters))
    [(_, values)] = told(sent)
    assert isinstance(values, dict)
    assert 0 <= values["age_ms"] < WITHIN_S * 1_000
    late.close()
