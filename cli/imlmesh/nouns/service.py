"""`imlmesh service`: systemd runs a node or the orchestrator of this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

if TYPE_CHECKING:
    from imlmesh.machine import Deed, Machine
    from imlmesh.units import Kind

app = noun(
    "Let systemd run a node or the orchestrator: from the start of the machine, and again when it ends.",
    """\
imlmesh service install node pi-bed --dry-run    what it would do
sudo imlmesh service install node pi-bed         the folder that `node join` made
sudo imlmesh service install orchestrator
imlmesh service logs node -f""",
)
Which = Annotated[str, typer.Argument(metavar="node|orchestrator", help="Which service.")]
Root = Annotated[
    Path | None,
    typer.Option("--root", metavar="FOLDER", help="Another machine's files, as of an image."),
]
Broker = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS:PORT", help="Of the orchestrator; else its mesh's own."),
]
Join = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS:PORT", help="Where nodes join; else on this machine alone."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, do nothing.")]


@verb(
    app,
    """\
imlmesh service install orchestrator --dry-run       what it would do
sudo imlmesh service install node pi-bed             moves the folder and starts the node
sudo imlmesh service install node pi-bed --hardware  pins and buses too
sudo imlmesh service install orchestrator --broker 192.168.1.20:8884
sudo imlmesh service install orchestrator --lan      nodes of the network find and join it
sudo imlmesh service install orchestrator --join 192.168.1.20:8766   join there, unannounced
sudo imlmesh service install node pi-bed --root /mnt/image""",
)
def install(
    which: Which,
    folder: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Of a new node; it moves.")
    ] = None,
    hardware: Annotated[
        bool, typer.Option("--hardware", help="Open pins and buses to the node.")
    ] = False,
    broker: Broker = None,
    join: Join = None,
    lan: Annotated[
        bool, typer.Option("--lan", help="Tell the network by mDNS; join at all addresses.")
    ] = False,
    python: Annotated[
        str | None, typer.Option(metavar="FILE", help="The interpreter; else the one in use.")
    ] = None,
    root: Root = None,
    dry_run: DryRun = False,
) -> None:
    """Write the unit of a service for this installation, and start it.

    Makes what is missing: the users imlmesh and imlmesh-node, /var/lib/imlmesh, and for an
    orchestrator its mesh. May be repeated, for example after an update.
    """
    import sys

    import imlmesh_node
    from imlmesh.service import check_reach, install_node, install_orchestrator

    machine, kind = _machine(root), _kind(which)
    _check_words(
        kind, of_node=bool(folder or hardware), of_orchestrator=bool(broker or join or lan)
    )
    program = python or sys.executable
    if machine.is_this:
        check_reach(Path(program))
        if python is None:
            check_reach(Path(imlmesh_node.__file__))
    if kind == "node":
        deeds = install_node(
            machine, program, folder.resolve() if folder else None, hardware=hardware
        )
    else:
        deeds = install_orchestrator(machine, program, broker, join, lan=lan)
    _carry_out(machine, kind, deeds, dry_run, f"service install {kind}")
    if kind == "orchestrator" and not dry_run:
        _tell_broker(machine, broker)


def _check_words(kind: "Kind", *, of_node: bool, of_orchestrator: bool) -> None:
    from imlmesh_protocol.errors import InputError

    if kind == "orchestrator" and of_node:
        raise InputError("usage", "FOLDER and --hardware belong to a node")
    if kind == "node" and of_orchestrator:
        text = "--broker, --join and --lan belong to an orchestrator; mesh.toml says a node's"
        raise InputError("usage", text)


def _tell_broker(machine: "Machine", broker: str | None) -> None:
    from imlmesh.mesh import control_address
    from imlmesh.render import say
    from imlmesh.service import data_of
    from imlmesh_runtime.paths import Home

    address = broker or control_address(Home(data_of(machine, "orchestrator")))
    say(f"it calls the broker at {address}, a service of its own: docs/firmware.md")


@verb(app, "imlmesh service uninstall node --dry-run\nsudo imlmesh service uninstall node")
def uninstall(which: Which, root: Root = None, dry_run: DryRun = False) -> None:
    """Stop a service and remove its unit; data and users stay."""
    from imlmesh.render import say
    from imlmesh.service import data_of, uninstall

    machine, kind = _machine(root), _kind(which)
    deeds = uninstall(machine, kind)
    _carry_out(machine, kind, deeds, dry_run, f"service uninstall {kind}")
    if not deeds:
        say(f"no {kind} is installed as a service")
    say(f"its data stays in {data_of(machine, kind)}")


@verb(
    app,
    """\
