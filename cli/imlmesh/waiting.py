"""Waits for runs to end, without showing what happens in them.

The one rule: a run that ended is told at once; the time is one for all of them.
"""

import asyncio
from collections.abc import Sequence

from imlmesh.client import Client, path_of
from imlmesh.ending import end_lines
from imlmesh.exits import ExitCode
from imlmesh.live import outcome, say_late
from imlmesh.render import emit_record, write
from imlmesh.settings import settings


def wait_for(client: Client, names: Sequence[str], timeout_s: float | None) -> ExitCode:
    """DONE when all completed, else what the first one given that did not complete ends with."""
    runs = [client.get(path_of("runs", name))["run"] for name in names]
    return asyncio.run(_wait(client, runs, timeout_s))


async def _wait(client: Client, runs: Sequence[str], timeout_s: float | None) -> ExitCode:
    ends = [asyncio.create_task(_end(client, run)) for run in runs]
    done, _ = await asyncio.wait(ends, timeout=timeout_s)
    late = [run for run, end in zip(runs, ends, strict=True) if end not in done]
    for end in ends:
        end.cancel()
    await asyncio.gather(*ends, return_exceptions=True)
    codes = [end.result() for end in ends if end in done]
    for run in late:
        say_late(run)
    if late:
        return ExitCode.TIMED_OUT
    return next((code for code in codes if code), ExitCode.DONE)


async def _end(client: Client, run: str) -> ExitCode:
    async for _event in client.events(run=run):
        pass
    found = await asyncio.to_thread(client.get, path_of("runs", run))
    if settings.output == "table":
        write(end_lines(found)[0])
    else:
        emit_record(found, line=True)
    return outcome(found)
