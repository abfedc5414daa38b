"""Follows a run to its end: redrawn waves in a terminal, else one line per event.

The one rule: whoever follows may go away at any time and the run does not care; Ctrl-C detaches
and says how to come back. Deliberately absent: deciding anything about the run.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any, Protocol

from imlmesh.client import Client, ServerEvent
from imlmesh.exits import ExitCode, exit_code_of_run
from imlmesh.render import clock, console, emit_json, is_live, say, try_line, write
from imlmesh.settings import settings
from imlmesh.waves import end_lines, event_line, head_line, question_lines, wave_lines
from imlmesh_protocol.errors import LinkError

_REDRAWS_PER_S = 5
#: changes that a person should see even after the waves were redrawn
_NOTABLE = {
    "liveness-changed",
    "action-unknown",
    "approval-asked",
    "approval-closed",
    "run-aborting",
    "run-cancelling",
}


class View(Protocol):
    """Shows what happens in one run."""

    #: the first event to ask for: 0 replays the run
    after: int

    def take(self, event: ServerEvent) -> None:
        """Show one event."""

    async def refresh(self) -> None:
        """Keep showing the present state until cancelled."""

    async def finish(self) -> None:
        """Show the last state: the run ended."""


def follow_run(client: Client, run: str, *, timeout_s: float | None = None) -> ExitCode:
    """Show `run` until it ends; its exit code. `run` may be a unique prefix."""
    snapshot = client.get(f"runs/{run}")
    name = snapshot["run"]
    try:
        ended = asyncio.run(follow(client, snapshot, timeout_s))
    except KeyboardInterrupt:
        _detached(name)
        return ExitCode.INTERRUPTED
    if not ended:
        say(f"{name} goes on after {timeout_s:g}s.   watch: {try_line(f'run watch {name}')}")
        return ExitCode.TIMED_OUT
    return show_end(client.get(f"runs/{name}"))


def show_end(run: dict[str, Any]) -> ExitCode:
    """Print how an ended run ended; its exit code."""
    if settings.output == "json":
        emit_json(run)
    elif settings.output == "table":
        for line in end_lines(run):
            write(line)
    return exit_code_of_run(run["state"], (run["error"] or {}).get("code"))


def _detached(run: str) -> None:
    keeps = f"detached; {run} keeps running."
    say(f"{keeps}   watch: {try_line(f'run watch {run}')}   stop: {try_line(f'run cancel {run}')}")


async def follow(client: Client, snapshot: dict[str, Any], timeout_s: float | None) -> bool:
    """True when the run ended, False when the time did."""
    with _view(client, snapshot) as view:
        asides = [
            asyncio.create_task(view.refresh()),
            asyncio.create_task(_follow_nodes(client, view)),
        ]
        try:
            async with asyncio.timeout(timeout_s):
                async for event in client.events(run=snapshot["run"], after=view.after):
                    if event.data.get("run") is not None:
                        view.take(event)
            await view.finish()
        except TimeoutError:
            return False
        finally:
            for aside in asides:
                aside.cancel()
            await asyncio.gather(*asides, return_exceptions=True)
    return True


async def _follow_nodes(client: Client, view: View) -> None:
    """Show what happens to nodes: the stream of a run does not tell."""
    async for event in client.events():
        if event.kind == "change" and event.data.get("run") is None:
            view.take(event)


@contextlib.contextmanager
def _view(client: Client, snapshot: dict[str, Any]) -> Iterator[View]:
    if settings.output == "jsonl":
        yield JsonLines()
    elif settings.output == "json" or settings.quiet:
        yield Silent(snapshot["seq"])
    elif not is_live():
        yield Lines()
    else:
        from rich.live import Live

        view = Waves(client, snapshot)
        with Live(
            get_renderable=view.render,
            console=console(),
            refresh_per_second=_REDRAWS_PER_S,
            transient=False,
        ) as live:
            view.live = live
            yield view


class Silent:
    """Shows nothing: who asked wants the end alone."""

    def __init__(self, after: int) -> None:
        self.after = after

    def take(self, event: ServerEvent) -> None:
        """Nothing to show."""

    async def refresh(self) -> None:
        """Nothing to keep."""

    async def finish(self) -> None:
        """Nothing to show."""


class Lines(Silent):
    """One line per event with its time, from the run's beginning."""

    def __init__(self) -> None:
        super().__init__(0)

    def take(self, event: ServerEvent) -> None:
        """Print the changes; log lines and progress have commands of their own."""
        # That a node accepted is said by its start.
        if event.kind == "change" and event.data["kind"] != "dispatch-accepted":
            write(event_line(event.data))
            if event.data["kind"] == "approval-asked":
                name = event.data.get("approval", "ID")
                options = ", ".join(event.data.get("options", ()))
                words = try_line(f"approval answer {name} OPTION")
                write(f"{clock(event.data['at_ms'])}    answer: {words}   ({options})")
            console().file.flush()


class JsonLines(Silent):
    """The same events as JSON, one object a line."""

    def __init__(self) -> None:
        super().__init__(0)

    def take(self, event: ServerEvent) -> None:
        """Print every event."""
        emit_json(event.as_record(), line=True)


class Waves:
    """Redrawn waves; what is worth remembering is printed above them."""

    def __init__(self, client: Client, snapshot: dict[str, Any]) -> None:
        self.after: int = snapshot["seq"]
        self.live: Any = None
        self._client = client
        self._run = snapshot
        self._progress: dict[str, float] = {}
        self._stale = asyncio.Event()

    def take(self, event: ServerEvent) -> None:
        """Note the event; the waves follow at the next redraw."""
        data = event.data
        if event.kind == "progress" and data.get("fraction") is not None:
            self._progress[data["action"]] = data["fraction"]
        if event.kind != "change":
            return
        if data["kind"] in _NOTABLE or _is_move(data):
            self.live.console.print(event_line(data), soft_wrap=True)
        if _is_move(data):
            self._progress.pop(data["action"], None)
        self._stale.set()

    async def refresh(self) -> None:
        """Fetch the run again when something changed, at most as often as it is redrawn."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            # An orchestrator that restarts is waited for by the stream of events.
            with contextlib.suppress(LinkError):
                await self.finish()
            await asyncio.sleep(1 / _REDRAWS_PER_S)

    async def finish(self) -> None:
        """Fetch the run once more."""
        self._run = await asyncio.to_thread(self._client.get, f"runs/{self._run['run']}")

    def render(self) -> Any:
        """Head, waves, questions, cut to the window."""
        from rich.console import Group

        now_ms = time.time_ns() // 1_000_000
        size = self.live.console.size if self.live else console().size
        questions = question_lines(self._run["approvals"], now_ms)
        room = max(1, size.height - len(questions) - 4)
        lines = [head_line(self._run, now_ms), *wave_lines(self._run, now_ms, self._progress, room)]
        for line in lines:
            line.truncate(size.width, overflow="ellipsis")
        return Group(*lines, *questions)


def _is_move(data: dict[str, Any]) -> bool:
    return bool(data["kind"] == "dispatch-planned" and data.get("attempt", 1) > 1)
