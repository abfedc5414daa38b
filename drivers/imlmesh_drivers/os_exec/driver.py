"""The actions of `os_exec`: params in, a result out; how it is done stands beside this file.

The one rule: variables that plans set reach only what plans start, never the node itself.
Deliberately absent: shell syntax.
"""

import asyncio
import contextlib
import itertools
import signal
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from annotated_types import Ge, Interval

from imlmesh_drivers.base import Argv, Driver, Guard, Program, Site, action, check_word
from imlmesh_drivers.call import Call
from imlmesh_drivers.files import absolute, blamed_on, folder, readable_roots, split_root
from imlmesh_drivers.os_exec import machine, processes
from imlmesh_drivers.os_exec.applications import Applications
from imlmesh_drivers.os_exec.command import Stream, end, follow, spawn
from imlmesh_drivers.os_exec.guarded import APPLICATION, COMMAND, Guardians, Launch
from imlmesh_protocol.errors import DriverDenied, DriverError, DriverNotFound, DriverTimeout
from imlmesh_protocol.limits import ENV_VARIABLES, KILL_GRACE_MS, OUTPUT_BYTES, PROCESSES_LISTED

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_WAIT_S = KILL_GRACE_MS / 1_000

WorkingDirectory = Annotated[str | None, Guard("read")]


class Ended(TypedDict):
    """How a command ended; a return code other than 0 is a result, not an error."""

    command: list[str]
    return_code: int
    stdout: str
    stderr: str
    success: bool
    #: present when a stream was longer than what is kept
    truncated: NotRequired[bool]


class Processes(TypedDict):
    """Lines of pid, ppid, name, status, cpu_percent (of its life), memory_mb (resident)."""

    processes: list[dict[str, Any]]
    count: int
    #: present when there were more
    truncated: NotRequired[bool]


class Signalled(TypedDict):
    pid: int
    signal: str
    #: whether it has ended
    success: bool


class ProcessInfo(TypedDict):
    """A process; None is what the node's account may not see."""

    pid: int
    name: str
    status: str
    cpu_percent: float
    memory_mb: float
    cmdline: str | None
    cwd: str | None
    created: str
    ppid: int


class Opened(TypedDict):
    application: str
    pid: int


class Closed(TypedDict):
    application: str
    closed_pids: list[int]


class VariableSet(TypedDict):
    name: str
    scope: str


class Variable(TypedDict):
    name: str
    value: str | None
    exists: bool


