"""The guardian of one command: a process of its own, `python -I -S guardian.py STDIN CWD`.

The one rule: it ends only when nothing that its command started is left. It is the subreaper of all
that, so a daemon that leaves its session is still beneath it. Stdlib alone, since it starts with
every command. On descriptor 0, a socket, it reads its order as a line of JSON {argv, env, processes,
memory_bytes, grace_s, nice}, then "t" to end the command, "k" to kill it; the socket's end means "t".
It writes lines: {"pid"}, {"errno"} (0: it runs), {"code", "broken"}. 1 and 2 are the command's own.
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Iterable
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_LOOK_S = 0.02  # between two looks at everything, at first
_LOOK_MAX_S = 0.5  # later: looking costs a Pi some milliseconds
_BURST = 32  # processes started on the whole machine: reason enough to look at once
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def _pids() -> list[int]:
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdecimal()]


def below(root: int) -> dict[int, int]:
    """Process id to process group of all that descend from `root`, without what has ended."""
    parents: dict[int, int] = {}
    groups: dict[int, int] = {}
    for pid in _pids():
        with contextlib.suppress(OSError):
            # the name of a program, in brackets, may hold anything
            stat = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
            parents[pid] = int(stat[1])
            if stat[0] not in (b"Z", b"X"):
                groups[pid] = int(stat[2])
    children: dict[int, list[int]] = {}
    for pid, parent_pid in parents.items():
        children.setdefault(parent_pid, []).append(pid)
    found: dict[int, int] = {}
    waiting = children.get(root, [])
    while waiting:
        pid = waiting.pop()
        if pid in groups:
            found[pid] = groups[pid]
        waiting.extend(children.get(pid, []))
    return found


def own_bytes(pids: Iterable[int]) -> int:
    """Memory that processes hold without what they map from files or share on purpose."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError):
            resident, shared = _read(f"/proc/{pid}/statm").split()[1:3]
            total += (int(resident) - int(shared)) * _PAGE_BYTES
    return total


def threads_of(account: int) -> int:
    """Threads of all processes of an account."""
    total = 0
    for pid in _pids():
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/task") as threads:
            total += sum(1 for thread in threads if thread.stat().st_uid == account)
    return total


def last_pid() -> int:
    """The process id that was given last on this machine; -1 when it cannot be seen."""
    try:
        return int(_read("/proc/loadavg").split()[4])
    except OSError:
        return -1


class Guardian:
    """Starts one command and sees to its end."""

    def __init__(self, order: dict[str, Any], agent: socket.socket, wake: int) -> None:
        """`wake` becomes readable when a child ends."""
        self._order = order
        self._agent = agent
        self._wake = wake
        self._main = 0
        self._code: int | None = None
        self._broken: str | None = None
        #: when it is killed, since it was told to end; None: nobody has told it
        self._end_at: float | None = None

    def run(self, stdin: int, cwd: int) -> None:
        self._main = self._start(stdin, cwd)
        if self._main:
            self._follow()
            self._tell(code=self._code, broken=self._broken)
            self._kill()

    def _tell(self, **fields: Any) -> None:
        # when nobody listens any more, the end of the command is all that is left to do
        with contextlib.suppress(OSError):
            self._agent.sendall(json.dumps(fields).encode() + b"\n")

    def _start(self, stdin: int, cwd: int) -> int:
        """The command's process id; 0 when it cannot be started."""
        mine, its = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            mine.close()
            try:
                os.setsid()
                its.send(b".")
                # the agent knows its group before it can do anything
                if its.recv(1):
                    self._become(stdin, cwd)
            except OSError as exc:
                its.send(str(exc.errno or 0).encode())
            finally:
                os._exit(127)
        its.close()
        # the pipes are the command's alone, or their end would never come
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2, stdin, cwd):
            os.dup2(nothing, descriptor)
        mine.recv(1)
        self._tell(pid=pid)
        mine.send(b".")
        # its end closes when the command takes its place
        failed = mine.recv(16)
        self._tell(errno=int(failed or 0))
        if failed:
            os.waitpid(pid, 0)
            return 0
        return pid

    def _become(self, stdin: int, cwd: int) -> None:
        """In the child: become the command."""
        os.nice(self._order["nice"])
        memory_bytes = self._order["memory_bytes"]
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if os.getuid():
            # a bomb may be faster than our looks; the kernel counts all of the account's threads
            most = threads_of(os.getuid()) + 2 * self._order["processes"]
            hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
            if hard in (resource.RLIM_INFINITY, -1) or most < hard:
                resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
        os.dup2(stdin, 0)
        os.fchdir(cwd)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            # Python ignores them, and what is ignored stays so for the command
            signal.signal(number, signal.SIG_DFL)
        argv = self._order["argv"]
        os.execve(argv[0], argv, self._order["env"])  # noqa: S606 - no shell is what we want

    def _follow(self) -> None:
        """Until the command has ended, must end, or broke a limit."""
        seen, look_s, look_at = -1, _LOOK_S, 0.0
        while self._code is None and self._broken is None:
            now = time.monotonic()
            if self._end_at is not None and now >= self._end_at:
                return
            newest = last_pid()
            if now >= look_at or newest < 0 or not 0 <= newest - seen < _BURST:
                seen, look_at = newest, now + look_s
                look_s = min(2 * look_s, _LOOK_MAX_S)
                self._look()
            self._wait(_LOOK_S)

    def _look(self) -> None:
        found = below(os.getpid())
        if len(found) > self._order["processes"]:
            self._broken = "processes"
        elif own_bytes(found) > self._order["memory_bytes"]:
            self._broken = "memory"

    def _wait(self, seconds: float) -> None:
        """Take what the agent says and what has ended, or let so much time go by."""
        sources = [self._wake] if self._end_at is not None else [self._wake, self._agent.fileno()]
        ready = select.select(sources, [], [], seconds)[0]
        if self._wake in ready:
            os.read(self._wake, 4096)
        if self._agent.fileno() in ready:
            order = self._agent.recv(1)
            grace_s = 0 if order == b"k" else self._order["grace_s"]
            self._end_at = time.monotonic() + grace_s
            if grace_s:
                self._signal(signal.SIGTERM)
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._main:
                    self._code = os.waitstatus_to_exitcode(ended[1])

    def _signal(self, number: signal.Signals) -> bool:
        """Signal all that is beneath us; False when there is nothing."""
        found = below(os.getpid())
        # a group is signalled as one: nothing in it can start something meanwhile
        for group in set(found.values()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, number)
        return bool(found)

    def _kill(self) -> None:
        pause_s = _LOOK_S
        while self._signal(signal.SIGKILL):
            self._wait(pause_s)
            pause_s = min(2 * pause_s, _LOOK_MAX_S)


def _read_order(agent: socket.socket) -> dict[str, Any]:
    received = b""
    while not received.endswith(b"\n"):
        chunk = agent.recv(64 * 1024)
        if not chunk:
            sys.exit(1)
        received += chunk
    order: dict[str, Any] = json.loads(received)
    return order


def main(stdin: int, cwd: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for descriptor in (stdin, cwd):
        os.set_inheritable(descriptor, False)
    agent = socket.socket(fileno=0)
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    # a service manager signals every process; we end when our command has ended
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    Guardian(_read_order(agent), agent, wake).run(stdin, cwd)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
