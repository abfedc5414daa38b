"""The executor with real drivers: on the loop, in threads, in child processes."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from imlmesh_drivers.base import CommandRule, PinRules, Site
from imlmesh_drivers.buses import BusRules
from imlmesh_node.core.commands import KillReason
from imlmesh_node.core.events import DriverFinished
from imlmesh_node.executor import Executor
from imlmesh_protocol.limits import RESULT_BYTES, TELEMETRY_CALL_BURST
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_runtime.clock import ManualClock

WITHIN_S = 20


class Heard:
    """Streams of a test: lines and progress, and a way to wait for a line."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, str]] = []
        self.fractions: list[float | None] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.readings: list[tuple[str, str, float, str, int]] = []
        self.some = asyncio.Event()

    def log(self, dispatch: str, line: str, stream: str) -> None:
        self.lines.append((dispatch, line, stream))
        self.some.set()

    def progress(self, dispatch: str, fraction: float | None, message: str) -> None:
        self.fractions.append(fraction)
        self.some.set()

    def source(self, name: str, values: Mapping[str, Any]) -> None:
        self.seen.append((name, dict(values)))
        self.some.set()

    def reading(self, module: str, metric: str, value: float, unit: str, dropped: int) -> None:
        self.readings.append((module, metric, value, unit, dropped))


class Rig:
    """An executor and all that it said."""

    def __init__(self, folder: Path, **more: Any) -> None:
        site = Site(
            files=str(folder),
            read_roots=(),
            write_roots=(str(folder),),
            commands={"sleep": CommandRule("/bin/sleep")},
            **more,
        )
        self.heard = Heard()
        self.ended: asyncio.Queue[DriverFinished] = asyncio.Queue()
        self.executor = Executor(site, self.heard, self.ended.put_nowait, ManualClock())
        self._number = 0

    def run(
        self, module: str, action: str, effect: Effect = Effect.ONCE, **params: Any
    ) -> Dispatch:
        self._number += 1
        id = f"r-1-abcd/a{self._number}/pi/1"
        one = Dispatch(id, module, action, params, effect, 60_000, 60_000, "finish")
        self.executor.run(one)
        return one

    async def end(self) -> DriverFinished:
        return await asyncio.wait_for(self.ended.get(), WITHIN_S)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    await made.executor.close()


@pytest.fixture
async def garden(tmp_path: Path) -> AsyncIterator[Rig]:
    """An executor over the simulated greenhouse."""
    pins = PinRules("mock", (4, 17), {17: 0})
    buses = BusRules(serial={"/dev/ttyS0": "mock"}, simulate=True)
    made = Rig(tmp_path, pins=pins, buses=buses)
    yield made
    await made.executor.close()


async def test_what_a_source_sees_reaches_the_streams(garden: Rig) -> None:
    garden.run("iot", "add_event_detect", pin=4, edge="rising")
    assert (await garden.end()).outcome == "completed"
    garden.run("iot", "digital_write", pin=17, value=1)
    assert (await garden.end()).outcome == "completed"
    async with asyncio.timeout(WITHIN_S):
        while not garden.heard.seen:
            garden.heard.some.clear()
            await garden.heard.some.wait()
    name, values = garden.heard.seen[0]
    assert (name, values["edge"], values["value"]) == ("gpio-4", "rising", 1)


async def test_a_safe_level_that_cannot_be_set_names_the_library_and_what_brings_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lgpio.py").write_text('raise ModuleNotFoundError("No module", name="lgpio")')
    pins = PinRules("native", (17,), {17: 1})
    made = Rig(tmp_path, pins=pins, env={"PYTHONPATH": str(tmp_path)})
    made.executor.stand_guard(["iot"])
    await made.executor.close()
    told = (
        "the driver iot cannot set its safe state: driver.missing: pin: a library is not installed"
    )
    assert told in caplog.text
    assert "pip install 'imlmesh[gpio]'" in caplog.text
    assert "apt-get install python3-lgpio" in caplog.text


async def test_a_killed_action_is_told_when_its_pins_are_safe(garden: Rig) -> None:
    garden.run("iot", "digital_write", pin=17, value=1)
    assert (await garden.end()).result["value"] == 1
    before = garden.executor._children["iot"].pid
    listening = garden.run("iot", "receive_uart", timeout=30.0)
    # its turn to begin
    await asyncio.sleep(0)
    garden.executor.kill(listening, KillReason.CANCEL)
    assert (await garden.end()).outcome == "cancelled"
    # a new child is there, and it is ready only with its pins safe: claims may be freed now
    assert garden.executor._children["iot"].pid not in (None, before)
    garden.run("iot", "digital_read", pin=17)
    assert (await garden.end()).result["value"] == 0


