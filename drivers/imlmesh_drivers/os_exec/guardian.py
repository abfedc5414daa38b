"""The guardians of commands, and the process that they are forked from: `main`.

The one rule: a guardian ends only when nothing that its command started is left. It is the subreaper
of all that, so a daemon that leaves its session is still beneath it; what is left of a guardian that
was killed falls to the zygote, which kills it. Python starts once, not for every command: the agent
sends the zygote five descriptors (see `Zygote`), and a guardian is there a millisecond later.
Stdlib alone, and little of it, since all of it is copied with every fork.
"""

import contextlib
import marshal
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Collection, Iterable

_PR_SET_CHILD_SUBREAPER = 36
_WAIT_S = 0.05  # between two looks at how many processes were started
_LOOK_S = 0.02  # until the first look at everything of the command, which doubles from there
_LOOK_MAX_S = 1.0  # looking costs a Pi some milliseconds
_BURST = 32  # processes started on the whole machine: reason enough to look at once


class Order:
    """What to run and how long to bear with it."""

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        processes: int,
        memory_bytes: int,
        grace_s: float,
        nice: int,
    ) -> None:
        """`grace_s` lies between SIGTERM and SIGKILL; `nice` is added to the agent's own."""
        self.argv = argv
        self.env = env
        self.processes = processes
        self.memory_bytes = memory_bytes
        self.grace_s = grace_s
        self.nice = nice

    def pack(self) -> bytes:
        """Its length and its fields; both ends are the same Python."""
        fields = [self.argv, self.env, self.processes, self.memory_bytes, self.grace_s, self.nice]
        packed = marshal.dumps(fields)
        return len(packed).to_bytes(4, "big") + packed

    @classmethod
    def read(cls, source: int) -> "Order":
        """The twin of `pack`; the process ends when the agent is gone."""
        size = int.from_bytes(_exactly(source, 4), "big")
        return cls(*marshal.loads(_exactly(source, size)))  # noqa: S302 - from our own parent


def _exactly(source: int, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = os.read(source, size - len(received))
        if not chunk:
            os._exit(1)
        received += chunk
    return received


def _read(path: str) -> bytes:
    """The beginning of a file of the kernel; empty when its process has ended."""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 - slow
        return file.read(4096)
    return b""


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]  # noqa: PTH208 - slow


def below(root: int, spared: Collection[int] = ()) -> dict[int, int]:
    """Process id to process group of all that descend from `root`, without what has ended.

    Those that descend from `spared` are left out, and they themselves.
    """
    children: dict[int, list[int]] = {}
    groups: dict[int, int] = {}
    for pid in _pids():
        # the name of a program, in brackets, may hold anything
        stat = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        if stat:
            children.setdefault(int(stat[1]), []).append(pid)
            if stat[0] not in (b"Z", b"X"):
                groups[pid] = int(stat[2])
    found: dict[int, int] = {}
    waiting = [child for child in children.get(root, []) if child not in spared]
    while waiting:
        pid = waiting.pop()
        if pid in groups:
            found[pid] = groups[pid]
        waiting.extend(child for child in children.get(pid, []) if child not in spared)
    return found


