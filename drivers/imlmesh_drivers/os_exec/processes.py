"""Processes of the machine: listed, described, and ended by name or number.

The one rule: what is signalled is held by a descriptor first, so that a number which was given away
again is never hit. Nobody's plan ends the mesh itself, the system, or what another account runs.
"""

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
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


def has_ended(process: "Process") -> bool:
    """Whether a process only waits for its parent to look at its end."""
    import psutil

    return bool(process.status() == psutil.STATUS_ZOMBIE)


def each() -> "Iterator[Process]":
    """All processes, by number."""
    import psutil

    yield from sorted(psutil.process_iter(), key=lambda process: process.pid)


def rows(name_filter: str | None, *, include_children: bool) -> list[dict[str, Any]]:
    """Lines about the processes whose name has `name_filter` in it, and about all below them."""
    import psutil

    found = []
    for process in each():
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


@dataclass(frozen=True, slots=True)
class Held:
    """A process that is held by a descriptor, so that its number stays its own."""

    pid: int
    descriptor: int

    def signal(self, number: signal.Signals) -> None:
        """PermissionError when it is another account's."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.descriptor, number)


class Holding(contextlib.ExitStack):
    """Holds processes while they are looked at and signalled."""

    def hold(self, pid: int) -> Held | None:
        """The process of a number; None when there is none."""
        try:
            descriptor = os.pidfd_open(pid)
        except (ProcessLookupError, OverflowError):
            return None
        self.callback(os.close, descriptor)
        return Held(pid, descriptor)


def ended(held: Iterable[Held], limit_s: float) -> list[int]:
    """The numbers of those that ended within so much time."""
    waiting = {process.descriptor: process.pid for process in held}
    found = []
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    end = time.monotonic() + limit_s
    while waiting:
        ready = poll.poll(max(0, (end - time.monotonic()) * 1_000))
        if not ready:
            break
        for descriptor, _ in ready:
            poll.unregister(descriptor)
            found.append(waiting.pop(descriptor))
    return sorted(found)


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


def refusal(process: "Process", guarded: Mapping[int, str]) -> str | None:
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


def check_may_end(process: "Process", guarded: Mapping[int, str]) -> None:
    """`policy.process` with the reason when a plan may not end it."""
    reason = refusal(process, guarded)
    if reason is not None:
        raise DriverDenied("policy.process", f"process {process.pid} stays: {reason}")
