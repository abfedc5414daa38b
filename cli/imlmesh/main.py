"""The entry of the command line: the table of nouns, and the one place where errors end.

The one rule: whatever happens, a person reads a coded error and a script gets an exit code; a
traceback is shown with -v alone. Deliberately absent: imports of what a noun needs.
"""

import os
import sys
from typing import Any, NoReturn

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from imlmesh.exits import ExitCode, exit_code_of
from imlmesh.grammar import COMPLETE_VARIABLE, PROGRAM, ReaderLeft, Root
from imlmesh.settings import settings
from imlmesh_protocol.errors import InputError, MeshError

NOUNS = {
    "up": "Start a mesh on this computer: broker, orchestrator and one node.",
    "demo": "See a mesh of three nodes lose one and go on.",
    "chaos": "Break a mesh on purpose and measure what becomes of its work.",
    "status": "Show how the mesh does, problems first.",
    "node": "Let nodes join; see, label and run them.",
    "token": "Make tokens that let nodes join.",
    "group": "Name sets of nodes.",
    "plan": "Write, check and run plans.",
    "run": "List, show, follow, hold, cancel and retry runs.",
    "permit": "Let nodes run plans by themselves while they are cut off.",
    "approval": "See and answer questions to a person.",
    "memory": "See and change what plans remember.",
    "action": "See what nodes can do, and call one action.",
    "trust": "See whom nodes trust; let keys and CAs roll over.",
    "telemetry": "See and export what nodes measure.",
    "doctor": "Ask whether the broker keeps strangers out and nodes apart.",
    "audit": "Read the ledger, and find out whether anybody changed it.",
    "event": "Follow what happens on the mesh.",
    "orchestrator": "Run the orchestrator alone.",
    "service": "Let systemd run a node or the orchestrator.",
    "driver": "Write a driver of your own.",
    "docs": "Explain error codes.",
    "completion": "Let the shell complete commands.",
    "version": "Print the version.",
}
EXAMPLES = """\
imlmesh demo run                  no hardware needed, under a minute
imlmesh up                        a mesh on this computer; Ctrl-C stops it
imlmesh plan new hello.iml.yaml   write a first plan
imlmesh plan run hello.iml.yaml   run it and watch"""


def build() -> Any:
    """The whole command line as one group."""
    Root.nouns = NOUNS
    app = typer.Typer(
        cls=Root,
        help="Runs IML v2 plans across a mesh of small computers.",
        epilog=EXAMPLES,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    return get_command(app)


def _root() -> None:
    """Take the shared flags that stand before the noun."""


def run(args: list[str]) -> int:
    """Carry out one command line; the exit code."""
    settings.reset()
    try:
        if COMPLETE_VARIABLE in os.environ:
            _know_shells()
        _refuse_broken_text(args)
        return int(build().main(args=args, prog_name=PROGRAM, standalone_mode=False) or 0)
    except TyperException as exc:
        return _usage(exc, args)
    except ReaderLeft:
        # How it would have ended (a check, a verdict) is not known: neither 0 nor 1.
        sys.stdout = None
        return ExitCode.INTERRUPTED
    except MeshError as exc:
        return _show(exc)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as exc:
        return _report(exc)


def _refuse_broken_text(args: list[str]) -> None:
    for number, argument in enumerate(args, 1):
        try:
            argument.encode()
        except UnicodeEncodeError as exc:
            text = f"argument {number} is not UTF-8: {argument[:80]!r}"
            raise typer.BadParameter(text) from exc


def _know_shells() -> None:
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()


def main() -> NoReturn:
    """The script `imlmesh`."""
    code: int = ExitCode.INTERRUPTED
    try:
        code = run(sys.argv[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        sys.stdout = None
    sys.exit(code)


def _usage(exc: TyperException, args: list[str]) -> int:
    # pydantic's words before those of the check
    text = exc.format_message().replace(": Value error, ", ": ")
    if type(exc).__name__ == "NoArgsIsHelpError":
        print(text)
        return ExitCode.USAGE
    context = getattr(exc, "ctx", None)
    path = context.command_path if context is not None else "imlmesh"
    if "--json" in args or "json" in args:
        settings.output = "json"
    elif "yaml" in args:
        settings.output = "yaml"
    return _show(InputError("usage", text, hint=f"{path} --help"))


def _show(exc: MeshError) -> int:
    from imlmesh.diagnosis import show_error

    show_error(exc)
    return exit_code_of(exc.code)


def _report(exc: Exception) -> int:
    from imlmesh.diagnosis import show_error, write_report

    path = write_report(exc)
    error = MeshError("internal", f"{type(exc).__name__}: {exc}", hint=f"please report {path}")
    error.__cause__ = exc
    show_error(error)
    return ExitCode.INTERNAL