imlmesh service logs                  of all services
imlmesh service logs node -f          and what comes
imlmesh service logs node -n 500 -o jsonl""",
)
def logs(
    which: Annotated[
        str, typer.Argument(metavar="[node|orchestrator]", help="Which service; else all.")
    ] = "",
    lines: Annotated[int, typer.Option("-n", "--lines", help="How many of the latest.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on, until Ctrl-C.")] = False,
    root: Root = None,
) -> None:
    """Show what services wrote into systemd's journal."""
    from imlmesh.render import console, emit_record, say, write
    from imlmesh.service import installed
    from imlmesh.service_logs import record_line, service_records
    from imlmesh.units import KINDS
    from imlmesh_protocol import limits
    from imlmesh_protocol.errors import InputError

    if not 0 < lines <= limits.SERVICE_LOG_LINES:
        raise InputError("usage", f"--lines must be 1 to {limits.SERVICE_LOG_LINES}")
    machine = _machine(root)
    kinds = [_kind(which)] if which else KINDS
    units = [unit for kind in kinds for unit in installed(machine, kind)]
    if not units:
        say(f"no {which or 'service'} is installed: imlmesh service install --help")
        return
    for record in service_records(machine, units, lines=lines, follow=follow):
        if settings.output == "table":
            write(record_line(record))
            # whoever follows through a pipe waits for it
            console().file.flush()
        else:
            emit_record({"schema": "imlmesh.service-log/1", **record}, line=True)


def _kind(which: str) -> "Kind":
    from imlmesh.units import KINDS
    from imlmesh_protocol.errors import InputError

    for kind in KINDS:
        if which == kind:
            return kind
    raise InputError("usage", f"{which[:80]!r} is not node or orchestrator")


def _machine(root: Path | None) -> "Machine":
    from imlmesh.machine import THIS, Machine
    from imlmesh_protocol.errors import InputError

    if root is not None and not root.is_dir():
        raise InputError("usage", f"--root {root} is not a folder")
    return Machine(root.resolve() if root is not None else THIS)


def _carry_out(
    machine: "Machine", kind: "Kind", deeds: "list[Deed]", dry_run: bool, words: str
) -> None:
    """Do the deeds, or tell them; each is told when it is done."""
    import os
    import sys

    from imlmesh.render import emit, say, write
    from imlmesh_protocol.errors import InputError, MeshError

    lacks = machine.lacks()
    if not dry_run and deeds:
        if lacks:
            raise MeshError("service.no_systemd", lacks)
        if machine.is_this and os.geteuid() != 0:
            program = Path(sys.argv[0]).absolute()
            text = "only root installs and removes services"
            raise InputError("access.denied", text, hint=f"sudo {program} {words}")
    for deed in deeds:
        if not dry_run:
            deed.carry_out()
        if settings.output == "table":
            write(f"{'would' if dry_run else '✔'} {deed.text}")
    record: dict[str, Any] = {"service": kind, "done": not dry_run, "systemd": lacks is None}
    emit({"schema": "imlmesh.service/1", **record, "deeds": [deed.text for deed in deeds]})
    if dry_run and lacks:
        say(f"! {lacks}: nothing would start")
