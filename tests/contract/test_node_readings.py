"""Readings of drivers on a real loop: many in a message, bounded, and in mesh time."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from imlmesh_node.outbox import Letter
from imlmesh_node.readings import Readings
from imlmesh_protocol import limits
from imlmesh_protocol.wire.messages import check_fields
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.clock import MeshClock

WITHIN_S = 5


class Rig:
    """Readings, what was sent, and how many were lost."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self.lost: Counter[str] = Counter()
        self.is_open = True
        self.clock = MeshClock()
        self.readings = Readings(self._send, lambda: self.is_open, self.clock, self._note)
        self._more = asyncio.Event()

    def _send(self, letter: Letter) -> None:
        check_fields(Kind.EVENT, {**letter.fields, "readings": _plain(letter.fields["readings"])})
        self.letters.append(letter)
        self._more.set()

    def _note(self, code: str, text: str, count: int) -> None:
        self.lost[code] += count

    def add(self, metric: str, value: float, unit: str = "", module: str = "iot") -> None:
        self.readings.add(module, metric, value, unit, 0)

    async def wait(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not enough():
                self._more.clear()
                await self._more.wait()


def _plain(columns: dict[str, Any]) -> dict[str, Any]:
    """As msgpack brings it to the other side."""
    return {metric: [list(column) for column in pair] for metric, pair in columns.items()}


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(limits, "TELEMETRY_GATHER_MS", 20)
    return Rig()


async def test_what_is_measured_within_a_moment_is_one_message(rig: Rig) -> None:
    before_ms = rig.clock.now_ms()
    for value in (1.0, 2.0):
        rig.add("soil", value, "%")
    rig.add("air", 3.0)
    assert rig.letters == []
    await rig.wait(lambda: bool(rig.letters))
    (letter,) = rig.letters
    assert (letter.kind, letter.channel, letter.qos) == (Kind.EVENT, "telemetry/iot", 0)
    readings = letter.fields["readings"]
    assert {metric: values for metric, (_, values) in readings.items()} == {
        "iot.soil": [1.0, 2.0],
        "iot.air": [3.0],
    }
    assert letter.fields["units"] == {"iot.soil": "%"}
    times = [at for column, _ in readings.values() for at in column]
    assert all(before_ms - 1 <= at <= rig.clock.now_ms() + 1 for at in times)


async def test_a_burst_has_a_time_for_each_reading(rig: Rig) -> None:
    for number in range(100):
        rig.add("soil", float(number))
        rig.add("air", float(number))
    rig.readings.send_all()
    for times, values in rig.letters[0].fields["readings"].values():
        assert times == sorted(set(times))
        assert values == [float(number) for number in range(100)]
    rig.readings.close()


async def test_more_names_than_are_kept_are_not_sent(rig: Rig) -> None:
    for number in range(10_000):
        rig.add(f"n{number}", 1.0)
    rig.add("n0", 2.0)
    rig.readings.send_all()
    assert len(rig.letters[0].fields["readings"]) == limits.TELEMETRY_METRICS
    assert rig.letters[0].fields["readings"]["iot.n0"][1] == [1.0, 2.0]
    assert rig.lost == {"telemetry.metrics": 10_000 - limits.TELEMETRY_METRICS}
    rig.readings.close()


async def test_a_module_whose_name_no_metric_has_is_told_so(rig: Rig) -> None:
    rig.add("soil", 1.0, module="Third Party")
    rig.add("m" * limits.METRIC_CHARS, 1.0)
    rig.readings.send_all()
    assert (rig.letters, rig.lost) == ([], {"telemetry.invalid": 2})


async def test_all_modules_share_a_message(rig: Rig) -> None:
    rig.add("soil", 1.0)
    rig.add("level", 2.0, module="fake")
    rig.add("soil", 3.0)
    rig.readings.send_all()
    (letter,) = rig.letters
    assert letter.channel == "telemetry/readings"
    readings = letter.fields["readings"]
    assert {metric: values for metric, (_, values) in readings.items()} == {
        "iot.soil": [1.0, 3.0],
        "fake.level": [2.0],
    }
    rig.readings.close()


@pytest.mark.parametrize("rate", [1, 10, 100, 1_000])
async def test_however_much_is_measured_a_node_sends_one_message_a_second(
    rig: Rig, rate: int
) -> None:
    for number in range(rate):
        rig.add(f"m{number % 20}", float(number), module="iot" if number % 2 else "fake")
    rig.readings.send_all()
    assert [_count(letter) for letter in rig.letters] == [rate]
    rig.readings.close()


def _count(letter: Letter) -> int:
    return sum(len(times) for times, _ in letter.fields["readings"].values())


async def test_a_message_has_room_for_so_many(rig: Rig) -> None:
    count = limits.TELEMETRY_MESSAGE + 1
    for number in range(count):
        rig.add("soil", float(number))
    rig.readings.send_all()
    sizes = [len(letter.fields["readings"]["iot.soil"][1]) for letter in rig.letters]
    assert sizes == [limits.TELEMETRY_MESSAGE, 1]
    rig.readings.close()


async def test_without_a_session_the_newest_wait_and_the_rest_is_counted(rig: Rig) -> None:
    rig.is_open = False
    rig.readings.add("iot", "soil", -1.0, "", 4)
    for number in range(limits.TELEMETRY_WAITING + 9):
        rig.add("soil", float(number))
    turns = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, turns.set)
    await asyncio.wait_for(turns.wait(), WITHIN_S)
    assert (rig.letters, rig.lost) == ([], {})
    rig.is_open = True
    await rig.wait(lambda: len(rig.letters) == limits.TELEMETRY_WAITING // limits.TELEMETRY_MESSAGE)
    assert rig.letters[0].fields["readings"]["iot.soil"][1][0] == 9.0
    assert rig.lost == {"telemetry.rate": 10 + 4}


async def test_a_clock_that_is_set_meanwhile_moves_what_waits(rig: Rig) -> None:
    rig.is_open = False
    rig.add("soil", 1.0)
    rig.clock.sync(5_000_000)
    rig.is_open = True
    rig.readings.send_all()
    [(times, _)] = rig.letters[0].fields["readings"].values()
    assert 4_990_000 <= times[0] <= 5_000_000
    rig.readings.close()


async def test_what_is_left_at_the_end_is_sent(rig: Rig) -> None:
    rig.add("soil", 1.0)
    rig.readings.close()
    assert len(rig.letters) == 1
