"""`imlmesh chaos`: break a mesh of real processes, and see what becomes of its work."""

from pathlib import Path
from typing import Annotated

import typer

from imlmesh.grammar import lone_verb, verb
from imlmesh.settings import settings

app = lone_verb()


@verb(
    app,
    """\
imlmesh chaos                                   every scenario once, in about five minutes
imlmesh chaos node-kill partition --runs 10     these, with percentiles
imlmesh chaos random-kills --kills 200          kill -9 at random instants of a run
imlmesh chaos busy-cpu --seconds 300
imlmesh chaos --list
imlmesh chaos --runs 10 --kills 200 --report RELIABILITY.md""",
)
def chaos(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Which; else all.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="How often each is done.")] = 1,
    kills: Annotated[int, typer.Option(min=1, help="Of the scenario random-kills.")] = 20,
    seconds: Annotated[
        float, typer.Option(min=1, help="Of busy-cpu the first time; then 20 at most.")
    ] = 20.0,
    seed: Annotated[int | None, typer.Option(help="Of the random instants.")] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a page of it, as docs/RELIABILITY.md."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--list", help="Show the scenarios, break nothing.")
    ] = False,
) -> int:
    """Break a mesh of its own, in a folder of its own: real processes, a real broker, a network that fails.

    The exit code is 1 when an effect was lost or happened twice, or something else that must hold did
    not; then the folder with all logs is kept and named. What was late is told, and fails nothing: times
    depend on the machine.
    """
    from imlmesh.chaos.telling import list_scenarios, run_chaos
    from imlmesh_protocol.errors import InputError

    if settings.home:
        text = "chaos makes a home of its own and takes none"
        raise InputError("usage", text, hint="imlmesh chaos, without --home")
    if show:
        return list_scenarios()
    return run_chaos(names or [], runs, kills, seconds, seed=seed, report=report)
