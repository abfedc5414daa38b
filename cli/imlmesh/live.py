"""Follows a run to its end: redrawn waves in a terminal, else one line per event.

The one rule: whoever follows may go away at any time and the run does not care; Ctrl-C detaches
and says how to come back. Deliberately absent: deciding anything about the run.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from rich.text import Text

from imlmesh.client import Client, ServerEvent, look_pause_s, path_of
from imlmesh.ending import end_lines, failures
from imlmesh.exits import ExitCode, exit_code_of_run
from imlmesh.keys import has_keys, pressed
from imlmesh.loglines import log_line
from imlmesh.render import clock, console, emit_record, is_live, say, try_line, write
from imlmesh.settings import settings
from imlmesh.waves import event_line, head_line, question_lines, undo_lines, wave_lines
from imlmesh_protocol.errors import LinkError, MeshError

_REDRAWS_PER_S = 5
#: changes that a person should see even after the waves were redrawn
_NOTABLE = {
    "liveness-changed",
    "action-unknown",
    "approval-asked",
    "approval-closed",
    "run-aborting",
    "run-cancelling",
    "run-paused",
    "run-resumed",
    "retry-planned",
    "rollback-due",
}
#: that a node accepted is said by its start, and that it called again changes nothing for a run
_UNTOLD = {"dispatch-accepted", "node-returned"}
_ANSWERS = {"a": "approve", "d": "deny"}


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
    snapshot = client.get(path_of("runs", run))
    name = snapshot["run"]
    try:
        ended = asyncio.run(follow(client, snapshot, timeout_s, leave="detach"))
    except (KeyboardInterrupt, BrokenPipeError):
        # Ctrl-C, or who reads what we print has gone: neither says how the run ends
        say_detached(name)
        return ExitCode.INTERRUPTED
    if not ended and snapshot["ended_at_ms"] is None:
        say_late(name)
        return ExitCode.TIMED_OUT
    return show_end(client, name)


def show_end(client: Client, name: str, *, hints: bool = True) -> ExitCode:
    """Print how an ended run ended, with `hints` what to try; its exit code."""
    run = client.get(path_of("runs", name))
    if settings.output in ("json", "yaml"):
        emit_record(run)
    elif settings.output == "table":
        logs = (
            client.get(path_of("runs", name, "logs"), failed="true")["lines"]
            if failures(run)
            else ()
        )
        for line in end_lines(run, logs, hints=hints):
            write(line)
    return outcome(run)


def outcome(run: dict[str, Any]) -> ExitCode:
    """The exit code of an ended run."""
    return exit_code_of_run(run["state"], (run["error"] or {}).get("code"))


def say_late(run: str) -> None:
    """The time was over before the run was."""
    say(f"{run} goes on.   watch: {try_line(f'run watch {run}')}")


def say_detached(run: str) -> None:
    """Whoever followed the run went away."""
    keeps = f"detached; {run} keeps running."
    say(f"{keeps}   watch: {try_line(f'run watch {run}')}   stop: {try_line(f'run cancel {run}')}")


async def follow(
    client: Client, snapshot: dict[str, Any], timeout_s: float | None, *, leave: str = ""
) -> bool:
    """True when the run ended, False when the time did.

    `leave` is what going away does, in a word: then keys answer in a terminal, and [q] goes.
    """
    nodes = client.events()
    # Whoever sees the run also sees what happens to its nodes from then on.
    await anext(nodes)
    with _view(client, snapshot, leave if has_keys() else "") as view:
        asides = [
            asyncio.create_task(view.refresh()),
            asyncio.create_task(_follow_nodes(nodes, view)),
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


async def _follow_nodes(events: AsyncIterator[ServerEvent], view: View) -> None:
    """Show what happens to nodes: the stream of a run does not tell."""
    async for event in events:
        if event.kind == "change" and event.data.get("run") is None:
            view.take(event)


@contextlib.contextmanager
def _view(client: Client, snapshot: dict[str, Any], leave: str) -> Iterator[View]:
    if settings.output == "jsonl":
        yield JsonLines()
    elif settings.output != "table" or settings.quiet:
        yield Silent(snapshot["seq"])
    elif not is_live():
        yield Lines()
    else:
        from rich.live import Live

        view = Waves(client, snapshot, leave)
        with Live(
            get_renderable=view.render,
            console=console(),
            refresh_per_second=_REDRAWS_PER_S,
            transient=False,
        ) as live:
            view.live = live
            with pressed(view.press) if leave else contextlib.nullcontext():
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
        if event.kind == "change" and event.data["kind"] not in _UNTOLD:
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
        emit_record(event.as_record(), line=True)


class Waves:
    """Redrawn waves; what is worth remembering is printed above them. `leave` as in `follow`."""

    def __init__(self, client: Client, snapshot: dict[str, Any], leave: str) -> None:
        self.after: int = snapshot["seq"]
        self.live: Any = None
        self._client = client
        self._run = snapshot
        self._progress: dict[str, float] = {}
        self._stale = asyncio.Event()
        self._leave = leave
        self._with_logs = False
        #: questions that a key of this terminal answered, and the answers under way
        self._answered: set[str] = set()
        self._answering: set[asyncio.Task[None]] = set()

    def take(self, event: ServerEvent) -> None:
        """Note the event; the waves follow at the next redraw."""
        data = event.data
        if event.kind == "progress" and data.get("fraction") is not None:
            self._progress[data["action"]] = data["fraction"]
        if event.kind == "log" and self._with_logs:
            self.live.console.print(log_line(data), soft_wrap=True)
        if event.kind != "change":
            return
        if data["kind"] in _NOTABLE or _is_move(data):
            self.live.console.print(event_line(data), soft_wrap=True)
        if _is_move(data):
            self._progress.pop(data["action"], None)
        self._stale.set()

    async def refresh(self) -> None:
        """Fetch the run again when something changed, at most as often as it is redrawn, and less often
        when that takes long."""
        while True:
            await self._stale.wait()
            self._stale.clear()
            began_s = time.monotonic()
            # An orchestrator that restarts is waited for by the stream of events.
            with contextlib.suppress(LinkError):
                await self.finish()
            await asyncio.sleep(look_pause_s(1 / _REDRAWS_PER_S, time.monotonic() - began_s))

    async def finish(self) -> None:
        """Fetch the run once more."""
        self._run = await asyncio.to_thread(self._client.get, path_of("runs", self._run["run"]))

    def press(self, key: str) -> None:
        """[a]pprove or [d]eny the first gate that is shown, [l]ogs on and off, [q] detach."""
        gate = self._gate()
        if key == "q":
            signal.raise_signal(signal.SIGINT)
        elif key == "l":
            self._with_logs = not self._with_logs
        elif key in _ANSWERS and gate is not None:
            self._answered.add(gate)
            answering = asyncio.get_running_loop().create_task(self._answer(gate, _ANSWERS[key]))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    async def _answer(self, gate: str, option: str) -> None:
        try:
            path = path_of("approvals", gate, "answer")
            await asyncio.to_thread(self._client.post, path, {"option": option})
        except MeshError as exc:
            self._answered.discard(gate)
            self.live.console.print(f"{gate}: {exc.message} [{exc.code}]", soft_wrap=True)
        self._stale.set()

    def _gate(self) -> str | None:
        """The gate that the keys answer: a second press must not answer the next one unseen."""
        for approval in self._run["approvals"]:
            if approval["state"] == "pending" and approval["kind"] == "gate":
                name = str(approval["approval"])
                return None if name in self._answered else name
        return None

    def render(self) -> Any:
        """Head, waves, what is undone, questions, keys, cut to the window."""
        from rich.console import Group

        now_ms = time.time_ns() // 1_000_000
        size = self.live.console.size if self.live else console().size
        below = [*undo_lines(self._run), *question_lines(self._run["approvals"], now_ms)]
        if self._leave and not self._run["ended_at_ms"]:
            below.append(keys_line(self._gate(), self._leave, logs=self._with_logs))
        room = max(1, size.height - len(below) - 4)
        lines = [head_line(self._run, now_ms), *wave_lines(self._run, now_ms, self._progress, room)]
        for line in lines:
            line.truncate(size.width, overflow="ellipsis")
        return Group(*lines, *below)


def _is_move(data: dict[str, Any]) -> bool:
    return bool(data["kind"] == "dispatch-planned" and data.get("attempt", 1) > 1)


def keys_line(gate: str | None, leave: str, *, logs: bool) -> Text:
    """What the keys do now."""
    answers = f"[a]pprove or [d]eny {gate}   " if gate else ""
    return Text(f"{answers}[l]ogs {'off' if logs else 'on'}   [q] {leave}", style="dim")
