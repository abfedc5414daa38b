"""Runs drivers: on the loop, in a thread, or in a child process, as each driver declares.

The one rule: every `run` of a dispatch that is not known to end at once ends in exactly one
DriverFinished, and that of a killed one comes only when nothing of it is left and what it moved
is safe. Deliberately absent: limits of time and order; the core decides those.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from imlmesh_drivers.base import Driver, Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.child import Child
from imlmesh_drivers.foreign import FOREIGN_ERRORS, coded
from imlmesh_drivers.invoke import declaration_of, params_model, perform, perform_now
from imlmesh_drivers.registry import driver_class
from imlmesh_node.core.commands import KillReason, cut_short, killed
from imlmesh_node.core.events import DriverFinished
from imlmesh_node.sizes import check_result
from imlmesh_protocol.errors import KILLED_ALONG, Fault, MeshError
from imlmesh_protocol.limits import FAULT_CHARS, KILL_GRACE_MS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_runtime.clock import Clock

if TYPE_CHECKING:
    from imlmesh_drivers.apart import Apart

log = logging.getLogger(__name__)

#: for actions that neither log nor tell progress
_SILENT = Call("")


class Streams(Protocol):
    """Where log lines, progress, readings, and what sources see go, on the loop's thread."""

    def log(self, dispatch: str, line: str, stream: str) -> None: ...

    def progress(self, dispatch: str, fraction: float | None, message: str) -> None: ...

    def source(self, name: str, values: Mapping[str, Any]) -> None: ...

    def reading(self, module: str, metric: str, value: float, unit: str, dropped: int) -> None: ...


@dataclass(slots=True)
class _Run:
    """One action under way; `stop` asks it to end."""

    dispatch: Dispatch
    stop: Callable[[], object]
    reason: KillReason | None = None


