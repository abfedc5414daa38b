"""`imlmesh run`: what was submitted, how it goes, why it went so, and what becomes of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings
from imlmesh.spans import Timeout, at_ms_of, seconds_of

app = noun(
    "List, show, follow, hold, cancel and retry runs.",
    """\
imlmesh run list
imlmesh run watch r-12              a unique beginning of the id is enough
imlmesh run story r-12              what was decided, and why
imlmesh run retry r-12 --failed     again, but only what failed""",
)
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or a unique beginning.")]


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
    from imlmesh.client import Client
    from imlmesh.render import emit, say, try_line
    from imlmesh.runs import print_runs

    found = Client.connect(settings.home).get("runs", limit=limit, state=state)
    if emit(found, "runs"):
        return
    if not found["runs"]:
        none = f"no run is {state}" if state else "no runs yet"
        say(f"{none}.   try: " + try_line("run list" if state else "plan run FILE"))
        return
    print_runs(found["runs"])


@verb(app, "imlmesh run show r-12\nimlmesh run show r-12 --json")
def show(run: Run) -> None:
    """Show a run: its waves, then every action with node, time and error."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit
    from imlmesh.runs import print_run

    found = Client.connect(settings.home).get(path_of("runs", run))
    if not emit(found):
        print_run(found)


@verb(
    app,
    "imlmesh run watch r-12\nimlmesh run watch r-12 --timeout 60\nimlmesh run watch r-12 -o jsonl",
)
def watch(run: Run, timeout: Timeout = None) -> int:
    """Follow a run to its end and exit with its result; Ctrl-C leaves it running.

    In a terminal: a approves and d denies the gate that is shown, l shows log lines, q detaches.
    """
    from imlmesh.client import Client
    from imlmesh.live import follow_run

    return follow_run(Client.connect(settings.home), run, timeout_s=seconds_of(timeout))


@verb(
    app,
    """\
imlmesh run wait r-12
imlmesh run wait r-12 r-13 --timeout 5m     8 when the time is over""",
)
def wait(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids, or their beginnings.")],
    timeout: Timeout = None,
) -> int:
    """Wait until runs have ended, without showing them.

    Exits with the result of the first one given that did not complete.
    """
    from imlmesh.client import Client
    from imlmesh.waiting import wait_for

    return wait_for(Client.connect(settings.home), runs, seconds_of(timeout))


@verb(
    app,
    """\
imlmesh run retry r-12 --failed     only what failed, and what follows from it
imlmesh run retry r-12              all that did not complete
imlmesh run retry r-12 --detach""",
)
def retry(
    run: Run,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only what failed, and what depends on it.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait.")] = False,
    timeout: Timeout = None,
) -> int | None:
    """Run an ended run's plan again and keep what completed; then follow it.

    What may repeat an effect that it had before asks first.
    """
    from imlmesh.client import Client, path_of
    from imlmesh.render import say
    from imlmesh.submitting import after_submission

    client = Client.connect(settings.home)
    submitted = client.post(path_of("runs", run, "retry"), {"failed": failed})
    say(f"{submitted['run']} retries {submitted['of']}")
    for word, names in (("kept", submitted["kept"]), ("asks first", submitted["asks"])):
        if names:
            say(f"  {word}: {', '.join(names)}")
    return after_submission(client, submitted, detach=detach, timeout_s=seconds_of(timeout))


@verb(app, "imlmesh run pause r-12")
def pause(run: Run) -> None:
    """Start nothing new in a run until it is resumed; what runs goes on."""
    _tell(run, "pause", "go on: ", "run resume")


@verb(app, "imlmesh run resume r-12")
def resume(run: Run) -> None:
    """Let a paused run go on."""
    _tell(run, "resume", "watch: ", "run watch")


@verb(app, "imlmesh run cancel r-12")
def cancel(run: Run) -> None:
    """Ask a run to end: what runs is stopped on its nodes, the rest never starts."""
    _tell(run, "cancel", "its nodes confirm it.   watch: ", "run watch")


def _tell(run: str, asked: str, said: str, words: str) -> None:
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, say, try_line, write

    found = Client.connect(settings.home).post(path_of("runs", run, asked))
    if emit(found):
        return
    write(f"{found['run']} {found['state']}")
    if found["state"] in ("paused", "running", "pending", "cancelling"):
        say(said + try_line(f"{words} {found['run']}"))


@verb(
    app,
    """\
imlmesh run logs r-12                     all that is kept, from the beginning
imlmesh run logs r-12 forecast --follow   go on until the run ends
imlmesh run logs r-12 --failed            only of the actions that failed; also with --follow
imlmesh run logs r-12 --since 5m""",
)
def logs(
    run: Run,
    action: Annotated[
        str | None, typer.Argument(metavar="[ACTION]", help="Only of this action.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends.")
    ] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Only of actions that failed.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Not older: 5m, 14:05, or RFC 3339.")
    ] = None,
) -> None:
    """Print the log lines of a run's actions, from the beginning."""
    import asyncio
    import time

    from imlmesh.client import Client, path_of
    from imlmesh.loglines import Follower, write_log_line
    from imlmesh.render import emit, say
    from imlmesh_protocol.errors import InputError

    since_ms = None if since is None else at_ms_of(since, time.time_ns() // 1_000_000)
    client = Client.connect(settings.home)
    shown = client.get(path_of("runs", run))
    name, ids = shown["run"], [one["id"] for one in shown["actions"]]
    if action is not None and action not in ids:
        hint = f"one of {', '.join(ids[:10])}"
        raise InputError("usage", f"{name} has no action {action!r}", hint=hint)
    if follow:

        def fits(line: Mapping[str, Any]) -> bool:
            return action in (None, line["action"]) and line["at_ms"] >= (since_ms or 0)

        asyncio.run(Follower(client, name, fits, failed=failed).follow())
        return
    wanted = {"action": action, "since": since_ms, "failed": "true" if failed else None}
    found = client.get(path_of("runs", name, "logs"), **wanted)
    if emit(found, "lines"):
        return
    if found["dropped"]:
        say(f"{found['dropped']} older lines were dropped")
    for line in found["lines"]:
        write_log_line(line)
    if not found["lines"]:
        say("no such log lines are kept: they live in the orchestrator's memory")


@verb(app, "imlmesh run story r-12\nimlmesh run story r-12 -o jsonl")
def story(run: Run) -> None:
    """Tell what was decided in a run, in order, and what caused it."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import Column, clock, emit, write_table

    found = Client.connect(settings.home).get(path_of("runs", run, "story"))
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


@verb(app, "imlmesh run export r-12 --out r-12.json\nimlmesh run export r-12 -o yaml")
def export(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there.")
    ] = None,
) -> None:
    """Write all that is known of a run, to send to a colleague: plan, results, story, logs."""
    from imlmesh.client import Client, path_of
    from imlmesh.foreign import as_json, as_yaml
    from imlmesh.render import emit_record, say
    from imlmesh_protocol.errors import InputError, Place

    found = Client.connect(settings.home).get(path_of("runs", run, "export"))
    if out is None:
        emit_record(found)
        return
    text = as_yaml(found) if settings.output == "yaml" else as_json(found, 2) + "\n"
    try:
        out.write_text(text)
    except OSError as exc:
        place = Place(file=str(out))
        raise InputError("config.invalid", f"{out}: {exc.strerror}", place=place) from exc
    say(f"wrote {out}")
