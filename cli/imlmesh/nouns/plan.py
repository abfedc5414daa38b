"""`imlmesh plan`: from an empty file to a run."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "Write, check and run plans.",
    """\
imlmesh plan new first.iml.yaml
imlmesh plan check first.iml.yaml    needs no orchestrator
imlmesh plan run first.iml.yaml""",
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="A plan as YAML or JSON.")]

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
imlmesh plan check evening.iml.yaml --mesh     against the nodes that are there now""",
)
def check(
    file: File,
    mesh: Annotated[
        bool, typer.Option("--mesh", help="Check nodes and groups too; needs the orchestrator.")
    ] = False,
) -> int:
    """Say everything that is wrong with a plan; nothing is sent to a node."""
    from imlmesh.exits import ExitCode, exit_code_of
    from imlmesh.render import emit

    found = _check_on_mesh(file) if mesh else _check_here(file)
    if found["errors"] or (found["warnings"] and settings.output == "table"):
        from imlmesh.diagnosis import show_records

        if settings.output == "table":
            show_records(found["errors"], found["warnings"])
    if not emit(found) and not found["errors"]:
        _print_waves(found)
    if not found["errors"]:
        return ExitCode.DONE
    codes = {exit_code_of(error["code"]) for error in found["errors"]}
    return ExitCode.NO_NODE if codes == {ExitCode.NO_NODE} else ExitCode.INVALID


@verb(
    app,
    """\
imlmesh plan run evening.iml.yaml
imlmesh plan run evening.iml.yaml --detach    print the run's id and return
imlmesh plan run evening.iml.yaml -o json     wait, then print the run""",
    "run",
)
def run_plan(
    file: File,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Do not wait.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", help="Stop waiting; the run goes on."),
    ] = None,
) -> int | None:
    """Submit a plan and follow it; Ctrl-C leaves it running. Exits with the run's result."""
    from imlmesh.client import Client
    from imlmesh.diagnosis import show_records
    from imlmesh.live import follow_run
    from imlmesh.render import emit, say, try_line, write

    client = Client.connect(settings.home)
    submitted = client.post("runs", {"text": _text(file), "file": str(file)})
    if submitted["warnings"] and settings.output == "table":
        show_records([], submitted["warnings"])
    name = submitted["run"]
    if not detach:
        return follow_run(client, name, timeout_s=timeout)
    if not emit(submitted):
        write(name)
        say(f"watch: {try_line(f'run watch {name}')}   stop: {try_line(f'run cancel {name}')}")
    return None


@verb(app, "imlmesh plan schema\nimlmesh plan schema --out iml.schema.json")
def schema(
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write it there.")
    ] = None,
) -> None:
    """Print the JSON Schema of a plan, for editors."""
    import json

    from imlmesh.render import say
    from imlmesh_protocol.iml.schema import plan_schema

    text = json.dumps(plan_schema(), indent=2) + "\n"
    if out is None:
        print(text, end="")
    else:
        out.write_text(text)
        say(f"wrote {out}")


def _read(file: Path) -> bytes:
    from imlmesh_protocol import limits
    from imlmesh_protocol.errors import InputError, Place

    try:
        with file.open("rb") as opened:
            data = opened.read(limits.PLAN_BYTES + 1)
    except OSError as exc:
        place = Place(file=str(file))
        raise InputError("plan.not_found", f"{file}: {exc.strerror}", place=place) from exc
    if len(data) > limits.PLAN_BYTES:
        text = f"{file} is larger than {limits.PLAN_BYTES:,} bytes"
        raise InputError("plan.too_large", text, place=Place(file=str(file)))
    return data


def _text(file: Path) -> str:
    data = _read(file)
    try:
        return data.decode()
    except UnicodeDecodeError:
        from imlmesh_protocol.iml.document import parse

        # It names the place.
        parse(data, str(file))
        raise


def _check_on_mesh(file: Path) -> dict[str, Any]:
    from imlmesh.client import Client

    body = {"text": _text(file), "file": str(file)}
    return Client.connect(settings.home).post("plans/check", body)


def _check_here(file: Path) -> dict[str, Any]:
    from imlmesh_drivers.registry import shipped_manifest
    from imlmesh_protocol.errors import InputError, InputErrors
    from imlmesh_protocol.iml.digest import plan_digest
    from imlmesh_protocol.iml.document import parse
    from imlmesh_protocol.iml.validate import validate

    found: dict[str, Any] = {"schema": "imlmesh.check/1", "plan_id": None, "digest": None}
    found |= {"actions": 0, "waves": [], "errors": [], "warnings": []}
    try:
        report = validate(parse(_read(file), str(file)), [shipped_manifest()])
    except InputErrors as exc:
        return found | {"errors": [error.as_record() for error in exc.errors]}
    except InputError as exc:
        return found | {"errors": [exc.as_record()]}
    found["errors"] = [error.as_record() for error in report.errors]
    found["warnings"] = [warning.as_record() for warning in report.warnings]
    if report.plan is not None:
        found["plan_id"], found["digest"] = report.plan.plan_id, plan_digest(report.plan)
        found["actions"] = len(report.plan.actions)
        found["waves"] = _waves({a.id: set(a.depends_on) for a in report.plan.actions})
    return found


def _waves(depends_on: dict[str, set[str]]) -> list[list[str]]:
    """The ids by dependency depth, in the plan's order."""
    depth: dict[str, int] = {}
    waves: list[list[str]] = []
    while len(depth) < len(depends_on):
        ready = [n for n, needs in depends_on.items() if n not in depth and needs <= depth.keys()]
        depth |= dict.fromkeys(ready, len(waves))
        waves.append(ready)
    return waves


def _print_waves(found: dict[str, Any]) -> None:
    from imlmesh.render import counted, say, write

    write(
        f"✔ {found['plan_id']}   {counted(found['actions'], 'action')}"
        f" · {counted(len(found['waves']), 'wave')} · fingerprint {found['digest'][:12]}"
    )
    if not settings.quiet:
        for number, wave in enumerate(found["waves"], 1):
            say(f"  wave {number}  {', '.join(wave)}")