def signal_all(found: dict[int, int], number: int) -> None:
    """Signal processes by their groups: nothing in one can start something meanwhile."""
    for group in set(found.values()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def _fields(path: str) -> dict[bytes, bytes]:
    """The lines "NAME: value" of a file of the kernel."""
    lines = _read(path).split(b"\n")
    return dict(line.split(b":", 1) for line in lines if b":" in line)


def own_bytes(pids: Iterable[int], *, once: bool = False) -> int:
    """Memory that processes hold without what they map from files.

    What they share counts for each of them, or `once`: then the kernel looks at every page.
    """
    total_kib = 0
    for pid in pids:
        sizes = _fields(f"/proc/{pid}/status")
        shared = sizes.get(b"RssShmem", b"0 kB")
        if once:
            # one that lets nobody look counts whole
            shared = _fields(f"/proc/{pid}/smaps_rollup").get(b"Pss_Shmem", shared)
        total_kib += sum(int(size.split()[0]) for size in (sizes.get(b"RssAnon", b"0 kB"), shared))
    return total_kib * 1024


def threads_of(account: int) -> int:
    """Threads of all processes of an account."""
    total = 0
    for pid in _pids():
        fields = _fields(f"/proc/{pid}/status")
        if fields and int(fields[b"Uid"].split()[0]) == account:
            total += int(fields.get(b"Threads", b"0"))
    return total


def last_pid() -> int:
    """The process id that was given last on this machine; -1 when it cannot be seen."""
    fields = _read("/proc/loadavg").split()
    return int(fields[4]) if fields else -1


def _bound(kind: int, most: int) -> None:
    """Lower a limit for good; where a hardened service may not, our looks bound it all the same."""
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    with contextlib.suppress(PermissionError):
        resource.setrlimit(kind, (most, most))


class Guardian:
    """Starts one command and sees to its end, in a process of its own.

    Descriptor 0 is a socket to the agent: in comes an order (see `Order`), then "t" to end the
    command or "k" to kill it, and its end means "t"; out go the lines "pid N", "errno N" (0: it
    runs), "code N" or "broken WHAT", and "gone" when nothing is left.
    """

    def __init__(self, order: Order, nice: int) -> None:
        """`nice` is the agent's own."""
        self._order = order
        self._nice = min(nice + order.nice, 19)
        self._main = 0
        self._code: int | None = None
        self._broken = ""
        #: when it is killed, since it was told to end; None: nobody has told it
        self._end_at: float | None = None

    def run(self, stdin: int, cwd: int) -> None:
        self._main = self._start(stdin, cwd)
        if self._main:
            self._follow(os.pidfd_open(self._main))
            self._tell(f"broken {self._broken}" if self._broken else f"code {self._code}")
            self._kill()
        self._tell("gone")

    def _tell(self, line: str) -> None:
        try:
            os.write(0, line.encode() + b"\n")
        except OSError:
            # nobody listens any more: the end of the command is all that is left to do
            self._end_at = time.monotonic()

    def _start(self, stdin: int, cwd: int) -> int:
        """The command's process id; 0 when it cannot be started."""
        going, go = os.pipe()
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(go)
            try:
                os.setsid()
                os.write(tell, b".")
                # the agent knows its group before it can do anything
                if os.read(going, 1):
                    self._become(stdin, cwd)
            except OSError as exc:
                os.write(tell, str(exc.errno or 0).encode())
            finally:
                os._exit(127)
        os.close(tell)
        # the pipes are the command's alone, or their end would never come
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (1, 2, stdin, cwd):
            os.dup2(nothing, descriptor)
        os.read(told, 1)
        self._tell(f"pid {pid}")
        os.write(go, b".")
        # its end closes when the command takes the place of the child
        failed = os.read(told, 16)
        self._tell(f"errno {int(failed or 0)}")
        if failed:
            os.waitpid(pid, 0)
            return 0
        return pid

    def _become(self, stdin: int, cwd: int) -> None:
        """In the child: become the command."""
        order = self._order
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, self._nice)
        _bound(resource.RLIMIT_CORE, 0)
        _bound(resource.RLIMIT_DATA, order.memory_bytes)
        if os.getuid():
            # a bomb may be faster than our looks; the kernel counts all of the account's threads
            _bound(resource.RLIMIT_NPROC, threads_of(os.getuid()) + 2 * order.processes)
        os.dup2(stdin, 0)
        os.fchdir(cwd)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            # Python ignores them, and what is ignored stays so for the command
            signal.signal(number, signal.SIG_DFL)
        os.execve(order.argv[0], order.argv, order.env)  # noqa: S606 - no shell is what we want

    def _follow(self, main: int) -> None:
        """Until the command has ended, must end, or broke a limit."""
        seen, look_s, look_at = last_pid(), _LOOK_S, time.monotonic() + _LOOK_S
        while self._code is None and not self._broken:
            now = time.monotonic()
            if self._end_at is not None and now >= self._end_at:
                return
            newest = last_pid()
            if now >= look_at or not 0 <= newest - seen < _BURST:
                seen, look_at = newest, now + look_s
                look_s = min(2 * look_s, _LOOK_MAX_S)
                self._look()
            self._wait(main, min(look_s, _WAIT_S))

    def _look(self) -> None:
        found = below(os.getpid())
        if len(found) > self._order.processes:
            self._broken = "processes"
        elif all(own_bytes(found, once=once) > self._order.memory_bytes for once in (False, True)):
            self._broken = "memory"

    def _wait(self, main: int, wait_s: float) -> None:
        """Take what the agent says, or the command's end; nothing for so long at most."""
        sources = [main] if self._end_at is not None else [main, 0]
        ready = select.select(sources, [], [], wait_s)[0]
        if 0 in ready:
            word = b""
            with contextlib.suppress(OSError):
                word = os.read(0, 1)
            grace_s = 0 if word == b"k" else self._order.grace_s
            self._end_at = time.monotonic() + grace_s
            if grace_s:
                signal_all(below(os.getpid()), signal.SIGTERM)
        self._is_left()

    def _is_left(self) -> bool:
        """Whether we still have children: what loses its parent becomes one."""
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._main:
                    self._code = os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            return False
        return True

    def _kill(self) -> None:
        pause_s = _LOOK_S / 8
        while self._is_left():
            signal_all(below(os.getpid()), signal.SIGKILL)
            if self._is_left():
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LOOK_MAX_S)


