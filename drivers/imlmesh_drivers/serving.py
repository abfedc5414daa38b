"""The process of a driver child: one driver, calls in over a pipe, answers out over another.

The one rule: the pipe belongs to the frames; what a driver prints goes to stderr. The main thread
only reads, so the end of the agent is seen whatever the driver does: then pins go to their safe state
and the process ends. Signals to end are ignored for that reason: the agent's end is ours.
"""

import asyncio
import os
import resource
import signal
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

from imlmesh_drivers import frames
from imlmesh_drivers.base import Driver, Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.foreign import FOREIGN_ERRORS, coded
from imlmesh_drivers.invoke import declaration_of, perform, perform_now
from imlmesh_drivers.registry import driver_class
from imlmesh_protocol.errors import DriverError, MeshError
from imlmesh_protocol.limits import DRIVER_MEMORY_BYTES, KILL_GRACE_MS, NODE_SLOTS


class Outlet:
    """The way out: whole frames only, from any thread."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, *frame: Any) -> None:
        """Send one frame; raises like `frames.encode`, before anything is sent."""
        encoded = frames.encode(list(frame))
        with self._lock:
            self._pipe.write(encoded)
            self._pipe.flush()

    def event(self, name: str, values: Mapping[str, Any]) -> None:
        """Send what a source of the driver saw."""
        self.send("event", name, dict(values))

    def keep(self, value: Any) -> None:
        """Send what this child's successor shall know."""
        self.send("keep", value)

    def call(self, number: int, dispatch: str) -> Call:
        """A Call whose lines, progress and readings go out as frames."""
        return Call(
            dispatch,
            on_log=lambda line, stream: self.send("log", number, line, stream),
            on_progress=lambda fraction, message: self.send("progress", number, fraction, message),
            on_reading=lambda *reading: self.send("reading", number, *reading),
        )

    def result(self, number: int, value: Any) -> None:
        """Send a result, or the error that it cannot be sent."""
        try:
            self.send("result", number, value)
        except DriverError as exc:
            self.error(number, exc)
        except (TypeError, ValueError, OverflowError) as exc:
            self.error(number, DriverError("driver.failed", f"the result cannot be sent: {exc}"))

    def error(self, number: int, error: MeshError) -> None:
        self.send("error", number, error.code, error.message)


class Service:
    """Runs the calls of one driver: `async def` on a loop of its own, `def` in threads."""

    def __init__(self, driver: Driver, outlet: Outlet) -> None:
        self._driver = driver
        self._outlet = outlet
        self._loop = asyncio.new_event_loop()
        self._threads = ThreadPoolExecutor(NODE_SLOTS)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def take(self, number: int, action: str, params: dict[str, Any], dispatch: str) -> None:
        """Begin a call; its answer goes out when it ends."""
        call = self._outlet.call(number, dispatch)
        try:
            declaration = declaration_of(type(self._driver), action)
        except DriverError as exc:
            self._outlet.error(number, exc)
            return
        if declaration.waits:
            answer = self._wait_for(number, action, params, call)
            asyncio.run_coroutine_threadsafe(answer, self._loop)
        else:
            self._threads.submit(self._run, number, action, params, call)

    async def _wait_for(self, number: int, action: str, params: dict[str, Any], call: Call) -> None:
        try:
            value = await perform(self._driver, action, params, call)
        except MeshError as exc:
            self._outlet.error(number, exc)
        else:
            self._outlet.result(number, value)

    def _run(self, number: int, action: str, params: dict[str, Any], call: Call) -> None:
        try:
            value = perform_now(self._driver, action, params, call)
        except MeshError as exc:
            self._outlet.error(number, exc)
        else:
            self._outlet.result(number, value)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Our ends of both pipes; descriptors 0 and 1 become /dev/null and stderr."""
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return source, sink


def bound_memory() -> None:
    """A library or an archive that asks for everything gets an error, and the node lives on."""
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if most == resource.RLIM_INFINITY or most > DRIVER_MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (DRIVER_MEMORY_BYTES, most))


def _end(driver: Driver) -> None:
    """Safe state, then the end, even if the driver hangs in either."""
    last_resort = threading.Timer(KILL_GRACE_MS / 1000, os._exit, (1,))
    last_resort.daemon = True
    last_resort.start()
    try:
        driver.safe()
        driver.close()
    finally:
        # without the exit hooks of libraries: gpiozero's would let the pins float
        os._exit(0)


def serve(module: str) -> None:
    """Serve one driver until the pipe from the agent ends; never returns."""
    source, sink = _take_pipes()
    for number in (signal.SIGTERM, signal.SIGINT):
        # a handler, not SIG_IGN, which programs that a driver starts would inherit
        signal.signal(number, lambda *_: None)
    bound_memory()
    outlet = Outlet(sink)
    first = frames.read(source)
    if first is None:
        os._exit(0)
    try:
        site = Site.from_wire(first[0])
        # libraries leave files in the current folder (lgpio does)
        os.chdir(site.files)
        driver = driver_class(module)(site)
        driver.emit, driver.keep = outlet.event, outlet.keep
        driver.safe()
        if len(first) > 1:
            driver.restore(first[1])
    except FOREIGN_ERRORS as exc:
        error = coded(exc)
        outlet.send("failed", error.code, error.message)
        os._exit(1)
    outlet.send("ready")
    service = Service(driver, outlet)
    try:
        while (frame := frames.read(source)) is not None:
            service.take(*frame)
    finally:
        _end(driver)
