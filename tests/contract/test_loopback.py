"""The probe of the orchestrator through its broker: what it tells the core, and when."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from imlmesh_orchestrator.core.events import LoopbackMeasured, StoodStill
from imlmesh_orchestrator.loopback import Loopback
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.clock import ManualClock


class Bus:
    """A link that keeps what is published; a test lets it come back, or not."""

    def __init__(self) -> None:
        self.connected = True
        self.full = False
        self.published: list[bytes] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if self.full:
            raise LinkError("link.full", "as the test says")
        assert (topic, qos, retain) == ("probe", 0, False)
        self.published.append(payload)

    def flush(self) -> None: ...


class Stage:
    def __init__(self) -> None:
        self.bus, self.clock = Bus(), ManualClock()
        self.events: list[Any] = []
        self.loopback = Loopback("probe", self.bus, self.clock, self.events.append)  # type: ignore[arg-type]
        self.loopback.link_up()

    def heard(self) -> list[bool]:
        return [event.hears for event in self.events if isinstance(event, LoopbackMeasured)]

    async def until(self, holds: Callable[[], bool], step_ms: int = 1) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.001)
                self.clock.advance(step_ms)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOPBACK_EVERY_MS", 5)


@pytest.mark.usefixtures("quick")
async def test_what_comes_back_is_nothing_to_tell_and_the_next_probe_is_another() -> None:
    stage = Stage()
    for count in range(1, 6):
        await stage.until(lambda count=count: len(stage.bus.published) == count)
        stage.loopback.came(stage.bus.published[-1])
    stage.loopback.close()
    assert stage.heard() == []
    assert len(set(stage.bus.published)) == 5


@pytest.mark.usefixtures("quick")
async def test_silence_of_our_own_is_told_once_and_so_is_its_end() -> None:
    stage = Stage()
    await stage.until(lambda: stage.heard() == [False], 100)
    count = len(stage.bus.published)
    await stage.until(lambda: len(stage.bus.published) >= count + 3, 100)
    assert stage.heard() == [False]
    stage.loopback.came(b"somebody else's")
    stage.loopback.came(stage.bus.published[0])  # far too late
    assert stage.heard() == [False]
    stage.loopback.came(stage.bus.published[-1])
    assert stage.heard() == [False, True]
    stage.loopback.close()


@pytest.mark.usefixtures("quick")
async def test_a_full_link_is_deaf_and_a_new_session_begins_anew() -> None:
    stage = Stage()
    stage.bus.full = True
    await stage.until(lambda: stage.heard() == [False], 100)
    stage.bus.full = False
    stage.loopback.link_up()
    stage.loopback.came(stage.bus.published[-1])
    assert stage.heard() == [False]  # the core hears of the session itself
    stage.loopback.close()


@pytest.mark.usefixtures("quick")
async def test_a_jump_of_the_boot_clock_is_a_standstill() -> None:
    stage = Stage()
    stage.bus.connected = False
    stage.clock.advance(3_600_000)
    await stage.until(lambda: bool(stage.events))
    (still,) = stage.events
    assert isinstance(still, StoodStill)
    assert 3_590_000 < still.for_ms <= 3_600_000 + 1_000
    stage.loopback.close()
