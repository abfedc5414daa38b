"""A driver whose every failure is a knob, for tests, demonstrations and measurements.

The one rule: what it is told to do it really does: `crash` ends the process, `hang` blocks it.
It loads only where a node's policy names it.
"""

import asyncio
import os
import signal
import threading
from typing import Annotated, Any, NotRequired, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import Driver, Site, action
from imlmesh_drivers.call import Call
from imlmesh_drivers.files import append_beneath
from imlmesh_protocol.errors import CODES, DriverError
from imlmesh_protocol.limits import TIMEOUT_S
from imlmesh_protocol.manifest import Undo

#: past the frame limit of a driver child, so that a too large result can be asked for
_RESULT_MAX = 16 * 1024 * 1024

#: the marker that the undo of `act` leaves its line in
UNDONE = "undone"


class Nothing(TypedDict):
    """An empty result."""


class Value(TypedDict):
    """The value that was given."""

    value: Any


class Acted(Value):
    """The value that was given, and as many bytes of filler as were asked for."""

    filler: NotRequired[str]


class Fake(Driver):
    """Does nothing, well: every way to succeed, fail, wait, crash and flood."""

    module = "fake"
    version = "0.1.0"
    runs = "loop"
    platforms = ("linux",)  # as the files that it leaves markers in

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        #: failures so far, by run and action, until the action succeeds
        self._failures: dict[str, int] = {}

    @action(effect="pure", impact=0.0, permission="readonly")
    def noop(self) -> Nothing:
        """Do nothing."""
        return {}

    @action(effect="pure", impact=0.0, permission="readonly")
    def echo(self, value: Any = None) -> Value:
        """Return the given value."""
        return {"value": value}

    @action(
        effect="once",
        impact=0.1,
        permission="local_worker",
        runs="process",
        undo=Undo("act", {"value": "{{result.value}}", "marker": UNDONE}),
    )
    async def act(
        self,
        call: Call,
        value: Any = None,
        delay_ms: Annotated[int, Interval(ge=0, le=TIMEOUT_S * 1000)] = 0,
        fail_times: Annotated[int, Interval(ge=0)] = 0,
        code: str = "driver.failed",
        crash: bool = False,
        hang: bool = False,
        log_lines: Annotated[int, Interval(ge=0, le=1_000_000)] = 0,
        readings: Annotated[int, Interval(ge=0, le=1_000_000)] = 0,
        reading: Any = None,
        result_bytes: Annotated[int, Interval(ge=0, le=_RESULT_MAX)] = 0,
        marker: str | None = None,
    ) -> Acted:
        """Leave a line in `marker`, log, wait, then fail `fail_times` times, crash, hang or return.

        The marker's line is the dispatch id and is written first, so that every beginning counts;
        the undo leaves its own line in the file "undone". `readings` of the metric "level" count
        from 0, or each is `reading`, whatever that is.
        """
        if code not in CODES:
            raise DriverError("driver.params", f"code: {code!r} is not an error code")
        if marker is not None:
            append_beneath(self.site.files, marker, f"{call.dispatch}\n".encode())
        call.progress(0.0)
        for number in range(log_lines):
            call.log(f"line {number}")
        for number in range(readings):
            call.telemetry("level", number if reading is None else reading, "%")
        await asyncio.sleep(delay_ms / 1000)
        if crash:
            os.kill(os.getpid(), signal.SIGKILL)
        if hang:
            threading.Event().wait()
        self._fail(call.dispatch, fail_times, code)
        call.progress(1.0)
        result: Acted = {"value": value}
        if result_bytes:
            result["filler"] = "x" * result_bytes
        return result

    def _fail(self, dispatch: str, fail_times: int, code: str) -> None:
        action_of_run = "/".join(dispatch.split("/")[:2])
        failures = self._failures.pop(action_of_run, 0)
        if failures < fail_times:
            self._failures[action_of_run] = failures + 1
            raise DriverError(code, f"failure {failures + 1} of {fail_times}, as asked for")