async def test_safe_levels_are_set_before_any_call(garden: Rig) -> None:
    garden.executor.stand_guard(["filesystem", "iot", "no_such"])
    async with asyncio.timeout(WITHIN_S):
        await asyncio.gather(*garden.executor._guarding)
    # it is ready only after its safe state
    assert garden.executor._children["iot"].pid is not None
    assert list(garden.executor._children) == ["iot"]


async def test_an_action_that_waits_on_the_loop_leaves_pins_to_the_child(garden: Rig) -> None:
    garden.run("iot", "publish_mqtt", broker="192.0.2.1", topic="a", payload="b")
    end = await garden.end()
    assert end.error is not None
    assert end.error.code == "policy.broker"
    assert garden.executor._children == {}
    assert garden.executor._drivers["iot"].pins._factory is None  # type: ignore[attr-defined]


async def test_what_ends_at_once_has_ended_when_run_returns(rig: Rig) -> None:
    one = rig.run("fake", "echo", value={"a": [1]})
    end = rig.ended.get_nowait()
    assert (end.dispatch, end.outcome, end.result) == (one.id, "completed", {"value": {"a": [1]}})
    assert rig.executor.busy == 0


async def test_a_threads_action_ends_later(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    rig.run("filesystem", "read_file", path="a.txt")
    assert rig.ended.empty()
    end = await rig.end()
    assert end.result["content"] == "hello"


async def test_a_childs_action_streams_lines_and_progress(rig: Rig) -> None:
    one = rig.run("fake", "act", value=7, log_lines=3)
    end = await rig.end()
    assert (end.outcome, end.result) == ("completed", {"value": 7})
    assert rig.heard.lines == [(one.id, f"line {n}", "log") for n in range(3)]
    assert rig.heard.fractions == [0.0, 1.0]


async def test_a_childs_readings_come_with_their_module(rig: Rig) -> None:
    rig.run("fake", "act", readings=3)
    assert (await rig.end()).outcome == "completed"
    assert rig.heard.readings == [("fake", "level", float(n), "%", 0) for n in range(3)]


async def test_a_flood_of_readings_is_cut_at_its_source_and_counted(rig: Rig) -> None:
    rig.run("fake", "act", readings=200_000)
    assert (await rig.end()).outcome == "completed"
    rig.run("fake", "act", readings=1)
    await rig.end()
    came, dropped = len(rig.heard.readings), sum(item[4] for item in rig.heard.readings)
    assert TELEMETRY_CALL_BURST <= came < 20_000
    # what was dropped after the last one that came is not told: less than a hundredth of a second
    assert 150_000 < came + dropped <= 200_001


@pytest.mark.parametrize("reading", ["hot", True, [1], 1e101])
async def test_what_is_no_number_fails_the_action(rig: Rig, reading: Any) -> None:
    rig.run("fake", "act", readings=1, reading=reading)
    end = await rig.end()
    assert (end.outcome, end.error and end.error.code) == ("failed", "telemetry.invalid")
    assert rig.heard.readings == []


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"fail_times": 1, "code": "driver.unavailable"}, "driver.unavailable"),
        ({"crash": True}, "driver.crashed"),
        ({"result_bytes": RESULT_BYTES + 1}, "result.too_large"),
        ({"result_bytes": 9_000_000}, "result.too_large"),
        ({"no_such_param": 1}, "driver.params"),
    ],
)
async def test_a_failure_has_its_code(rig: Rig, params: dict[str, Any], code: str) -> None:
    rig.run("fake", "act", **params)
    end = await rig.end()
    assert end.outcome == "failed"
    assert end.error is not None
    assert end.error.code == code


@pytest.mark.parametrize(
    ("module", "action", "params", "code"),
    [
        ("filesystem", "read_file", {"path": "missing"}, "driver.not_found"),
        ("filesystem", "read_file", {}, "driver.params"),
        ("fake", "echo", {"value": 1, "more": 2}, "driver.params"),
        ("no_such", "act", {}, "module.unknown"),
        ("fake", "no_such", {}, "action.unknown"),
    ],
)
async def test_every_way_to_be_wrong_ends_in_one_event(
    rig: Rig, module: str, action: str, params: dict[str, Any], code: str
) -> None:
    rig.run(module, action, **params)
    end = await rig.end()
    assert end.error is not None
    assert end.error.code == code
    assert rig.executor.busy == 0


