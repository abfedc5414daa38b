"""`imlmesh approval`: questions that only a person can answer."""

from typing import Annotated

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "See and answer questions to a person.",
    """\
imlmesh approval list
imlmesh approval approve a-3        let it run
imlmesh approval answer a-4 done    other questions have other options""",
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
    from imlmesh.questions import print_questions
    from imlmesh.render import emit, say

    state = None if everything else "pending"
    found = Client.connect(settings.home).get("approvals", state=state)
    if emit(found, "approvals"):
        return
    if not found["approvals"]:
        say("nothing waits for you")
        return
    print_questions(found["approvals"])
    if found["more"]:
        say(f"{found['more']} more are not shown")


@verb(app, "imlmesh approval show a-3")
def show(approval: Id) -> None:
    """Show one question: what would be done, with what, where, and what each answer does."""
    from imlmesh.client import Client, path_of
    from imlmesh.questions import print_question
    from imlmesh.render import emit

    found = Client.connect(settings.home).get(path_of("approvals", approval))
    if not emit(found):
        print_question(found)


@verb(app, "imlmesh approval answer a-3 done\nimlmesh approval answer a-4 rerun")
def answer(
    approval: Id,
    option: Annotated[str, typer.Argument(metavar="OPTION", help="One of the question's.")],
) -> None:
    """Answer a question; the first answer counts."""
    _answer(approval, option)


@verb(app, "imlmesh approval approve a-3")
def approve(approval: Id) -> None:
    """Let an action run that waits at a gate; short for `answer ID approve`."""
    _answer_gate(approval, "approve")


@verb(app, "imlmesh approval deny a-3")
def deny(approval: Id) -> None:
    """Refuse an action that waits at a gate; short for `answer ID deny`."""
    _answer_gate(approval, "deny")


def _answer_gate(approval: str, option: str) -> None:
    from imlmesh.client import Client, path_of
    from imlmesh.render import try_line
    from imlmesh_protocol.errors import InputError

    found = Client.connect(settings.home).get(path_of("approvals", approval))
    if found["kind"] != "gate":
        options = ", ".join(found["options"])
        text = f"{approval} is no gate: {found['message']} Its options are {options}"
        hint = try_line(f"approval answer {approval} OPTION")
        raise InputError("approval.option", text, hint=hint)
    _answer(approval, option)


def _answer(approval: str, option: str) -> None:
    from imlmesh.client import Client, path_of
    from imlmesh.questions import print_question
    from imlmesh.render import emit

    found = Client.connect(settings.home).post(
        path_of("approvals", approval, "answer"), {"option": option}
    )
    if not emit(found):
        print_question(found)