class OsExec(Driver):
    """Run allowed programs, look at processes and end them, describe the machine."""

    module = "os_exec"
    version = "0.2.0"
    runs = "loop"
    platforms = ("linux",)  # guardians: prctl and /proc

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._variables: dict[str, str] = {}
        self._guardians = Guardians()
        self._applications = Applications(self._guardians)

    def close(self) -> None:
        """Applications that plans opened end with the node."""
        self._applications.close()
        self._guardians.close()

    @action(effect="once", impact=0.6, permission="local_worker", vouch=True)
    async def run_command(
        self,
        call: Call,
        command: Argv,
        working_directory: WorkingDirectory = None,
        env: dict[str, str] | None = None,
        timeout: Annotated[int, Interval(ge=1, le=600)] = 30,  # noqa: ASYNC109 - IML's own name
        capture_output: bool = True,
        stdin: str | None = None,
    ) -> Ended:
        """Run a program of the policy without a shell; `timeout` is in seconds."""
        with blamed_on("command"):
            rule = self.site.rule_for(command)
        argv = [rule.argv0, *command[1:]]
        streams = (Stream("stdout", call), Stream("stderr", call))
        environment = self._environment(env or {})
        with self._working_folder(working_directory) as cwd:
            launch = Launch(argv, environment, COMMAND.for_rule(rule), cwd)
            with blamed_on("command"):
                running = await spawn(self._guardians, launch, stdin)
        try:
            async with asyncio.timeout(timeout):
                with blamed_on("command"):
                    code = await follow(running, streams)
        except TimeoutError as exc:
            text = f"timeout: {argv[0]} ran longer than {timeout} s"
            raise DriverTimeout("driver.timeout", text) from exc
        finally:
            await end(running)
        result: Ended = {
            "command": argv,
            "return_code": code,
            "stdout": streams[0].text if capture_output else "",
            "stderr": streams[1].text if capture_output else "",
            "success": code == 0,
        }
        if any(stream.size > OUTPUT_BYTES for stream in streams):
            result["truncated"] = True
        return result

    @action(effect="pure", impact=0.1, permission="readonly", runs="thread")
    def list_processes(
        self, name_filter: str | None = None, include_children: bool = False
    ) -> Processes:
        """List processes, or those whose name contains a text, and with them all below them."""
        found = processes.rows(name_filter, include_children=include_children)
        listed = list(itertools.islice(found, PROCESSES_LISTED))
        result: Processes = {"processes": listed, "count": len(listed)}
        if len(found) > len(listed):
            result["truncated"] = True
        return result

    @action(effect="once", impact=0.75, permission="power_user")
    async def kill_process(
        self,
        pid: Annotated[int, Ge(1)],
        signal: Literal["SIGTERM", "SIGKILL"] = "SIGTERM",
    ) -> Signalled:
        """Signal one process of the node's account; `success` tells whether it ended within 2 s."""
        return await asyncio.to_thread(self._kill_process, pid, signal)

    def _kill_process(self, pid: int, name: str) -> Signalled:
        with processes.held(pid) as process:
            processes.check_may_end(pid, processes.protected(self._applications.pids()))
            success = processes.end(process, signal.Signals[name], _WAIT_S)
        return {"pid": pid, "signal": name, "success": success}

    @action(effect="pure", impact=0.1, permission="readonly", runs="thread")
    def get_process_info(self, pid: Annotated[int, Ge(1)]) -> ProcessInfo:
        """Describe one process: name, status, CPU over its life, memory, command line, folder."""
        import psutil

        try:
            found: Any = processes.described(processes.find(pid))
        except psutil.NoSuchProcess as exc:
            raise DriverNotFound("driver.not_found", f"pid: process {pid} has just ended") from exc
        info: ProcessInfo = found
        return info

    @action(effect="once", impact=0.5, permission="local_worker")
    async def open_application(
        self,
        application: Program,
        arguments: list[str] | None = None,
        working_directory: WorkingDirectory = None,
    ) -> Opened:
        """Start a program of the policy that goes on running; it ends with the node at the latest."""
        with blamed_on("application"):
            self.site.rules_of(application)
        with blamed_on("arguments"):
            rule = self.site.rule_for([application, *(arguments or ())])
        argv = [rule.argv0, *(arguments or ())]
        with self._working_folder(working_directory) as cwd:
            launch = Launch(argv, self._environment({}), APPLICATION.for_rule(rule), cwd)
            pid = await self._applications.open(application, launch)
        return {"application": application, "pid": pid}

    @action(effect="once", impact=0.6, permission="power_user")
    async def close_application(self, application_name: str, force: bool = False) -> Closed:
        """End what plans opened under a name: in 2 s by themselves, with `force` at once.

        What nobody opened here may bear the same name and be anybody's: `kill_process` ends that,
        one by one and with a person's consent.
        """
        closed = await self._applications.end(application_name, force=force)
        if not closed:
            text = f"application_name: no plan has opened {application_name[:80]!r} on this node"
            raise DriverNotFound("driver.not_found", text)
        return {"application": application_name, "closed_pids": closed}

    @action(effect="idempotent", impact=0.3, permission="local_worker")
    def set_env_var(
        self, name: str, value: str, scope: Literal["process"] = "process"
    ) -> VariableSet:
        """Set a variable for what plans start on this node from now on, until it restarts."""
        self._check_variable("name", name)
        check_word("value", value)
        if name not in self._variables and len(self._variables) == ENV_VARIABLES:
            text = f"name: {ENV_VARIABLES} variables are set already"
            raise DriverError("driver.failed", text)
        self._variables[name] = value
        return {"name": name, "scope": scope}

    @action(effect="pure", impact=0.1, permission="local_worker")
    def get_env_var(self, name: str) -> Variable:
        """Read a variable as programs that plans start see it; the node's own are not shown."""
        if not name or "=" in name or "\0" in name:
            raise DriverError("driver.params", f"name: {name[:80]!r} is no name of a variable")
        value = self._environment({}).get(name)
        return {"name": name, "value": value, "exists": value is not None}

    @action(effect="pure", impact=0.1, permission="readonly", runs="thread")
    def get_system_info(
        self,
        include: list[Literal["cpu", "memory", "disk", "network", "os"]] | None = None,
    ) -> dict[str, Any]:
        """Describe the machine: all of cpu, memory, disk, network and os, or those asked for."""
        readers = {
            "cpu": machine.cpu,
            "memory": machine.memory,
            "disk": lambda: machine.disk(self.site.files),
            "network": machine.network,
            "os": machine.system,
        }
        return {name: readers[name]() for name in include or readers}

    @contextlib.contextmanager
    def _working_folder(self, path: str | None) -> Iterator[int]:
        """The open folder itself, so that nobody can put another in its place."""
        with contextlib.ExitStack() as held:
            with blamed_on("working_directory"):
                if path is None:
                    opened = held.enter_context(folder(self.site.files, ()))
                else:
                    full = absolute(self.site, path)
                    opened = held.enter_context(
                        folder(*split_root(full, readable_roots(self.site)))
                    )
            yield opened

    def _environment(self, given: Mapping[str, str]) -> dict[str, str]:
        for name, value in given.items():
            self._check_variable("env", name)
            check_word(f"env.{name[:80]}", value)
        base = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": self.site.files}
        return {**base, **self.site.env, **self._variables, **given}

    def _check_variable(self, field: str, name: str) -> None:
        """LD_PRELOAD and the like would turn any allowed program into another."""
        if not name or "=" in name or "\0" in name:
            raise DriverError("driver.params", f"{field}: {name[:80]!r} is no name of a variable")
        check_word(field, name)
        if not name.startswith("IML_") and name not in self.site.env:
            text = f"{field}: {name[:80]!r} is neither IML_... nor in the policy's [env]"
            raise DriverDenied("policy.env", text)
