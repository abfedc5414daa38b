"""What a plug-in declares, read in a process of its own: `python -m imlmesh_drivers.apart MODULE`.

The one rule: whatever a plug-in does while it is imported, be it that it hangs, ends its process or breaks
it, costs that process alone; who asks gets an error. What was read well once may be imported here.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from imlmesh_drivers import frames
from imlmesh_drivers.base import Driver
from imlmesh_drivers.foreign import FOREIGN_ERRORS, coded, from_code
from imlmesh_drivers.registry import driver_class, module_of
from imlmesh_drivers.serving import bound_memory
from imlmesh_protocol.errors import DriverError, DriverTimeout, ProtocolError
from imlmesh_protocol.limits import DRIVER_LOAD_MS, KILL_GRACE_MS
from imlmesh_protocol.manifest import Manifest, Module, manifest_from_wire

_NO_GUARD = Driver.stands_guard.__func__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Apart:
    """A plug-in that loads: what it declares, whether all of it runs in processes of its own, so that
    nobody else has to import it, and whether it may have a safe state to set before any call."""

    module: Module
    contained: bool
    guards: bool


def read_apart(module: str) -> Apart:
    """What the plug-in `module` is now; waits for it.

    Raises `module.unknown`, `driver.missing` when it cannot be imported, `driver.platform`, `driver.timeout`
    when that takes longer than DRIVER_LOAD_MS.
    """
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "imlmesh_drivers.apart", module],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=DRIVER_LOAD_MS / 1000)
    except subprocess.TimeoutExpired:
        text = f"the driver of {module!r} did not load in {DRIVER_LOAD_MS} ms"
        raise DriverTimeout("driver.timeout", text) from None
    finally:
        _end(process)
    try:
        match frames.decode(said):
            case ["module", wire, bool(contained), bool(guards)]:
                return Apart(manifest_from_wire(wire).modules[module], contained, guards)
            case ["failed", str(code), str(message)]:
                raise from_code(code, message)
    except (ValueError, KeyError, ProtocolError):
        pass
    text = f"the driver of {module!r} does not load: its process ended with {process.returncode}"
    raise DriverError("driver.missing", text)


#: the same, read once a process: nodes of one process ask for the same plug-ins
known_apart = functools.cache(read_apart)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """With everything that it started in its group; what left the group may hold the pipe open."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _seen(driver: type[Driver]) -> tuple[dict[str, Any], bool, bool]:
    """The manifest of one module, `contained` and `guards`."""
    contained = all(driver.runs_of(name) == "process" for name in driver.actions)
    guards = getattr(driver.stands_guard, "__func__", None) is not _NO_GUARD
    return Manifest({driver.module: module_of(driver)}).to_wire(), contained, guards


def _tell(module: str) -> None:
    """Never returns."""
    # who asked may be gone before it ends us
    signal.setitimer(signal.ITIMER_REAL, (DRIVER_LOAD_MS + KILL_GRACE_MS) / 1000)
    bound_memory()
    sink = os.dup(1)
    os.dup2(2, 1)
    try:
        frame = ["module", *_seen(driver_class(module))]
    except FOREIGN_ERRORS as exc:
        error = coded(exc)
        frame = ["failed", error.code, error.message]
    with os.fdopen(sink, "wb") as file:
        file.write(frames.encode(frame)[frames.HEADER.size :])
    # without the threads and exit hooks of what it imported
    os._exit(0)


if __name__ == "__main__":
    _tell(sys.argv[1])
