"""The IML module `os_exec`: programs that the node's policy names, and facts of the machine.

The one rule: an argv, never a shell; an environment from zero; and when the action ends, however it
ends, no process of its group is left (see command.py). Deliberately absent: shell syntax.
"""

import asyncio
import contextlib
import os
import platform
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import Argv, Call, Driver, Guard, action
from imlmesh_drivers.command import Stream, end_group, follow, spawn
from imlmesh_drivers.files import absolute, folder, readable_roots, split_root
from imlmesh_protocol.errors import DriverDenied, DriverTimeout
from imlmesh_protocol.limits import OUTPUT_BYTES

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Ended(TypedDict):
    """How a command ended; a return code other than 0 is a result, not an error."""

    command: list[str]
    return_code: int
    stdout: str
    stderr: str
    success: bool
    #: present when a stream was longer than what is kept
    truncated: NotRequired[bool]


class OsExec(Driver):
    """Run allowed programs and describe the machine."""

    module = "os_exec"
    version = "0.1.0"
    runs = "loop"

    @action(effect="once", impact=0.6, permission="local_worker", vouch=True)
    async def run_command(
        self,
        call: Call,
        command: Argv,
        working_directory: Annotated[str | None, Guard("read")] = None,
        env: dict[str, str] | None = None,
        timeout: Annotated[int, Interval(ge=1, le=600)] = 30,  # noqa: ASYNC109 - IML's own name
        capture_output: bool = True,
        stdin: str | None = None,
    ) -> Ended:
        """Run a program of the policy without a shell; `timeout` is in seconds."""
        argv = self.site.resolve_command(command)
        streams = (Stream("stdout", call), Stream("stderr", call))
        environment = self._environment(env or {})
        with self._working_folder(working_directory) as cwd:
            running = await spawn(argv, cwd, environment, stdin)
        try:
            async with asyncio.timeout(timeout):
                code = await follow(running, streams)
        except TimeoutError as exc:
            raise DriverTimeout("driver.timeout", f"{argv[0]} ran longer than {timeout} s") from exc
        finally:
            await end_group(running)
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
    def get_system_info(
        self,
        include: list[Literal["cpu", "memory", "disk", "network", "os"]] | None = None,
    ) -> dict[str, Any]:
        """Describe the machine: all of cpu, memory, disk, network and os, or those asked for."""
        readers = {
            "cpu": _cpu,
            "memory": _memory,
            "disk": lambda: _disk(self.site.files),
            "network": _network,
            "os": _os,
        }
        return {name: readers[name]() for name in include or readers}

    @contextlib.contextmanager
    def _working_folder(self, path: str | None) -> Iterator[str]:
        if path is None:
            yield self.site.files
            return
        root, parts = split_root(absolute(self.site, path), readable_roots(self.site))
        with folder(root, parts) as opened:
            # the open folder itself, so that nobody can put another in its place
            yield f"/proc/self/fd/{opened}"

    def _environment(self, given: Mapping[str, str]) -> dict[str, str]:
        for name in given:
            # LD_PRELOAD and the like would turn any allowed program into another
            if not name.startswith("IML_") and name not in self.site.env:
                raise DriverDenied(
                    "policy.command",
                    f"env: {name[:80]!r} is neither IML_... nor in the policy's [env]",
                )
        base = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": self.site.files}
        return {**base, **self.site.env, **given}


def _cpu() -> dict[str, Any]:
    import psutil

    return {
        "count": os.cpu_count() or 1,
        "percent": psutil.cpu_percent(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "arch": platform.machine(),
    }


def _memory() -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    return {
        "total_bytes": memory.total,
        "available_bytes": memory.available,
        "percent": memory.percent,
    }


def _disk(path: str) -> dict[str, Any]:
    import psutil

    disk = psutil.disk_usage(path)
    return {"total_bytes": disk.total, "free_bytes": disk.free, "percent": disk.percent}


def _network() -> dict[str, Any]:
    import psutil

    return {
        interface: [address.address for address in addresses]
        for interface, addresses in psutil.net_if_addrs().items()
    }


def _os() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "release": platform.release(),
        "hostname": platform.node(),
        "python": platform.python_version(),
    }
