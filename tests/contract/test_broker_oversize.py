"""What a broker says of messages that were too large: read from its log, counted, told, bounded."""

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from imlmesh_broker.choice import Embedded
from imlmesh_broker.mosquitto import Mosquitto
from imlmesh_broker.oversize import OversizeLog
from imlmesh_orchestrator.trust import oversize
from imlmesh_orchestrator.trust.oversize import OversizeTold
from imlmesh_protocol import limits
from imlmesh_runtime.logs import begin_anew

PI = b"1796121408: Client pi disconnected due to oversize packet.\n"


class Place:
    """A log of Mosquitto, and what is told of it."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "broker.log"
        self.told = folder / "oversize.json"
        self.log.write_bytes(PI)
        self.told.write_text('{"older": 9}')
        self.reader = OversizeLog(self.log, self.told, Mosquitto.oversize_of)
        self.reader.begin()

    def say(self, *lines: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(b"".join(lines))

    def counts(self) -> dict[str, int]:
        self.reader.look()
        found: dict[str, int] = json.loads(self.told.read_text()) if self.told.exists() else {}
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b"17: Client pi-1 disconnected due to oversize packet.", "pi-1"),
        (b"17: Client pi-1 disconnected: oversize packet.", "pi-1"),
        (b"17: Client pi-1 [10.0.0.7:40112] disconnected: oversize packet.", "pi-1"),
        (b"17: Client 10.0.0.7 disconnected due to oversize packet.", ""),
        (b"17: Client pi-1 disconnected due to protocol error.", None),
        (b"17: Client pi-1 disconnected.", None),
        (b"17: Client a b disconnected due to oversize packet.", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_words_of_mosquitto(line: bytes, client: str | None) -> None:
    assert Mosquitto.oversize_of(line) == client


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b'{"message": "a packet", "code": "message.too_large", "client": "pi-1"}', "pi-1"),
        (b'{"message": "message.too_large", "code": "link.down", "client": "pi-1"}', None),
        (b'["message.too_large"]', None),
        (b"Traceback (most recent call last):", None),
        (b"\xff\xfe", None),
    ],
)
def test_the_words_of_the_embedded_broker(line: bytes, client: str | None) -> None:
    assert Embedded.oversize_of(line) == client


def test_what_an_earlier_broker_said_is_not_counted(place: Place) -> None:
    assert place.counts() == {}
    place.say(PI)
    assert place.counts() == {"pi": 1}


def test_a_flood_is_one_number_and_read_in_parts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BROKER_SAID_BYTES", 10 * len(PI) + 7)
    place.say(*[PI] * 25, PI.replace(b"pi", b"other"))
    assert [place.counts().get("pi") for _ in range(4)] == [10, 20, 25, 25]
    assert place.counts() == {"pi": 25, "other": 1}


def test_half_a_line_is_read_when_it_is_whole(place: Place) -> None:
    place.say(PI[:20])
    assert place.counts() == {}
    place.say(PI[20:])
    assert place.counts() == {"pi": 1}


def test_what_is_no_line_stops_nobody(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BROKER_SAID_BYTES", 1_000)
    place.say(b"x" * 5_000, b"\n", PI)
    for _ in range(6):
        place.counts()
    assert place.counts() == {"pi": 1}


def test_a_log_that_begins_anew_is_read_from_its_beginning(place: Place) -> None:
    place.say(PI)
    assert place.counts() == {"pi": 1}
    begin_anew(place.log)
    place.say(PI)
    assert place.counts() == {"pi": 2}


def test_the_probe_is_nobody(place: Place) -> None:
    place.say(PI.replace(b"pi", b"probe-a"))
    assert place.counts() == {}


def test_names_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BROKER_SAID_CLIENTS", 3)
    place.say(*(PI.replace(b"pi", f"pi-{n}".encode()) for n in range(10)), PI)
    place.say(PI.replace(b"pi", b"pi-1"))
    assert place.counts() == {"pi-0": 1, "pi-1": 2, "pi-2": 1, "": 8}


async def test_the_orchestrator_hears_what_is_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "BROKER_SAID_MS", 5)
    heard: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
    file = tmp_path / "oversize.json"
    number = 0

    def write(text: str) -> None:
        nonlocal number
        number += 1
        new = tmp_path / "new"
        new.write_text(text)
        os.utime(new, (number, number))
        new.replace(file)

    told = OversizeTold(file, lambda *about: heard.put_nowait(about))
    write('{"pi": 2}')
    told.start()
    try:
        async with asyncio.timeout(10):
            assert await heard.get() == ("pi", 2, 2)
            write('{"pi": 5, "other": 1}')
            assert await heard.get() == ("pi", 3, 5)
            assert await heard.get() == ("other", 1, 1)
            write('{"pi": 4}')  # the broker began anew
            assert await heard.get() == ("pi", 4, 4)
    finally:
        await told.close()


@pytest.mark.parametrize("text", ["", "[]", '{"pi": "many"}', '{"pi": true}'])
async def test_what_is_no_count_is_said_once_and_waited_out(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "BROKER_SAID_MS", 5)
    heard: asyncio.Queue[tuple[str, int, int]] = asyncio.Queue()
    file = tmp_path / "oversize.json"
    file.write_text(text)
    os.utime(file, (1, 1))
    warned = asyncio.Event()
    looks = 0
    real = oversize._counts

    def counts(path: Path) -> dict[str, int]:
        nonlocal looks
        looks += 1
        warned.set()
        return real(path)

    monkeypatch.setattr(oversize, "_counts", counts)
    told = OversizeTold(file, lambda *about: heard.put_nowait(about))
    with caplog.at_level(logging.WARNING):
        told.start()
        try:
            async with asyncio.timeout(10):
                await warned.wait()
                (tmp_path / "new").write_text('{"pi": 1}')
                (tmp_path / "new").replace(file)
                assert await heard.get() == ("pi", 1, 1)
        finally:
            await told.close()
    assert looks == 2
    assert len([record for record in caplog.records if "oversize.json" in record.message]) == 1
