"""Processes of the machine: listed, described, and ended one by one.

The one rule: what is signalled is held by a descriptor first, so that a number which was given away
again is never hit. Nobody's plan ends the mesh itself, the system, or what another account runs.
"""

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from imlmesh_protocol.errors import DriverDenied, DriverNotFound
from imlmesh_protocol.limits import COMMAND_LINE_CHARS

if TYPE_CHECKING:
    from psutil import Process

#: how our own processes are started: `python -m imlmesh_node ...`, `.../bin/imlmesh up`
OURS = re.compile(r"(?:.*/)?imlmesh|imlmesh_[a-z]+(?:\.[a-z_.]+)?")
_OURS_WORDS = 6  # of a command line: its options come later
_MIB = 1024 * 1024


def listed(process: "Process") -> dict[str, Any]:
    """One line about a process; `cpu_percent` is that of its whole life, as `ps` shows it."""
    with process.oneshot():
        return {
            "pid": process.pid,
            "ppid": process.ppid(),
            "name": process.name(),
            "status": process.status(),
            "cpu_percent": _cpu_percent(process),
            "memory_mb": round(process.memory_info().rss / _MIB, 1),
        }


def described(process: "Process") -> dict[str, Any]:
    """All about a process; what its account does not let us see is None."""
    with process.oneshot():
        words = _if_allowed(process.cmdline)
        command_line = " ".join(words) if words else None
        return {
            **listed(process),
            "cmdline": command_line and command_line[:COMMAND_LINE_CHARS],
            "cwd": _if_allowed(process.cwd),
            "created": datetime.fromtimestamp(process.create_time(), UTC).isoformat(
                timespec="milliseconds"
            ),
        }


def _cpu_percent(process: "Process") -> float:
    used = process.cpu_times()
    age_s = max(time.time() - process.create_time(), 0.01)
    percent: float = round(100 * (used.user + used.system) / age_s, 1)
    return percent


def _if_allowed(read: Callable[[], Any]) -> Any:
    import psutil

    try:
        return read()
    except psutil.AccessDenied:
        return None


def find(pid: int) -> "Process":
    """A process by its number; `driver.not_found`."""
    import psutil

    try:
        return psutil.Process(pid)
    except (psutil.NoSuchProcess, OverflowError) as exc:
        raise DriverNotFound("driver.not_found", f"pid: there is no process {pid}") from exc


def rows(name_filter: str | None, *, include_children: bool) -> list[dict[str, Any]]:
    """Lines, by number, about processes whose name has `name_filter` in it, and all below them."""
    import psutil

    found = []
    for process in sorted(psutil.process_iter(), key=lambda process: process.pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(listed(process))
    if name_filter is None:
        return found
    wanted = {row["pid"] for row in found if name_filter.lower() in row["name"].lower()}
    more = include_children
    while more:
        below = {row["pid"] for row in found if row["ppid"] in wanted} - wanted
        wanted |= below
        more = bool(below)
    return [row for row in found if row["pid"] in wanted]


@contextlib.contextmanager
def held(pid: int) -> Iterator[int]:
    """A descriptor of a process, whose number stays its own that long; `driver.not_found`."""
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError) as exc:
        raise DriverNotFound("driver.not_found", f"pid: there is no process {pid}") from exc
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def end(descriptor: int, number: signal.Signals, limit_s: float) -> bool:
    """Signal a held process; whether it ends within so much time."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(descriptor, number)
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(limit_s * 1_000))


def protected(opened: Collection[int]) -> Mapping[int, str]:
    """Process id to reason of what no plan may end; `opened` are the trees that plans opened.

    That is the mesh on this machine, whatever started it, and what the node itself has under way.
    """
    import psutil

    node = psutil.Process()
    above = node.parents()
    found = {process.pid: "the node runs beneath it" for process in above}
    top = next((process for process in reversed(above) if is_ours(process)), node)
    free = {pid for root in opened for pid in _tree(root)}
    for pid in _tree(top.pid):
        if pid not in free:
            found[pid] = "it belongs to the mesh"
    return found | {node.pid: "it is the node itself", 1: "it is the first process of the system"}


def _tree(root: int) -> set[int]:
    import psutil

    try:
        top = psutil.Process(root)
        return {root, *(process.pid for process in top.children(recursive=True))}
    except psutil.NoSuchProcess:
        return set()


def is_ours(process: "Process") -> bool:
    """Whether a process is one of imlmesh, by how it was started."""
    import psutil

    try:
        words = process.cmdline()[:_OURS_WORDS]
    except psutil.Error:
        return False
    return any(OURS.fullmatch(word) for word in words)


def _refusal(process: "Process", guarded: Mapping[int, str]) -> str | None:
    """Why a plan may not end a process, or None."""
    import psutil

    if process.pid in guarded:
        return guarded[process.pid]
    with contextlib.suppress(psutil.Error):
        if is_ours(process):
            return "it belongs to the mesh"
        if process.uids().real != os.getuid():
            return f"it belongs to the account {process.username()}"
        if not process.cmdline() and process.ppid() in (0, 2):
            return "it belongs to the kernel"
    return None


def check_may_end(pid: int, guarded: Mapping[int, str]) -> None:
    """`policy.process` with the reason when a plan may not end it, `driver.not_found`."""
    import psutil

    process = find(pid)
    try:
        is_over = process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        is_over = True
    if is_over:
        raise DriverNotFound("driver.not_found", f"pid: process {pid} has ended")
    reason = _refusal(process, guarded)
    if reason is not None:
        raise DriverDenied("policy.process", f"pid: process {pid} stays: {reason}")
