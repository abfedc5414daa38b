"""Log lines of a run's actions: the kept ones first, then what comes.

The one rule: no gap and no line twice. The kept lines are counted from the first that the run ever
wrote, so what is new is what lies behind the last one that was shown; the event stream only says
that there is something to fetch. That also bridges a stream that broke. A node may still send lines of a run that ended.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from rich.text import Text

from imlmesh.client import Client, path_of
from imlmesh.render import clock, emit_record, write
from imlmesh.settings import settings
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError

Record = Mapping[str, Any]
_FETCH_S = 0.2


class Shown:
    """How far the lines of one run were shown."""

    def __init__(self) -> None:
        self._count = 0
        self._last: Record | None = None

    def new_of(self, found: Record) -> list[Record]:
        """The lines that were not shown before. `found`: {lines: [...], dropped: how many before}."""
        lines = found["lines"]
        at = max(0, self._count - found["dropped"])
        if at > len(lines) or (at and lines[at - 1] != self._last):
            # another orchestrator began to count anew
            at = 0
        self._count = found["dropped"] + len(lines)
        self._last = lines[-1] if lines else None
        return list(lines[at:])


async def follow_logs(client: Client, run: str, wanted: Callable[[Record], bool]) -> None:
    """Print the wanted lines of `run` until it ended and no line came for LOG_TAIL_S."""
    shown = Shown()

    async def fetch() -> int:
        found = await asyncio.to_thread(client.get, path_of("runs", run, "logs"))
        new = shown.new_of(found)
        for line in filter(wanted, new):
            write_log_line(line)
        return len(new)

    stale = asyncio.Event()
    stale.set()
    listening = asyncio.create_task(_listen(client, run, stale))
    listening.add_done_callback(lambda _listening: stale.set())
    try:
        while not listening.done():
            await stale.wait()
            stale.clear()
            try:
                await fetch()
            except LinkError:
                # The stream waits for an orchestrator that restarts, and gives up for both.
                stale.set()
            await asyncio.sleep(_FETCH_S)
        listening.result()
    finally:
        listening.cancel()
    quiet_s = 0.0
    while quiet_s < limits.LOG_TAIL_S:
        quiet_s = 0.0 if await fetch() else quiet_s + _FETCH_S
        await asyncio.sleep(_FETCH_S)


async def _listen(client: Client, run: str, stale: asyncio.Event) -> None:
    async for event in client.events(run=run):
        if event.kind in ("log", "open"):
            stale.set()


def write_log_line(line: Record) -> None:
    """One line on stdout, as the settings say."""
    if settings.output != "table":
        emit_record({"schema": "imlmesh.log-line/1", **line}, line=True)
    else:
        write(log_line(line))


def log_line(line: Record) -> Text:
    """Time, action, node and what was written."""
    style = "red" if line["stream"] == "stderr" else ""
    prefix = f"{clock(line['at_ms'])} {line['action']}@{line['node']} "
    return Text.assemble((prefix, "dim"), (line["line"], style))