class Executor:
    """`post` takes what ended; called on the loop's thread, within `run` for what ends at once."""

    def __init__(
        self,
        site: Site,
        streams: Streams,
        post: Callable[[DriverFinished], None],
        clock: Clock,
        apart: "Mapping[str, Apart] | None" = None,
    ) -> None:
        """`apart` are the plug-ins that run in processes of their own alone, and are not imported here; it
        may change."""
        self._site = site
        self._streams = streams
        self._post = post
        self._clock = clock
        self._apart: Mapping[str, Apart] = {} if apart is None else apart
        self._loop = asyncio.get_running_loop()
        self._drivers: dict[str, Driver] = {}
        self._children: dict[str, Child] = {}
        self._instant: dict[tuple[str, str], bool | None] = {}
        self._runs: dict[str, _Run] = {}
        self._guarding: list[asyncio.Task[None]] = []

    @property
    def busy(self) -> int:
        """How many actions are under way."""
        return len(self._runs)

    def stand_guard(self, modules: Iterable[str]) -> None:
        """Let drivers that have a safe state set it, without waiting for a call."""
        for module in modules:
            self._guarding.append(self._loop.create_task(self._set_safe(module)))

    def warm_up(self, modules: Iterable[str]) -> None:
        """Load in a thread what actions on the loop need at their first call.

        On a small machine loading takes a second or more, for which heartbeats would wait.
        """
        modules = tuple(module for module in modules if module not in self._apart)

        def load() -> None:
            for module in modules:
                with contextlib.suppress(MeshError):
                    driver = driver_class(module)
                    for action in driver.actions:
                        if driver.runs_of(action) == "loop":
                            params_model(driver, action)

        threading.Thread(target=load, name="warm-up", daemon=True).start()

    async def _set_safe(self, module: str) -> None:
        """A failure is loud; the first call hears it too."""
        try:
            if self._guards(module):
                await self._child(module).start()
        except FOREIGN_ERRORS as exc:
            log.error("the driver %s cannot set its safe state: %s", module, exc)

    def _guards(self, module: str) -> bool:
        if (apart := self._apart.get(module)) is not None:
            return apart.guards
        driver = driver_class(module)
        return driver.runs == "process" and driver.stands_guard(self._site)

    async def replace(self, module: str) -> None:
        """A new process with the code that is installed now serves `module`, of `apart`, from when nothing
        runs in the old one; raises like `Child.replace`."""
        child = self._children.get(module)
        if child is not None:
            await child.replace()
        if self._guards(module):
            await self._child(module).start()

    def ends_at_once(self, module: str, action: str) -> bool:
        """Whether `run` of it calls it directly; an action that cannot load does not."""
        return self._call_needed(module, action) is not None

    def _call_needed(self, module: str, action: str) -> bool | None:
        """Of an action that ends at once, whether it takes a Call; None of any other."""
        if module in self._apart:
            return None
        try:
            return self._instant[module, action]
        except KeyError:
            pass
        try:
            driver = driver_class(module)
            declaration = declaration_of(driver, action)
        except MeshError:
            return None
        takes_call = declaration.call_parameter is not None
        known = takes_call if driver.ends_at_once(action) else None
        self._instant[module, action] = known
        return known

    def run(self, dispatch: Dispatch) -> None:
        """Start it; what ends at once has ended when this returns."""
        call_needed = self._call_needed(dispatch.module, dispatch.action)
        if call_needed is not None:
            self._run_now(dispatch, self._call(dispatch) if call_needed else _SILENT)
            return
        call = self._call(dispatch)
        try:
            runs = self._runs_of(dispatch)
        except Exception as exc:
            self._end_failed(dispatch, coded(exc), time.perf_counter())
            return
        following = self._loop.create_task(self._follow(dispatch, call, runs))
        stop = call.stop if runs == "thread" else following.cancel
        self._runs[dispatch.id] = _Run(dispatch, stop)

    def _runs_of(self, dispatch: Dispatch) -> str:
        if dispatch.module in self._apart:
            return "process"
        driver = driver_class(dispatch.module)
        return declaration_of(driver, dispatch.action).runs or driver.runs

    def kill(self, dispatch: Dispatch, reason: KillReason) -> None:
        """End it; the DriverFinished follows. One that has ended is left alone."""
        run = self._runs.get(dispatch.id)
        if run is not None and run.reason is None:
            run.reason = reason
            # a task that is cancelled before its first step never says that it was
            self._loop.call_soon(run.stop)

    async def close(self) -> None:
        """Bring everything to its safe state and let go; what is still under way is cut off."""
        for run in list(self._runs.values()):
            run.stop()
        await asyncio.gather(*self._guarding, return_exceptions=True)
        await asyncio.gather(*(child.close() for child in self._children.values()))
        for driver in self._drivers.values():
            _make_safe(driver)
            driver.close()

    def _call(self, dispatch: Dispatch) -> Call:
        """All of it may come from any thread; those of the loop's own take no detour."""
        home = threading.get_ident()

        def here(act: Callable[..., None], *arguments: Any) -> None:
            if threading.get_ident() == home:
                act(*arguments)
            else:
                self._loop.call_soon_threadsafe(act, *arguments)

        return Call(
            dispatch.id,
            lambda line, stream: here(self._streams.log, dispatch.id, line, stream),
            lambda part, message: here(self._streams.progress, dispatch.id, part, message),
            lambda *reading: here(self._streams.reading, dispatch.module, *reading),
        )

    def _run_now(self, dispatch: Dispatch, call: Call) -> None:
        began_s = time.perf_counter()
        try:
            driver = self._drivers.get(dispatch.module) or self._load(dispatch.module)
            result = perform_now(driver, dispatch.action, dispatch.params, call)
            value, packed = check_result(result)
        except MeshError as exc:
            self._end_failed(dispatch, exc, began_s)
            return
        self._end(dispatch, "completed", began_s, result=value, packed=packed)

    def _load(self, module: str) -> Driver:
        try:
            driver = driver_class(module)(self._site)
            driver.emit = self._emit
            if _moves_things_here(driver):
                driver.safe()
        except FOREIGN_ERRORS as exc:
            raise coded(exc) from exc
        self._drivers[module] = driver
        return driver

    def _emit(self, name: str, values: Mapping[str, Any]) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._streams.source, name, dict(values))

    async def _follow(self, dispatch: Dispatch, call: Call, runs: str) -> None:
        began_s = time.perf_counter()
        try:
            value, packed = check_result(await self._perform(dispatch, call, runs))
        except asyncio.CancelledError:
            self._end_killed(dispatch, began_s)
        except Exception as exc:
            run = self._runs[dispatch.id]
            if run.reason is not None:
                self._end_killed(dispatch, began_s)
            else:
                self._end_failed(dispatch, coded(exc), began_s)
        else:
            self._end(dispatch, "completed", began_s, result=value, packed=packed)

    async def _perform(self, dispatch: Dispatch, call: Call, runs: str) -> Any:
        if runs == "process":
            child = self._child(dispatch.module)
            # the core's own limit comes first; this one holds even if the loop stood still
            limit_s = (dispatch.timeout_ms + KILL_GRACE_MS) / 1_000
            return await child.call(dispatch.action, dispatch.params, call, limit_s)
        driver = self._drivers.get(dispatch.module) or self._load(dispatch.module)
        if runs == "loop":
            return await perform(driver, dispatch.action, dispatch.params, call)
        return await self._in_thread(driver, dispatch, call)

    def _child(self, module: str) -> Child:
        child = self._children.get(module)
        if child is None:
            child = self._children[module] = Child(
                module, self._site.to_wire(), self._streams.source
            )
        return child

    async def _in_thread(self, driver: Driver, dispatch: Dispatch, call: Call) -> Any:
        """A thread of its own: slots bound their number, and one that hangs cannot block the end."""
        ended: asyncio.Future[Any] = self._loop.create_future()

        def work() -> None:
            try:
                value = perform_now(driver, dispatch.action, dispatch.params, call)
            except MeshError as exc:
                self._loop.call_soon_threadsafe(ended.set_exception, exc)
            else:
                self._loop.call_soon_threadsafe(ended.set_result, value)

        threading.Thread(target=work, name=f"driver-{dispatch.module}", daemon=True).start()
        return await ended

    def _end_killed(self, dispatch: Dispatch, began_s: float) -> None:
        reason = self._runs[dispatch.id].reason or KillReason.SHUTDOWN
        outcome, fault = killed(dispatch, reason)
        driver = self._drivers.get(dispatch.module)
        if driver is not None and dispatch.effect is Effect.PHYSICAL:
            _make_safe(driver)
        self._end(dispatch, outcome, began_s, error=fault)

    def _end_failed(self, dispatch: Dispatch, error: MeshError, began_s: float) -> None:
        outcome = "timed_out" if error.code == "driver.timeout" else "failed"
        if error.code == KILLED_ALONG:
            outcome = cut_short(dispatch.effect)
        fault = Fault(error.code, error.message[:FAULT_CHARS])
        self._end(dispatch, outcome, began_s, error=fault)

    def _end(self, dispatch: Dispatch, outcome: str, began_s: float, **more: Any) -> None:
        self._runs.pop(dispatch.id, None)
        duration_ms = int((time.perf_counter() - began_s) * 1_000)
        at_ms = self._clock.now_ms()
        self._post(DriverFinished(at_ms, dispatch.id, outcome, duration_ms=duration_ms, **more))


def _moves_things_here(driver: Driver) -> bool:
    """What runs in a process moves things there alone, though some of its actions may wait here."""
    return driver.runs != "process"


def _make_safe(driver: Driver) -> None:
    """Its failure is loud, but the end of a dispatch must be told all the same."""
    try:
        if _moves_things_here(driver):
            driver.safe()
    except FOREIGN_ERRORS:
        log.exception("the safe state of the driver %s could not be set", driver.module)
