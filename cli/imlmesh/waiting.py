"""Waits for runs to end, without showing what happens in them.

The one rule: a run that ended is told at once; the time is one for all of them.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from imlmesh.client import Client, path_of
from imlmesh.ending import end_lines
from imlmesh.exits import ExitCode
from imlmesh.live import outcome, say_late
from imlmesh.render import emit_record, write
from imlmesh.settings import settings

Record = dict[str, Any]


def wait_for(client: Client, names: Sequence[str], timeout_s: float | None) -> ExitCode:
    """DONE when all completed, else what the first one given that did not complete ends with."""
    found = [client.get(path_of("runs", name)) for name in names]
    return asyncio.run(_wait(client, found, timeout_s))


async def _wait(client: Client, found: Sequence[Record], timeout_s: float | None) -> ExitCode:
    # what ended before needs no time, however little there is
    codes = {each["run"]: _tell(each) for each in found if each["ended_at_ms"] is not None}
    ends = {
        each["run"]: asyncio.create_task(_end(client, each["run"]))
        for each in found
        if each["ended_at_ms"] is None
    }
    if ends:
        await asyncio.wait(ends.values(), timeout=timeout_s)
    late = [run for run, end in ends.items() if not end.done()]
    for end in ends.values():
        end.cancel()
    await asyncio.gather(*ends.values(), return_exceptions=True)
    codes |= {run: end.result() for run, end in ends.items() if run not in late}
    for run in late:
        say_late(run)
    if late:
        return ExitCode.TIMED_OUT
    return next((code for each in found if (code := codes[each["run"]])), ExitCode.DONE)


async def _end(client: Client, run: str) -> ExitCode:
    async for _event in client.events(run=run):
        pass
    return _tell(await asyncio.to_thread(client.get, path_of("runs", run)))


def _tell(found: Record) -> ExitCode:
    if settings.output == "table":
        write(end_lines(found)[0])
    else:
        emit_record(found, line=True)
    return outcome(found)
