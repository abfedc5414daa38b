"""`imlmesh permit`: what nodes may do by themselves while they are cut off."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings
from imlmesh_protocol import limits

app = noun(
    "Let nodes run plans by themselves while they are cut off.",
    """\
imlmesh permit grant water.iml.yaml --node pi-garden --every 6h --for 7d --budget 28
imlmesh permit list
imlmesh permit show p-3
imlmesh permit withdraw p-3""",
)
_LONGEST = f"{limits.PERMIT_LONGEST_MS // 86_400_000}d"
Id = Annotated[str, typer.Argument(metavar="ID", help="A permit, or how its id begins.")]


@verb(
    app,
    """\
imlmesh permit grant water.iml.yaml --node pi-garden --every 6h --for 7d --budget 28
imlmesh permit grant close.iml.yaml --node pi-gate --after 5m        once in each time cut off
imlmesh permit grant light.iml.yaml --node pi-door --on gpio-17=1    when that pin tells a 1""",
)
def grant(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A plan as YAML or JSON; - is stdin.")
    ],
    node: Annotated[str, typer.Option(metavar="NODE", help="Alias or id of the node.")],
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Again and again while it is cut off.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Once, so long after it was cut off.")
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(metavar="SOURCE[=VALUE]", help="Whenever a source of the node tells that."),
    ] = None,
    budget: Annotated[
        int, typer.Option(metavar="N", help="Runs at most, in all.")
    ] = limits.PERMIT_BUDGET_USUAL,
    lasts: Annotated[
        str, typer.Option("--for", metavar="TIME", help=f"How long it holds; at most {_LONGEST}.")
    ] = f"{limits.PERMIT_MS // 3_600_000}h",
) -> None:
    """Sign a permit and bring it to its node, now or when that is here.

    The node runs the plan only while it has no answer from the orchestrator, and never more often than
    the budget says, also across reboots. What it did is reported when it is back: imlmesh run list.
    """
    from imlmesh.client import Client
    from imlmesh.diagnosis import show_records
    from imlmesh.plan_files import name_of, read_plan_text
    from imlmesh.render import emit, say, try_line, write

    rule = _rule(every, after, on)
    asked = {
        "text": read_plan_text(file),
        "file": name_of(file),
        "node": node,
        "rule": rule,
        "budget": budget,
        "for_ms": _for_ms(lasts),
    }
    made = Client.connect(settings.home).post("permits", asked)
    if made["warnings"] and settings.output == "table":
        show_records([], made["warnings"])
    if emit(made):
        return
    write(made["permit"])
    say(f"{made['alias']} may run {made['plan_id']} {_line(made)}")
    say(f"see: {try_line('permit show ' + made['permit'])}")


@verb(app, "imlmesh permit list\nimlmesh permit list -o json", "list")
def list_permits() -> None:
    """List permits, also those that ended within the last month."""
    from imlmesh.client import Client
    from imlmesh.render import Column, emit, say, try_line, write_table

    found = Client.connect(settings.home).get("permits")
    if emit(found, "permits"):
        return
    if not found["permits"]:
        say("no permits.   try: " + try_line("permit grant --help"))
        return
    columns = [Column("PERMIT"), Column("STATE"), Column("NODE"), Column("PLAN")]
    columns += [Column("RUNS", right=True), Column("WHEN", 1), Column("BY", 2)]
    write_table(
        columns,
        [
            [
                each["permit"],
                _state(each),
                each["alias"],
                each["plan_id"],
                f"{each['begun']}/{each['budget']}",
                _line(each),
                each["by"],
            ]
            for each in found["permits"]
        ],
    )


@verb(app, "imlmesh permit show p-3\nimlmesh permit show p-3 -o json")
def show(permit: Id) -> None:
    """Show what a permit allows, whether its node holds it, and its latest runs."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write

    found = Client.connect(settings.home).get(path_of("permits", permit))
    if emit(found):
        return
    write(f"{found['permit']}   {_state(found)}   {found['plan_id']} on {found['alias']}")
    write(f"when cut off: {_line(found)}")
    write(f"runs: {found['begun']} of {found['budget']} begun, {found['reported']} reported")
    for action in found["actions"]:
        write(f"  {action['id']}   {action['module']}.{action['action']}   {action['effect']}")
    for run in found["runs"]:
        write(f"  {run}")


@verb(app, "imlmesh permit withdraw p-3")
def withdraw(permit: Id) -> None:
    """Take a permit back. A node that is cut off hears so when it is here again: until then it may run."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write

    found = Client.connect(settings.home).delete(path_of("permits", permit))
    if not emit(found):
        write(f"{found['permit']} holds no more; {found['begun']} of {found['budget']} runs begun")


def _for_ms(text: str) -> int:
    from imlmesh.spans import seconds_of
    from imlmesh_protocol.errors import InputError

    ms = round((seconds_of(text) or 0) * 1_000)
    if not 0 < ms <= limits.PERMIT_LONGEST_MS:
        raise InputError("usage", f"--for {text}: a permit holds for a time of at most {_LONGEST}")
    return ms


def _rule(every: str | None, after: str | None, on: str | None) -> dict[str, Any]:
    from imlmesh.spans import seconds_of
    from imlmesh_protocol.errors import InputError

    if sum(given is not None for given in (every, after, on)) != 1:
        raise InputError("permit.rule", "say exactly one of --every, --after and --on")
    if on is not None:
        source, _, value = on.partition("=")
        return {"kind": "on", "source": source, "value": value or None}
    seconds = seconds_of(every if every is not None else after)
    return {
        "kind": "every" if every is not None else "cut_off",
        "ms": round((seconds or 0) * 1_000),
    }


def _state(found: dict[str, Any]) -> str:
    if found["state"] == "holds" and found["held"] is False:
        return "on its way"
    return str(found["state"])


def _line(found: dict[str, Any]) -> str:
    from imlmesh_orchestrator.views.telling import utc

    rule = found["rule"]
    if rule["kind"] == "on":
        value = "" if rule["value"] is None else f"={rule['value']}"
        words = f"on {rule['source']}{value}"
    else:
        word = "every" if rule["kind"] == "every" else "once after"
        words = f"{word} {rule['ms'] / 1_000:g} s"
    return f"{words}, until {utc(found['to_ms'])}"
