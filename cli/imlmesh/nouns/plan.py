"""`imlmesh plan`: from an empty file to a run."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings
from imlmesh.spans import Timeout, seconds_of

app = noun(
    "Write, check and run plans.",
    """\
imlmesh plan new first.iml.yaml
imlmesh plan check first.iml.yaml    needs no orchestrator
imlmesh plan fmt first.iml.yaml      in the form that all plans have
imlmesh plan preview first.iml.yaml  where each action would go, and why
imlmesh plan run first.iml.yaml""",
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="A plan as YAML or JSON; - is stdin.")]

LocalNodes = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME[=GROUP,…]", help="With --local: a node by that name; repeatable."),
]

_START = """\
# yaml-language-server: $schema=./iml.schema.json
# Check: imlmesh plan check {file}    Completion in the editor: imlmesh plan schema --out iml.schema.json
protocol_version: "2.0"
plan_id: {name}
description: Say what this plan is for
execution_mode: parallel
actions:
  - id: look
    module: os_exec
    action: get_system_info
    params: {{include: [os]}}
  - id: note
    module: filesystem
    action: write_file
    params: {{path: note.txt, content: "Seen: {{{{result.look.os.hostname}}}}\\n"}}
    depends_on: [look]
"""


@verb(app, "imlmesh plan new\nimlmesh plan new evening.iml.yaml")
def new(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to; without it: stdout.")
    ] = None,
) -> None:
    """Write a valid plan to start from; never over a file that exists."""
    import re

    from imlmesh.render import say, try_line
    from imlmesh_protocol.errors import InputError, Place

    stem = "" if file is None else file.name.partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-")[:128] or "first-plan"
    text = _START.format(file=file or "FILE", name=name)
    if file is None:
        print(text, end="")
        return
    try:
        with file.open("x") as opened:
            opened.write(text)
    except FileExistsError as exc:
        raise InputError(
            "config.invalid", f"{file} exists already", hint="choose another name"
        ) from exc
    except OSError as exc:
        raise InputError("plan.not_found", f"{exc.strerror}", place=Place(file=str(file))) from exc
    say(f"wrote {file}   next: {try_line(f'plan run {file}')}")


@verb(
    app,
    """\
imlmesh plan check evening.iml.yaml            against the drivers of this installation
imlmesh plan check evening.iml.yaml --mesh     against the nodes that are there now
imlmesh plan check answer.txt --repair         what a language model wrote: what would be changed
imlmesh plan check answer.txt --repair --out evening.json""",
)
def check(
    file: File,
    mesh: Annotated[
        bool, typer.Option("--mesh", help="Check nodes and groups too; needs the orchestrator.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair almost-valid JSON; print what was changed.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the repaired plan there; - is stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> int:
    """Say everything that is wrong with a plan; nothing is sent to a node.

    With --repair a text that asks the plan's author to correct the rest is printed too. A plan
    that was cut off ends with 3 even when nothing else is wrong: what is missing was never seen.
    """
    from imlmesh.checking import check_file, exit_code, repair_file, show_check
    from imlmesh.render import emit
    from imlmesh_protocol.errors import InputError

    if repair and mesh:
        raise InputError("usage", "--repair checks here; check what it wrote with --mesh")
    if not repair and (out is not None or force):
        raise InputError("usage", "--out and --force belong to --repair")
    if repair:
        return exit_code(repair_file(file, out, force=force))
    found = _check_on_mesh(file) if mesh else check_file(file)
    if not emit(found):
        show_check(found)
    return exit_code(found)


@verb(
    app,
    """\
imlmesh plan fmt evening.iml.yaml              print it
imlmesh plan fmt evening.iml.yaml --write      keep it
imlmesh plan fmt evening.iml.yaml --check      1 when it is not tidy
imlmesh plan fmt evening.json --to yaml > evening.iml.yaml""",
)
def fmt(
    file: File,
    to: Annotated[
        Literal["yaml", "json"] | None,
        typer.Option("--to", help="Another form; the file's own by default."),
    ] = None,
    write: Annotated[bool, typer.Option("--write", "-w", help="Write the file itself.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Print nothing; exit with 1 when it is not tidy.")
    ] = False,
) -> int:
    """Give a plan the order and form that all plans have.

    Values stay as they are, and so do the comments of YAML; they move with their field. Anchors
    are written out. JSON has no comments: --to json says how many it leaves out.
    """
    from imlmesh.formatting import format_file
    from imlmesh_protocol.errors import InputError

    if write and check:
        raise InputError("usage", "--write and --check exclude each other")
    return format_file(file, to, write=write, check=check)


@verb(
    app,
    """\