async def test_who_is_killed_at_once_says_so(rig: Rig) -> None:
    one = rig.run("fake", "act", delay_ms=60_000)
    rig.executor.kill(one, KillReason.CANCEL)
    assert (await rig.end()).outcome == "cancelled"
    assert rig.executor.busy == 0


async def test_a_hanging_child_is_killed_and_the_next_call_is_served(rig: Rig) -> None:
    one = rig.run("fake", "act", hang=True)
    await asyncio.wait_for(rig.heard.some.wait(), WITHIN_S)
    rig.executor.kill(one, KillReason.TIMEOUT)
    end = await rig.end()
    assert (end.outcome, end.error.code if end.error else "") == ("timed_out", "driver.timeout")
    rig.run("fake", "act", value=1)
    assert (await rig.end()).outcome == "completed"


@pytest.mark.parametrize(
    ("effect", "outcome"),
    [
        (Effect.PURE, "failed"),
        (Effect.IDEMPOTENT, "failed"),
        (Effect.ONCE, "unknown"),
        (Effect.PHYSICAL, "unknown"),
    ],
)
async def test_what_runs_beside_a_hanging_call_is_killed_along(
    rig: Rig, effect: Effect, outcome: str
) -> None:
    beside = rig.run("fake", "act", effect, delay_ms=60_000, log_lines=1)
    hanging = rig.run("fake", "act", hang=True, log_lines=1)
    async with asyncio.timeout(WITHIN_S):
        while len({item[0] for item in rig.heard.lines}) < 2:
            rig.heard.some.clear()
            await rig.heard.some.wait()
    rig.executor.kill(hanging, KillReason.TIMEOUT)
    ends = {end.dispatch: end for end in (await rig.end(), await rig.end())}
    assert ends[hanging.id].outcome == "timed_out"
    along = ends[beside.id]
    assert along.outcome == outcome
    assert along.error is not None
    assert along.error.code == "driver.killed_along"
    assert hanging.id in along.error.message


async def test_a_search_without_end_is_killed_and_the_next_one_is_served(
    rig: Rig, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("a" * 40)
    asked = {"directory": ".", "pattern": "*"}
    one = rig.run("filesystem", "search_files", content_pattern="(a+)+b", **asked)
    await wait_for_process("imlmesh_drivers.child\0filesystem")
    rig.executor.kill(one, KillReason.TIMEOUT)
    end = await rig.end()
    assert (end.outcome, end.error.code if end.error else "") == ("timed_out", "driver.timeout")
    rig.run("filesystem", "search_files", content_pattern="a", **asked)
    assert (await rig.end()).result["count"] == 1


async def test_a_killed_watch_ends_at_once(rig: Rig) -> None:
    one = rig.run("filesystem", "watch_path", path=".", timeout=600)
    await asyncio.sleep(0)
    rig.executor.kill(one, KillReason.CANCEL)
    end = await rig.end()
    assert (end.outcome, end.error.code if end.error else "") == ("cancelled", "action.cancelled")


async def test_a_killed_command_leaves_no_process(rig: Rig) -> None:
    one = rig.run("os_exec", "run_command", command=["sleep", "61.7"])
    await wait_for_process("61.7")
    rig.executor.kill(one, KillReason.CANCEL)
    end = await rig.end()
    assert (end.outcome, end.error.code if end.error else "") == ("cancelled", "action.cancelled")
    assert find_process("61.7") is None


async def test_killing_what_has_ended_does_nothing(rig: Rig) -> None:
    one = rig.run("fake", "echo", value=1)
    rig.ended.get_nowait()
    rig.executor.kill(one, KillReason.CANCEL)
    assert rig.ended.empty()


async def test_a_crash_of_the_child_from_outside_is_a_failure(rig: Rig) -> None:
    rig.run("fake", "act", hang=True)
    await asyncio.wait_for(rig.heard.some.wait(), WITHIN_S)
    pid = find_process("imlmesh_drivers.child\0fake")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    end = await rig.end()
    assert end.error is not None
    assert end.error.code == "driver.crashed"


def find_process(word: str) -> int | None:
    """A process that descends from this one and whose command line has `word`."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in "\0".join(process.cmdline()):
                return process.pid
    return None


async def wait_for_process(word: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while find_process(word) is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.01)
