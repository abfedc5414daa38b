"""Driver children as real processes: calls side by side, crash, hang, flood, and the agent's end."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers import frames
from imlmesh_drivers.base import PinRules, Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.child import Child
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverTimeout
from imlmesh_protocol.limits import LOG_LINES_PER_ACTION
from waiting import ended, eventually


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., Child]]:
    made: list[Child] = []

    def child(module: str = "fake", **site: Any) -> Child:
        made.append(Child(module, Site(files=str(tmp_path), **site).to_wire()))
        return made[-1]

    yield child
    for one in made:
        await one.close()


async def act(
    child: Child, dispatch: str = "r-1/a/n/1", timeout_s: float = 10, **params: Any
) -> Any:
    return await child.call("act", params, Call(dispatch), timeout_s)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_warm_child_serves_call_after_call(make: Callable[..., Child]) -> None:
    child = make()
    assert child.pid is None
    assert await act(child, value={"deep": [1, None, "ü"]}) == {"value": {"deep": [1, None, "ü"]}}
    pid = child.pid
    assert await child.call("echo", {"value": 2}, Call("d"), 5) == {"value": 2}
    assert child.pid == pid


async def test_calls_run_side_by_side(make: Callable[..., Child]) -> None:
    child = make()
    told: list[float | None] = []
    call = Call("r-1/a/n/1", on_progress=lambda fraction, _: told.append(fraction))
    results = await asyncio.gather(
        *(child.call("act", {"value": n, "delay_ms": 500}, call, 10) for n in range(4))
    )
    assert [result["value"] for result in results] == [0, 1, 2, 3]
    assert told == [0.0] * 4 + [1.0] * 4, "all have begun before one ends"


async def test_lines_and_progress_stream(make: Callable[..., Child]) -> None:
    child = make()
    lines: list[str] = []
    progress: list[float | None] = []
    call = Call(
        "r-1/a/n/1",
        on_log=lambda line, _: lines.append(line),
        on_progress=lambda fraction, _: progress.append(fraction),
    )
    await child.call("act", {"log_lines": 3}, call, 5)
    assert lines == ["line 0", "line 1", "line 2"]
    assert progress == [0.0, 1.0]


async def test_coded_errors_come_back_as_their_class(make: Callable[..., Child]) -> None:
    child = make()
    with pytest.raises(DriverDenied) as denied:
        await act(child, fail_times=1, code="policy.path")
    assert denied.value.code == "policy.path"
    with pytest.raises(DriverError) as wrong:
        await act(child, delay_ms=-1)
    assert wrong.value.code == "driver.params"
    assert "delay_ms" in wrong.value.message
    with pytest.raises(DriverError) as unknown:
        await child.call("explode", {}, Call("d"), 5)
    assert unknown.value.code == "action.unknown"
    # a timeout that the driver reports is no reason to kill it
    pid = child.pid
    with pytest.raises(DriverTimeout):
        await act(child, "r-2/a/n/1", fail_times=1, code="driver.timeout")
    assert child.pid == pid


async def test_failures_end_after_fail_times(make: Callable[..., Child]) -> None:
    child = make()
    for attempt in (1, 2):
        with pytest.raises(DriverError):
            await act(child, f"r-1/a/n/{attempt}", fail_times=2)
    assert await act(child, "r-1/a/n/3", fail_times=2, value="at last") == {"value": "at last"}


async def test_every_beginning_leaves_a_marker(make: Callable[..., Child], tmp_path: Path) -> None:
    child = make()
    await act(child, "r-1/a/n/1", marker="marker")
    with pytest.raises(DriverError):
        await act(child, "r-1/a/n/2", marker="marker", crash=True)
    assert (tmp_path / "marker").read_text() == "r-1/a/n/1\nr-1/a/n/2\n"
    with pytest.raises(DriverError) as caught:
        await act(child, marker="../marker")
    assert caught.value.code == "policy.path"


async def test_a_crash_fails_all_calls_and_a_new_child_serves(make: Callable[..., Child]) -> None:
    child = make()
    await child.start()
    pid = child.pid
    ends = await asyncio.gather(
        act(child, delay_ms=60_000), act(child, crash=True), return_exceptions=True
    )
    assert [end.code for end in ends if isinstance(end, DriverError)] == ["driver.crashed"] * 2
    assert child.pid not in (None, pid)
    assert await act(child, value=1) == {"value": 1}


async def test_a_hung_call_costs_the_child(make: Callable[..., Child]) -> None:
    child = make()
    await child.start()
    pid = child.pid
    with pytest.raises(DriverTimeout) as caught:
        await act(child, hang=True, timeout_s=0.2)
    assert caught.value.code == "driver.timeout"
    assert pid is not None
    assert not alive(pid)
    assert await act(child, value=1) == {"value": 1}


async def test_cancelling_a_call_ends_the_child(make: Callable[..., Child], tmp_path: Path) -> None:
    child = make()
    call = asyncio.create_task(act(child, hang=True, marker="begun"))
    await eventually(lambda: (tmp_path / "begun").exists())
    pid = child.pid
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert pid is not None
    assert not alive(pid)


async def test_what_is_killed_along_says_for_whom(make: Callable[..., Child]) -> None:
    child = make()
    other = asyncio.create_task(act(child, "r-1/other/n/1", delay_ms=60_000))
    with pytest.raises(DriverTimeout):
        await act(child, "r-1/slow/n/1", timeout_s=0.3, delay_ms=60_000)
    with pytest.raises(
        DriverError, match="was killed for r-1/slow/n/1, which ran in the same"
    ) as end:
        await other
    assert end.value.code == "driver.killed_along"
    with pytest.raises(DriverError, match="crashed: it ended, return code"):
        await act(child, crash=True)


async def test_who_comes_while_it_is_killed_waits_for_the_next_one(
    make: Callable[..., Child], tmp_path: Path
) -> None:
    child = make()
    hung = asyncio.create_task(act(child, delay_ms=60_000, marker="began"))
    await eventually(lambda: (tmp_path / "began").exists())
    hung.cancel()
    await asyncio.sleep(0)  # now it is being killed
    assert await act(child, value=7) == {"value": 7}
    with pytest.raises(asyncio.CancelledError):
        await hung


async def test_a_flood_of_lines_is_bounded_and_leaves_the_loop_free(
    make: Callable[..., Child],
) -> None:
    child = make()
    lines: list[str] = []
    call = Call("r-1/a/n/1", on_log=lambda line, _: lines.append(line))
    await child.start()
    lags: list[float] = []
    flood = asyncio.create_task(child.call("act", {"log_lines": 1_000_000}, call, 30))
    while not flood.done():
        begin = time.monotonic()
        await asyncio.sleep(0.01)
        lags.append(time.monotonic() - begin)
    assert await flood == {"value": None}
    assert len(lines) == LOG_LINES_PER_ACTION + 1
    assert max(lags) < 0.4


async def test_a_result_past_the_frame_limit_is_refused(make: Callable[..., Child]) -> None:
    child = make()
    assert len((await act(child, result_bytes=1_000_000))["filler"]) == 1_000_000
    with pytest.raises(DriverError) as caught:
        await act(child, result_bytes=9_000_000)
    assert caught.value.code == "result.too_large"
    assert await act(child, value=1) == {"value": 1}


async def test_close_ends_the_child(make: Callable[..., Child]) -> None:
    child = make()
    await child.start()
    pid = child.pid
    await child.close()
    assert pid is not None
    assert not alive(pid)
    with pytest.raises(DriverError) as caught:
        await act(child)
    assert caught.value.code == "driver.crashed"


async def test_a_module_that_nobody_serves(make: Callable[..., Child]) -> None:
    with pytest.raises(DriverError) as caught:
        await make("no-such-module").start()
    assert caught.value.code == "module.unknown"


async def spawn_alone(files: Path, module: str, **site: Any) -> asyncio.subprocess.Process:
    """A child without its agent side, as if the agent could die at any time."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "imlmesh_drivers.child",
        module,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin
    process.stdin.write(frames.encode([Site(files=str(files), **site).to_wire()]))
    return process


