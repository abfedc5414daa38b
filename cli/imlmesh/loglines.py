"""Log lines of a run's actions: the kept ones first, then what comes.

The one rule: no gap and no line twice. Lines are numbered; the kept ones are fetched when the
event stream is open, so that nothing falls between the two, and again when a number is missing, as
after a stream that broke. What the orchestrator no longer keeps is counted and said. A node may
still send lines of a run that ended.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.text import Text

from imlmesh.client import Client, ServerEvent, path_of
from imlmesh.render import clock, counted, emit_record, say, write
from imlmesh.settings import settings
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError

Record = Mapping[str, Any]
_FETCH_S = 0.2
#: after these changes an attempt may have failed whose lines nobody was shown yet
_ENDS = {"result-taken", "retry-planned", "dispatch-ended", "action-unknown", "action-ended"}


class Shown:
    """How far the lines of one count were shown: all of them, or those of what failed."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}
        self._newest = 0
        self._count = 0
        self._missed = 0

    def new_of(self, lines: Sequence[Record]) -> list[Record]:
        """Those that were not shown before."""
        return [line for line in lines if self._is_new(line)]

    def missed_of(self, found: Record) -> int:
        """How many more lines were dropped before anybody could show them.

        `found`: {lines: of all actions, dropped}, and `new_of` has seen its lines.
        """
        known = self._missed
        self._missed = found["dropped"] + len(found["lines"]) - self._count
        return self._missed - known

    def lacks(self, line: Record) -> bool:
        """Whether lines are missing between those that were shown and this one."""
        return bool(line["n"] > self._newest + 1)

    def _is_new(self, line: Record) -> bool:
        unit = (line["action"], line["node"])
        if line["n"] <= self._last.get(unit, 0):
            return False
        self._last[unit] = line["n"]
        self._newest = max(self._newest, line["n"])
        self._count += 1
        return True


class Follower:
    """Prints the wanted lines of one run as they come; with `failed` those of what has failed."""

    def __init__(
        self, client: Client, run: str, wanted: Callable[[Record], bool], *, failed: bool
    ) -> None:
        self._client = client
        self._run = run
        self._wanted = wanted
        self._failed = failed
        self._log = ""
        self._shown = Shown()

    async def follow(self) -> None:
        """Until the run ended and no line came for LOG_TAIL_S."""
        async for event in self._client.events(run=self._run):
            if self._is_stale(event):
                # The stream waits for an orchestrator that restarts, and gives up for both.
                with contextlib.suppress(LinkError):
                    await self._fetch()
            elif event.kind == "log" and not self._failed:
                self._print([event.data])
        quiet_s = 0.0
        while quiet_s < limits.LOG_TAIL_S:
            quiet_s = 0.0 if await self._fetch() else quiet_s + _FETCH_S
            await asyncio.sleep(_FETCH_S)

    def _is_stale(self, event: ServerEvent) -> bool:
        if event.kind == "change":
            return self._failed and event.data["kind"] in _ENDS
        missing = event.kind == "log" and not self._failed and self._shown.lacks(event.data)
        return missing or event.kind == "open"

    async def _fetch(self) -> int:
        """Print what is kept and was not shown; how many lines that are."""
        wanted = {"failed": "true"} if self._failed else {}
        path = path_of("runs", self._run, "logs")
        found = await asyncio.to_thread(self._client.get, path, **wanted)
        if found["log"] != self._log:
            # another orchestrator counts anew
            self._log, self._shown = found["log"], Shown()
        new = self._print(found["lines"])
        missed = 0 if self._failed else self._shown.missed_of(found)
        if missed:
            say(f"{counted(missed, 'line')} dropped before they could be shown")
        return new

    def _print(self, lines: Sequence[Record]) -> int:
        new = self._shown.new_of(lines)
        for line in filter(self._wanted, new):
            write_log_line(line)
        return len(new)


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