def _be_subreaper() -> None:
    import ctypes  # the agent, which needs the rest of this file, does not

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _go_first() -> None:
    """Get a core whenever we want one, or a bomb would leave us none; what we start gets none so.

    Only root may, and only root's processes are not counted by the kernel.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))


class Zygote:
    """Forks a guardian for every message of the agent, until the agent has ended.

    A message is one byte with the descriptors of the guardian's socket, and of stdin, stdout,
    stderr and the working folder of its command.
    """

    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._guardians: set[int] = set()
        self._wake, self._woken = os.pipe()
        for descriptor in (self._wake, self._woken):
            os.set_blocking(descriptor, False)

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        said = b"."
        while said or self._guardians:
            sources = [self._wake, self._agent.fileno()] if said else [self._wake]
            ready = select.select(sources, [], [])[0]
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if self._agent.fileno() in ready:
                said, descriptors, _, _ = socket.recv_fds(self._agent, 1, 5)
                if said:
                    self._fork(descriptors)

    def _fork(self, descriptors: list[int]) -> None:
        pid = os.fork()
        if pid == 0:
            try:
                self._become_guardian(*descriptors)
            finally:
                os._exit(1)
        self._guardians.add(pid)
        for descriptor in descriptors:
            os.close(descriptor)

    def _become_guardian(self, line: int, stdin: int, stdout: int, stderr: int, cwd: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _be_subreaper()
        nice = os.nice(0)
        _go_first()
        for descriptor in (stdin, cwd):
            os.set_inheritable(descriptor, False)
        for number, descriptor in enumerate((line, stdout, stderr)):
            os.dup2(descriptor, number, inheritable=number > 0)
            os.close(descriptor)
        for descriptor in (self._agent.fileno(), self._wake, self._woken):
            os.close(descriptor)
        Guardian(Order.read(0), nice).run(stdin, cwd)
        os._exit(0)

    def _reap(self) -> None:
        was_killed = False
        while (ended := _wait_any())[0]:
            was_killed |= ended[0] in self._guardians and ended[1] != 0
            self._guardians.discard(ended[0])
        while was_killed:
            strays = below(os.getpid(), self._guardians)
            signal_all(strays, signal.SIGKILL)
            was_killed = bool(strays)
            _wait_any()


def _wait_any() -> tuple[int, int]:
    """(process id, status) of a child that has ended; the id is 0 when there is none."""
    try:
        return os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return 0, 0


def main() -> None:
    """The zygote: descriptor 0 is its socket to the agent."""
    _be_subreaper()
    # a service manager signals every process; we end when the agent and all commands have ended
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    # a number of its own, since 0 becomes a guardian's socket
    agent = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    Zygote(agent).run()
