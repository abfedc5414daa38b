"""A driver in a process of its own: the agent's side of it, and `python -m imlmesh_drivers.child`.

The one rule: a call that hangs, crashes or is cancelled costs the child and its whole process group,
and the call only returns when they are gone and a new child has set the driver's safe state. So
whoever waits for the call may free its claims then. Other calls of that child end as
`driver.crashed`, or as `driver.killed_along` when it was killed for one of them. A child that ends while
nobody calls it is started again: for its safe state, and for the sources that it watched. It is replaced
when nothing runs in it: two never move the same thing.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

from imlmesh_drivers import frames
from imlmesh_drivers.call import Call
from imlmesh_drivers.foreign import from_code
from imlmesh_protocol.errors import CRASHED, KILLED_ALONG, DriverError, DriverTimeout
from imlmesh_protocol.limits import (
    DRIVER_RESTARTS,
    DRIVER_START_MS,
    DRIVER_STEADY_S,
    KILL_GRACE_MS,
    START_MS,
)

log = logging.getLogger(__name__)

_STDERR_BYTES = 64 * 1024  # read at once
_STDERR_KEPT = 2_000  # the end of it explains a crash
_STDERR_PAUSE_S = 0.01  # a flood of prints gets 6 MB/s of the agent's attention, not all of it
_STDERR_END_S = 0.1  # to read the last of it after the end
_FRAMES_PER_TURN = 64  # then everything else on the loop has its turn


class Child:
    """One warm process that serves the calls of one module; started when first needed."""

    def __init__(
        self,
        module: str,
        site_wire: Mapping[str, Any],
        on_event: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        """`site_wire` is `Site.to_wire()`; `on_event` takes what sources of the driver see."""
        self._module = module
        self._site_wire = dict(site_wire)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._calls: dict[int, tuple[asyncio.Future[Any], Call]] = {}
        self._stderr = b""
        self._closed = False
        self._on_event = on_event
        #: what the driver wants its successor to know, if anything
        self._kept: list[Any] = []
        self._killed = False
        #: the dispatch for which it was killed, if it was one
        self._killed_for = ""
        self._restarts = 0
        self._began_s = 0.0
        self._restarting: asyncio.Task[None] | None = None
        self._under_way = 0
        #: set while no call is under way; while new ones may begin
        self._idle, self._open = asyncio.Event(), asyncio.Event()
        self._open.set()

    @property
    def pid(self) -> int | None:
        """The running child's process id, which is its group's too."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the child, if none runs, and wait until its safe state is set and it serves.

        Raises what the driver said (`driver.missing` …), or `driver.crashed`, `driver.timeout`.
        """
        async with self._starting:
            if self._killed and self._reading is not None:
                await asyncio.wait({self._reading})  # a call that came to it now would die along
            if self._process is None and not self._closed:
                await self._spawn()

    async def call(
        self, action: str, params: Mapping[str, Any], call: Call, timeout_s: float
    ) -> Any:
        """Run one action; its result as plain values.

        Raises the driver's own coded errors, `driver.timeout`, `driver.crashed`, `driver.killed_along`, and
        `action.not_started` when it waited START_MS for another call to end, so that the child could be
        replaced.
        """
        await self._until_open()
        self._under_way += 1
        try:
            return await self._call(action, params, call, timeout_s)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def replace(self) -> None:
        """Let a new process serve, with the code that is installed now, once no call is under way; calls
        that come meanwhile wait. Where none runs the next call starts it.

        Raises like `start` when the new one does not serve; the next call tries again.
        """
        self._open.clear()
        try:
            while self._under_way:
                self._idle.clear()
                await self._idle.wait()
            async with self._starting:
                if self._process is not None and not self._closed:
                    await self._end()
                    await self._spawn()
        except (DriverError, OSError):
            # what the old one kept may be why
            self._kept = []
            raise
        finally:
            self._open.set()

    async def _until_open(self) -> None:
        try:
            async with asyncio.timeout(START_MS / 1000):
                while not self._open.is_set():
                    await self._open.wait()
        except TimeoutError:
            text = f"the driver {self._module} is replaced when the calls in it end: not in {START_MS} ms"
            raise DriverError("action.not_started", text) from None

    async def _call(
        self, action: str, params: Mapping[str, Any], call: Call, timeout_s: float
    ) -> Any:
        await self.start()
        process = self._process
        if process is None:
            raise DriverError(CRASHED, f"the driver {self._module} is closed")
        number = next(self._numbers)
        frame = frames.encode([number, action, dict(params), call.dispatch])
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[number] = (answer, call)
        _input(process).write(frame)
        try:
            await asyncio.wait({answer}, timeout=timeout_s)
        except asyncio.CancelledError:
            answer.cancel()
            await self._renew(process, call.dispatch)
            raise
        finally:
            del self._calls[number]
        if not answer.done():
            await self._renew(process, call.dispatch)
            message = f"{self._module}.{action} ran longer than {timeout_s} s"
            raise DriverTimeout("driver.timeout", message)
        if self._process is not process:
            await self._renew(process)
        return answer.result()

    async def kill(self, dispatch: str = "") -> None:
        """End the child and everything in its group, at once, for the call of `dispatch` if one is named:
        then the others fail as `driver.killed_along`, else all as `driver.crashed`."""
        if self._process is not None and self._reading is not None:
            self._killed_for = self._killed_for or dispatch
            self._killed = True
            _kill_group(self._process)
            await asyncio.wait({self._reading})

    async def close(self) -> None:
        """Let the child set its safe state and end; kill it when it does not."""
        self._closed = True
        # one that is just starting is let start first: only then it can set its safe state
        async with self._starting:
            await self._end()

    async def _end(self) -> None:
        if self._process is not None and self._reading is not None:
            self._killed = True  # it does not end unasked
            _input(self._process).close()
            await asyncio.wait({self._reading}, timeout=2 * KILL_GRACE_MS / 1000)
        await self.kill()

    async def _renew(self, process: asyncio.subprocess.Process, dispatch: str = "") -> None:
        if self._process is process:
            await self.kill(dispatch)
        # why it does not start again is what the next call will hear
        with contextlib.suppress(DriverError):
            await self.start()

    async def _spawn(self) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "imlmesh_drivers.child",
            self._module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **self._site_wire["env"]},
            start_new_session=True,
        )
        self._process = process
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stderr = b""
        self._killed, self._killed_for = False, ""
        self._began_s = asyncio.get_running_loop().time()
        self._reading = asyncio.create_task(self._follow(process, ready))
        try:
            _input(process).write(frames.encode([self._site_wire, *self._kept]))
            await asyncio.wait({ready}, timeout=DRIVER_START_MS / 1000)
            if not ready.done():
                message = f"the driver {self._module} does not start"
                raise DriverTimeout("driver.timeout", message)
            ready.result()
        except BaseException:
            await self.kill()
            raise

    async def _follow(
        self, process: asyncio.subprocess.Process, ready: asyncio.Future[None]
    ) -> None:
        """Take frames until the child ends or says nonsense; then end its group and its calls."""
        source, prints = _outputs(process)
        printed = asyncio.create_task(self._keep_stderr(prints))
        why = "it ended"
        try:
            for count in itertools.count(1):
                size = frames.length(await source.readexactly(frames.HEADER.size))
                self._take(frames.decode(await source.readexactly(size)), ready)
                if count % _FRAMES_PER_TURN == 0:
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except (ValueError, asyncio.InvalidStateError) as exc:
            why = f"it sent what is no frame: {exc}"
        finally:
            _kill_group(process)
            # a process that left the group may hold stderr open: that is not waited for
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_GRACE_MS / 1000):
                    await process.wait()
            await asyncio.wait({printed}, timeout=_STDERR_END_S)
            printed.cancel()
            self._process = None
            served = ready.done() and ready.exception() is None
            unasked = served and not (self._calls or self._killed or self._closed)
            code, what = CRASHED, f"crashed: {why}, return code {process.returncode}"
            if self._killed_for:
                code = KILLED_ALONG
                what = f"was killed for {self._killed_for}, which ran in the same process and had to end"
            self._fail_all(code, what, ready)
            if unasked:
                self._restarting = asyncio.create_task(self._restart())

    async def _restart(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() - self._began_s > DRIVER_STEADY_S:
            self._restarts = 0
        if self._restarts == DRIVER_RESTARTS:
            log.error("the driver %s ends again and again: it waits for a call", self._module)
            return
        self._restarts += 1
        log.warning("the driver %s ended unasked and is started again", self._module)
        try:
            await self.start()
        except (DriverError, OSError) as exc:
            log.error("the driver %s does not start again: %s", self._module, exc)

    def _take(self, frame: list[Any], ready: asyncio.Future[None]) -> None:
        match frame:
            case ["ready"]:
                ready.set_result(None)
            case ["failed", str(code), str(message)]:
                ready.set_exception(from_code(code, message))
            case ["keep", kept]:
                self._kept = [kept]
            case ["event", str(name), dict(values)]:
                if self._on_event is not None:
                    self._on_event(name, values)
            case [str(kind), int(number), *rest]:
                if number in self._calls:
                    self._answer(*self._calls[number], kind, rest)
            case _:
                raise ValueError("a frame of an unknown kind")

    def _answer(self, answer: asyncio.Future[Any], call: Call, kind: str, rest: list[Any]) -> None:
        match kind, rest:
            case "log", [str(line), str(stream)]:
                call.log(line, stream)
            case "progress", [float() | None as fraction, str(message)]:
                call.progress(fraction, message)
            case "reading", [str(metric), float(value), str(unit), int(dropped)]:
                call.pass_on(metric, value, unit, dropped)
            case "result", [value]:
                self._restarts = 0
                answer.set_result(value)
            case "error", [str(code), str(message)]:
                answer.set_exception(from_code(code, message))
            case _:
                raise ValueError(f"a malformed frame of the kind {kind[:80]!r}")

    def _fail_all(self, code: str, what: str, ready: asyncio.Future[None]) -> None:
        said = self._stderr.decode(errors="replace").strip()
        message = f"the driver {self._module} {what}" + (f"\n{said}" if said else "")
        for waiting in (ready, *(answer for answer, _ in self._calls.values())):
            if not waiting.done():
                waiting.set_exception(DriverError(code, message))
        # nobody may be left who waits for it
        ready.exception()

    async def _keep_stderr(self, source: asyncio.StreamReader) -> None:
        while data := await source.read(_STDERR_BYTES):
            self._stderr = (self._stderr + data)[-_STDERR_KEPT:]
            await asyncio.sleep(_STDERR_PAUSE_S)


def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _input(process: asyncio.subprocess.Process) -> asyncio.StreamWriter:
    return cast(asyncio.StreamWriter, process.stdin)


def _outputs(
    process: asyncio.subprocess.Process,
) -> tuple[asyncio.StreamReader, asyncio.StreamReader]:
    return cast(asyncio.StreamReader, process.stdout), cast(asyncio.StreamReader, process.stderr)


if __name__ == "__main__":
    from imlmesh_drivers.serving import serve

    serve(sys.argv[1])
