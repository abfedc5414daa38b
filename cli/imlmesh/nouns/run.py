"""`imlmesh run`: what was submitted, how it goes, why it went so."""

from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "List, show, follow and cancel runs.",
    """\
imlmesh run list
imlmesh run watch r-12          a unique beginning of the id is enough
imlmesh run story r-12          what was decided, and why""",
)
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or a unique beginning.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", help="Stop waiting; the run goes on."),
]


@verb(
    app,
    "imlmesh run list\nimlmesh run list --state failed --limit 5\nimlmesh run list -o jsonl",
    "list",
)
def list_runs(
    state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, newest first.")] = 20,
) -> None:
    """List runs: what waits for something first, then the newest."""
    import time

    from imlmesh.client import Client
    from imlmesh.render import Column, duration, emit, mark, say, try_line, write_table

    found = Client.connect(settings.home).get("runs", limit=limit, state=state)
    if emit(found, "runs"):
        return
    runs = sorted(found["runs"], key=lambda run: 0 if run["waits_for"] else 1)
    if not runs:
        say("no runs yet.   try: " + try_line("plan run FILE"))
        return
    now_ms = time.time_ns() // 1_000_000
    columns = [
        Column("RUN"),
        Column("PLAN", 2),
        Column("STATE"),
        Column("ACTIONS", 1, right=True),
        Column("TOOK", 3, right=True),
        Column("AGO", 3, right=True),
        Column("BY", 5),
        Column("WAITS FOR", 4),
    ]
    rows = []
    for run in runs:
        done = run["counts"].get("completed", 0)
        took_ms = (run["ended_at_ms"] or now_ms) - run["submitted_at_ms"]
        rows.append(
            [
                run["run"],
                run["plan_id"] or "-",
                mark(run["state"]),
                f"{done}/{run['actions']}",
                duration(took_ms),
                duration(now_ms - run["submitted_at_ms"]),
                run["by"],
                ", ".join(run["waits_for"]) or "-",
            ]
        )
    write_table(columns, rows)


@verb(app, "imlmesh run show r-12\nimlmesh run show r-12 --json")
def show(run: Run) -> None:
    """Show a run: its waves, then every action with node, time and error."""
    import time

    from imlmesh.client import Client
    from imlmesh.render import console, emit, write
    from imlmesh.waves import end_lines, head_line, question_lines, wave_lines

    found = Client.connect(settings.home).get(f"runs/{run}")
    if emit(found):
        return
    now_ms = time.time_ns() // 1_000_000
    write(head_line(found, now_ms))
    if found["description"]:
        write(found["description"])
    for line in wave_lines(found, now_ms, {}):
        line.truncate(console().width, overflow="ellipsis")
        write(line)
    for line in question_lines(found["approvals"], now_ms):
        write(line)
    write()
    _action_table(found)
    if found["ended_at_ms"]:
        for line in end_lines(found):
            write(line)


def _action_table(run: dict[str, Any]) -> None:
    from imlmesh.render import Column, duration, mark, write_table

    columns = [
        Column("ACTION"),
        Column("STATE"),
        Column("NODE", 1),
        Column("TOOK", 3, right=True),
        Column("ATTEMPT", 5, right=True),
        Column("TARGET", 4),
        Column("WHAT", 6),
        Column("ERROR", 2),
    ]
    rows = [
        [
            action["id"],
            mark(action["state"]),
            action["node_alias"] or action["node"] or "-",
            duration(action["duration_ms"]),
            str(action["attempt"]),
            action["target"] or "any node",
            f"{action['module']}.{action['action']} ({action['effect']})",
            _error(action),
        ]
        for action in run["actions"]
    ]
    write_table(columns, rows)


def _error(action: dict[str, Any]) -> str:
    error = action["error"]
    return f"{error['code']}: {error['message']}" if error else "-"


@verb(
    app,
    "imlmesh run watch r-12\nimlmesh run watch r-12 --timeout 60\nimlmesh run watch r-12 -o jsonl",
)
def watch(run: Run, timeout: Timeout = None) -> int:
    """Follow a run to its end and exit with its result; Ctrl-C leaves it running."""
    from imlmesh.client import Client
    from imlmesh.live import follow_run

    return follow_run(Client.connect(settings.home), run, timeout_s=timeout)


@verb(app, "imlmesh run logs r-12\nimlmesh run logs r-12 forecast\nimlmesh run logs r-12 --follow")
def logs(
    run: Run,
    action: Annotated[str | None, typer.Argument(help="Only of this action.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends.")
    ] = False,
) -> int | None:
    """Print the log lines of a run's actions, from the beginning."""
    import asyncio

    from imlmesh.client import Client
    from imlmesh.render import emit, say
    from imlmesh_protocol.errors import InputError

    client = Client.connect(settings.home)
    shown = client.get(f"runs/{run}")
    name, ids = shown["run"], [one["id"] for one in shown["actions"]]
    if action is not None and action not in ids:
        hint = f"one of {', '.join(ids[:10])}"
        raise InputError("usage", f"{name} has no action {action!r}", hint=hint)
    found = client.get(f"runs/{name}/logs", action=action)
    if settings.output != "table" and not follow:
        emit(found, "lines")
        return None
    if found["dropped"]:
        say(f"{found['dropped']} older lines were dropped")
    for line in found["lines"]:
        _write_log_line(line)
    if not found["lines"] and not follow:
        say("no log lines are kept of it: they live in the orchestrator's memory")
    if follow:
        asyncio.run(_follow_logs(client, name, action))
    return None


async def _follow_logs(client: Any, run: str, action: str | None) -> None:
    async for event in client.events(run=run):
        if event.kind == "log" and action in (None, event.data["action"]):
            _write_log_line(event.data)


def _write_log_line(line: dict[str, Any]) -> None:
    from rich.text import Text

    from imlmesh.render import clock, emit_json, write

    if settings.output != "table":
        emit_json({"schema": "imlmesh.log-line/1", **line}, line=True)
        return
    style = "red" if line["stream"] == "stderr" else ""
    prefix = f"{clock(line['at_ms'])} {line['action']}@{line['node']} "
    write(Text.assemble((prefix, "dim"), (line["line"], style)))


@verb(app, "imlmesh run cancel r-12")
def cancel(run: Run) -> None:
    """Ask a run to end: what runs is stopped on its nodes, the rest never starts."""
    from imlmesh.client import Client
    from imlmesh.render import emit, say, try_line, write

    found = Client.connect(settings.home).post(f"runs/{run}/cancel")
    if emit({"schema": "imlmesh.cancel/1", **found}):
        return
    write(f"{found['run']} {found['state']}")
    if found["state"] == "cancelling":
        say(f"its nodes confirm it now.   watch: {try_line('run watch ' + found['run'])}")


@verb(app, "imlmesh run story r-12\nimlmesh run story r-12 -o jsonl")
def story(run: Run) -> None:
    """Tell what was decided in a run, in order, and what caused it."""
    from imlmesh.client import Client
    from imlmesh.render import Column, clock, emit, write_table

    found = Client.connect(settings.home).get(f"runs/{run}/story")
    if emit(found, "entries"):
        return
    columns = [
        Column("TIME"),
        Column("WHAT HAPPENED", 0),
        Column("BECAUSE OF", 2),
        Column("SEQ", 3, right=True),
    ]
    write_table(
        columns,
        [
            [clock(entry["at_ms"]), entry["text"], entry["cause"] or "-", str(entry["seq"])]
            for entry in found["entries"]
        ],
    )
