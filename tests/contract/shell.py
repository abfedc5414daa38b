"""The os_exec driver with a policy for the tests of its actions."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.base import CommandRule, Site
from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import perform, perform_now
from imlmesh_drivers.os_exec import OsExec
from imlmesh_protocol.errors import DriverError


class Shell:
    """The driver with a policy that allows python and sh, and the log lines that it sent."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.lines: list[tuple[str, str]] = []
        self.driver = OsExec(
            Site(
                files=str(files),
                write_roots=(str(files),),
                commands={
                    "python": CommandRule(sys.executable),
                    "sh": CommandRule("/bin/sh"),
                    "gone": CommandRule("/no/such/program"),
                    "words": CommandRule("/bin/echo", ("[a-z-]+", "-n|--version")),
                    "sleep": CommandRule("/bin/sleep"),
                },
                env={"TZ": "UTC"},
            )
        )

    async def __call__(self, *command: str, **params: Any) -> Any:
        """Run a command."""
        return await self.act("run_command", command=list(command), **params)

    async def act(self, name: str, /, **params: Any) -> Any:
        """Any action, as the agent calls it."""
        call = Call("d", on_log=lambda line, stream: self.lines.append((line, stream)))
        if self.driver.actions[name].waits:
            return await perform(self.driver, name, params, call)
        return await asyncio.to_thread(perform_now, self.driver, name, params, call)

    async def refusal(self, *command: str, **params: Any) -> str:
        return (await self.blame("run_command", command=list(command), **params))[0]

    async def blame(self, name: str, /, **params: Any) -> tuple[str, str]:
        """The code of a refusal, and the param that its text blames."""
        with pytest.raises(DriverError) as caught:
            await self.act(name, **params)
        return caught.value.code, caught.value.message.partition(":")[0]

    def allow(self, name: str, argv0: str, **bounds: int) -> None:
        """Let the policy name one more program."""
        site = self.driver.site
        commands = {**site.commands, name: CommandRule(argv0, **bounds)}
        self.driver.site = replace(site, commands=commands)