async def next_frame(process: asyncio.subprocess.Process) -> list[Any]:
    assert process.stdout
    size = frames.length(await process.stdout.readexactly(frames.HEADER.size))
    return frames.decode(await process.stdout.readexactly(size))


async def test_the_child_ends_with_its_agent_even_while_a_call_hangs(tmp_path: Path) -> None:
    process = await spawn_alone(tmp_path, "fake")
    assert process.stdin
    assert await next_frame(process) == ["ready"]
    process.stdin.write(frames.encode([1, "act", {"hang": True, "marker": "begun"}, "r-1/a/n/1"]))
    await eventually(lambda: (tmp_path / "begun").exists())
    process.send_signal(signal.SIGTERM)
    process.stdin.write(frames.encode([2, "act", {"delay_ms": -1}, "r-1/a/n/2"]))
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 5) == 0


NOISY = """
import os, signal, subprocess, sys
from pathlib import Path
from imlmesh_drivers import Driver, action

class Noisy(Driver):
    module = "noisy"
    version = "0.1.0"

    def safe(self):
        with open("safe", "a") as file:
            file.write("safe ")

    def close(self):
        with open("safe", "a") as file:
            file.write("closed")

    @action(effect="pure", impact=0.1, permission="readonly")
    def shout(self, lines: int = 0) -> dict[str, int]:
        for _ in range(lines):
            print("x" * 100, flush=True)
        os.system("echo from a program")
        return {"read": len(sys.stdin.read())}

    @action(impact=0.1, permission="readonly")
    def leave(self) -> dict[str, int]:
        program = subprocess.Popen(["sleep", "60"])
        Path("inner").write_text(str(program.pid))
        program.wait()

    @action(impact=0.1, permission="readonly")
    def fall(self) -> dict[str, int]:
        print("the reason", file=sys.stderr, flush=True)
        os._exit(3)

    @action(impact=0.1, permission="readonly")
    def odd(self) -> dict[str, object]:
        return {"value": object()}
"""


