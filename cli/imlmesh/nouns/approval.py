"""`imlmesh approval`: questions that only a person can answer."""

import time
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "See and answer questions to a person.",
    """\
imlmesh approval list
imlmesh approval answer a-3 done""",
)
Id = Annotated[str, typer.Argument(metavar="ID", help="The question's id.")]


@verb(app, "imlmesh approval list\nimlmesh approval list --all", "list")
def list_approvals(
    everything: Annotated[
        bool, typer.Option("--all", help="Answered and expired ones too.")
    ] = False,
) -> None:
    """List what waits for an answer, the most urgent first."""
    from imlmesh.client import Client
    from imlmesh.render import Column, duration, emit, mark, say, try_line, write_table

    state = None if everything else "pending"
    found = Client.connect(settings.home).get("approvals", state=state)
    if emit(found, "approvals"):
        return
    approvals = sorted(
        found["approvals"], key=lambda a: (a["state"] != "pending", a["expires_at_ms"])
    )
    if not approvals:
        say("nothing waits for you")
        return
    now_ms = time.time_ns() // 1_000_000
    columns = [
        Column("ID"),
        Column("STATE", 2),
        Column("LEFT", 3, right=True),
        Column("OPTIONS"),
        Column("RUN", 2),
        Column("ACTION", 1),
        Column("QUESTION", 4),
    ]
    rows = [
        [
            a["approval"],
            mark(a["state"]),
            duration(a["expires_at_ms"] - now_ms) if a["state"] == "pending" else "-",
            "|".join(a["options"]) if a["state"] == "pending" else (a["option"] or "-"),
            a["run"],
            a["action"],
            a["message"],
        ]
        for a in approvals
    ]
    write_table(columns, rows)
    pending = [a for a in approvals if a["state"] == "pending"]
    if pending:
        say("answer: " + try_line(f"approval answer {pending[0]['approval']} OPTION"))


@verb(app, "imlmesh approval show a-3")
def show(approval: Id) -> None:
    """Show one question with what each answer does."""
    from imlmesh.client import Client
    from imlmesh.render import emit

    found = Client.connect(settings.home).get(f"approvals/{approval}")
    if not emit({"schema": "imlmesh.approval/1", **found}):
        _print(found)


@verb(app, "imlmesh approval answer a-3 done\nimlmesh approval answer a-4 rerun")
def answer(
    approval: Id,
    option: Annotated[str, typer.Argument(help="One of the question's options.")],
) -> None:
    """Answer a question; the first answer counts."""
    from imlmesh.client import Client
    from imlmesh.render import emit

    found = Client.connect(settings.home).post(f"approvals/{approval}/answer", {"option": option})
    if not emit({"schema": "imlmesh.approval/1", **found}):
        _print(found)


_OPTIONS = {
    "rerun": "do it again on an eligible node",
    "done": "it happened: go on as if it had completed",
    "fail": "the action failed",
}


def _print(approval: dict[str, Any]) -> None:
    from rich.text import Text

    from imlmesh.render import duration, mark, try_line, write

    write(Text.assemble((approval["approval"], "bold"), "  ", mark(approval["state"])))
    write(f"  {approval['message']}")
    where = f" on {approval['node']}" if approval["node"] else ""
    write(f"  run {approval['run']}, action {approval['action']}{where}")
    if approval["state"] != "pending":
        write(f"  answered: {approval['option'] or '-'} by {approval['by'] or '-'}")
        return
    for option in approval["options"]:
        write(f"  {option:<7} {_OPTIONS.get(option, '')}".rstrip())
    left_ms = approval["expires_at_ms"] - time.time_ns() // 1_000_000
    write(f"  {duration(left_ms)} left, then: {approval['on_expiry']}")
    write("  " + try_line(f"approval answer {approval['approval']} OPTION"))