imlmesh plan preview evening.iml.yaml
imlmesh plan preview evening.iml.yaml --detailed-exitcode    10 when it shows changes""",
)
def preview(
    file: File,
    detailed: Annotated[
        bool,
        typer.Option("--detailed-exitcode", help="Exit with 10 when it differs from the last run."),
    ] = False,
) -> int:
    """Show what a plan would do now: waves, nodes, who is left out and why, what asks first."""
    from imlmesh.client import Client
    from imlmesh.exits import ExitCode, exit_code_of
    from imlmesh.preview import changed, print_preview
    from imlmesh.render import emit, say, try_line

    body = {"text": _text(file), "file": str(file)}
    found = Client.connect(settings.home).post("plans/preview", body)
    if settings.output == "table" and (found["errors"] or found["warnings"]):
        from imlmesh.diagnosis import show_records

        show_records(found["errors"], found["warnings"])
    if not emit(found) and found["fingerprint"]:
        print_preview(found)
        words = f"plan run {file} --expect {found['fingerprint']}"
        say("run exactly this:  " + try_line(words))
    codes = {exit_code_of(error["code"]) for error in found["errors"]}
    if codes - {ExitCode.NO_NODE}:
        return ExitCode.INVALID
    if not found["placeable"]:
        return ExitCode.NO_NODE
    return ExitCode.CHANGES if detailed and changed(found) else ExitCode.DONE


@verb(
    app,
    """\
imlmesh plan run evening.iml.yaml
imlmesh plan run evening.iml.yaml --detach          print the run's id and return
imlmesh plan run evening.iml.yaml --priority 5      before others that wait for the same nodes
imlmesh plan run evening.iml.yaml --expect 8c1f…    only what `plan preview` showed
imlmesh plan run evening.iml.yaml -o json           wait, then print the run
imlmesh plan run evening.iml.yaml --local           in this process: no broker, no mesh needed
imlmesh plan run evening.iml.yaml --local --node pi-bed=garden --node desk --home ./kept""",
    "run",
)
def run_plan(
    file: File,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait.")] = False,
    priority: Annotated[
        int, typer.Option(min=-10, max=10, help="More goes first; 2 more is twice the share.")
    ] = 0,
    expect: Annotated[
        str | None,
        typer.Option(metavar="FINGERPRINT", help="Refuse when it is not what preview showed."),
    ] = None,
    timeout: Timeout = None,
    local: Annotated[
        bool, typer.Option("--local", help="Run it here, on a mesh that lives as long as it does.")
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --local: policy.toml of its nodes."),
    ] = None,
    node: LocalNodes = None,
) -> int | None:
    """Submit a plan and follow it; Ctrl-C leaves it running. Exits with the run's result.

    In a terminal: a approves and d denies the gate that is shown, l shows log lines, q detaches.

    With --local orchestrator and nodes are this process, and Ctrl-C, q and the end of --timeout
    cancel the run. Its home is temporary, files of the plan included, unless --home names one.
    """
    from imlmesh_protocol.errors import InputError

    if local:
        from imlmesh.local import run_local

        if detach or expect or priority:
            raise InputError("usage", "--detach, --expect and --priority need a mesh, not --local")
        submission = {"text": _text(file), "file": str(file)}
        return run_local(submission, policy, node or (), seconds_of(timeout))
    if policy or node:
        raise InputError("usage", "--policy and --node belong to --local")
    from imlmesh.client import Client
    from imlmesh.render import say
    from imlmesh.submitting import after_submission

    client = Client.connect(settings.home)
    body = {"text": _text(file), "file": str(file), "priority": priority, "expect": expect}
    submitted = client.post("runs", body)
    if submitted.get("reused"):
        say(f"{submitted['run']} has this plan's nonce: nothing new was started")
    return after_submission(client, submitted, detach=detach, timeout_s=seconds_of(timeout))


@verb(app, "imlmesh plan schema\nimlmesh plan schema --out iml.schema.json")
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there.")
    ] = None,
) -> None:
    """Print the JSON Schema of a plan, for editors."""
    import json

    from imlmesh.plan_files import write_plan
    from imlmesh.render import say
    from imlmesh_protocol.iml.schema import plan_schema

    text = json.dumps(plan_schema(), indent=2) + "\n"
    if out is None:
        print(text, end="")
    else:
        write_plan(out, text, overwrite=True)
        say(f"wrote {out}")


def _text(file: Path) -> str:
    from imlmesh.plan_files import read_plan_text

    return read_plan_text(file)


def _check_on_mesh(file: Path) -> dict[str, Any]:
    from imlmesh.client import Client

    body = {"text": _text(file), "file": str(file)}
    return Client.connect(settings.home).post("plans/check", body)