@pytest.fixture
def noisy(make: Callable[..., Child], tmp_path: Path) -> Child:
    (tmp_path / "noisy_plugin.py").write_text(NOISY)
    info = tmp_path / "noisy_plugin-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: noisy-plugin\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[imlmesh.drivers]\nnoisy = noisy_plugin:Noisy\n")
    return make("noisy", env={"PYTHONPATH": str(tmp_path)})


async def test_what_a_driver_prints_does_not_reach_the_pipe(noisy: Child) -> None:
    assert await noisy.call("shout", {"lines": 2_000}, Call("d"), 10) == {"read": 0}
    assert await noisy.call("shout", {}, Call("d"), 10) == {"read": 0}


async def test_a_crash_says_what_was_printed_last(noisy: Child) -> None:
    with pytest.raises(DriverError) as caught:
        await noisy.call("fall", {}, Call("d"), 10)
    assert caught.value.code == "driver.crashed"
    assert "return code 3" in caught.value.message
    assert "the reason" in caught.value.message


async def test_a_killed_child_takes_its_programs_along(noisy: Child, tmp_path: Path) -> None:
    with pytest.raises(DriverTimeout):
        await noisy.call("leave", {}, Call("d"), 1)
    inner = int((tmp_path / "inner").read_text())
    await eventually(lambda: ended(inner))


async def test_safe_state_comes_first_and_again_after_a_kill_and_at_the_end(
    noisy: Child, tmp_path: Path
) -> None:
    await noisy.start()
    assert (tmp_path / "safe").read_text() == "safe "
    with pytest.raises(DriverError):
        await noisy.call("fall", {}, Call("d"), 10)
    assert (tmp_path / "safe").read_text() == "safe safe "
    await noisy.close()
    assert (tmp_path / "safe").read_text() == "safe safe safe closed"


async def test_a_result_that_is_no_plain_value_is_an_error(noisy: Child) -> None:
    with pytest.raises(DriverError) as caught:
        await noisy.call("odd", {}, Call("d"), 10)
    assert caught.value.code == "driver.failed"


async def test_mock_pins(make: Callable[..., Child]) -> None:
    child = make("iot", pins=PinRules("mock", (4, 17), {17: 1}))

    async def level(pin: int) -> int:
        value = await child.call("digital_read", {"pin": pin}, Call("d"), 5)
        assert value["pin"] == pin
        return int(value["value"])

    assert await level(17) == 1
    assert await level(4) == 0
    written = await child.call("digital_write", {"pin": 17, "value": 0}, Call("d"), 5)
    assert written == {"pin": 17, "value": 0, "factory": "mock", "previous": 1}
    assert await level(17) == 0
    written = await child.call("digital_write", {"pin": 4, "value": 1}, Call("d"), 5)
    assert written == {"pin": 4, "value": 1, "factory": "mock", "previous": 0}
    assert await level(4) == 1
    await child.kill()
    assert await level(17) == 1
    with pytest.raises(DriverDenied) as caught:
        await level(5)
    assert caught.value.code == "policy.pin"


async def test_pins_without_rules_are_denied(make: Callable[..., Child]) -> None:
    with pytest.raises(DriverDenied) as caught:
        await make("iot").call("digital_write", {"pin": 4, "value": 1}, Call("d"), 5)
    assert caught.value.code == "policy.pin"


async def test_a_child_is_replaced_when_its_calls_have_ended(make: Callable[..., Child]) -> None:
    child = make()
    first = asyncio.create_task(act(child, value=1, delay_ms=500))
    await eventually(lambda: child.pid is not None)
    pid = child.pid
    replacing = asyncio.create_task(child.replace())
    await asyncio.sleep(0)
    # it waits, though the one before it would have ended later
    second = asyncio.create_task(act(child, value=2))
    assert (await first, child.pid) == ({"value": 1}, pid)
    await replacing
    assert child.pid not in (None, pid)
    assert await second == {"value": 2}


async def test_who_waits_too_long_for_a_replacement_has_not_started(
    make: Callable[..., Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imlmesh_drivers.child.START_MS", 100)
    child = make()
    first = asyncio.create_task(act(child, value=1, delay_ms=1_500))
    await eventually(lambda: child.pid is not None)
    replacing = asyncio.create_task(child.replace())
    await asyncio.sleep(0)
    with pytest.raises(DriverError) as caught:
        await act(child, marker="marker")
    assert caught.value.code == "action.not_started"
    assert not first.done()
    assert await first == {"value": 1}
    await replacing
    assert not (tmp_path / "marker").exists()
    assert await act(child, value=3) == {"value": 3}


async def test_a_call_that_is_killed_lets_the_child_be_replaced(make: Callable[..., Child]) -> None:
    child = make()
    hung = asyncio.create_task(act(child, hang=True, timeout_s=60))
    await eventually(lambda: child.pid is not None)
    replacing = asyncio.create_task(child.replace())
    await asyncio.sleep(0)
    hung.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hung
    await asyncio.wait_for(replacing, 10)
    assert await act(child, value=2) == {"value": 2}


async def test_a_child_that_is_closed_is_not_replaced(make: Callable[..., Child]) -> None:
    child = make()
    await child.start()
    await child.close()
    await child.replace()
    assert child.pid is None
