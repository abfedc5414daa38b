"""`imlmesh node`: the machines of the mesh, here and elsewhere."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.admitting import add_verbs
from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "See, label, provision and run nodes.",
    """\
imlmesh node list
imlmesh node provision pi-bed        make the folder of a new node
imlmesh node run pi-bed              on the machine that has the folder
imlmesh node discover                who waits on this network
imlmesh node drain pi-bed --reason "it moves" """,
)
Name = Annotated[str, typer.Argument(metavar="NODE", help="Alias or id of the node.")]


@verb(app, "imlmesh node list\nimlmesh node list --json\nimlmesh node list --all", "list")
def list_nodes(
    removed: Annotated[bool, typer.Option("--all", help="Also those that were removed.")] = False,
) -> None:
    """List nodes; those that need attention come first."""
    from imlmesh.client import Client
    from imlmesh.fleet import print_nodes
    from imlmesh.render import emit, say, try_line

    found = Client.connect(settings.home).get("nodes")
    if emit(found, "nodes"):
        return
    if not found["nodes"]:
        say("no nodes yet.   try: " + try_line("node provision NAME"))
        return
    print_nodes([each for each in found["nodes"] if removed or each["admission"] != "revoked"])


@verb(app, "imlmesh node show pi-bed\nimlmesh node show pi-bed --actions")
def show(
    node: Name,
    actions: Annotated[
        bool, typer.Option("--actions", help="What it can do, with parameters.")
    ] = False,
) -> None:
    """Show one node: state, health, facts, groups, labels, modules."""
    from imlmesh.client import Client, path_of
    from imlmesh.fleet import print_actions, print_node
    from imlmesh.render import emit, write

    found = Client.connect(settings.home).get(path_of("nodes", node))
    if emit(found):
        return
    print_node(found)
    if actions:
        write()
        print_actions(found["actions"])


@verb(
    app,
    """\
imlmesh node judge --reason "the fuse of hall 2 blew\"""",
)
def judge(
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; it stands in the ledger.")
    ],
) -> None:
    """Say that the nodes that fell silent together are gone: each is called lost, its work moves.

    When most of a fleet is silent, imlmesh status shows an alarm and nobody is called lost, for what
    they share may have failed: a switch, or the broker. This is your word that it is not that.
    """
    from imlmesh.client import Client
    from imlmesh.render import counted, emit, write

    found = Client.connect(settings.home).post("silence", {"reason": reason})
    if not emit(found):
        write(f"{counted(found['nodes'], 'silent node')} will be called lost within a heartbeat")


@verb(
    app,
    """\
imlmesh node label pi-bed site=garden pins=3
imlmesh node label pi-bed site=             remove the label""",
)
def label(
    node: Name,
    labels: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="Labels to set.")],
) -> None:
    """Set labels, by which selectors of plans find a node; an empty value removes one."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write
    from imlmesh_protocol.errors import InputError

    wanted: dict[str, Any] = {}
    for text in labels:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError("usage", f"{text!r} is not NAME=VALUE")
        wanted[name] = _value(value)
    found = Client.connect(settings.home).post(path_of("nodes", node, "labels"), {"labels": wanted})
    if not emit({"schema": "imlmesh.node/1", **found}):
        shown = " ".join(f"{name}={value}" for name, value in sorted(found["labels"].items()))
        write(f"{found['alias'] or found['node']}: {shown or 'no labels'}")


def _value(text: str) -> str | int | float | None:
    """Numbers compare as numbers in selectors."""
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


add_verbs(app)


@verb(
    app,
    """\
imlmesh node provision pi-bed                             profile local_worker
imlmesh node provision pi-bed --profile readonly
imlmesh node provision pi-bed --no-broker                 finds the mesh of `up --lan` by itself
imlmesh node provision pi-bed --broker 192.168.1.20:8883  the address stands first
imlmesh node provision pi-bed --policy garden.policy.toml --out /tmp/pi-bed""",
)
def provision(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Id for ever, and first alias.")],
    profile: Annotated[
        str | None, typer.Option(help="readonly, local_worker, power_user or unrestricted.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The node's policy.toml; it names the profile."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; else ./NAME.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(metavar="ADDRESS:PORT", help="The broker, as the node reaches it.")
    ] = None,
    no_broker: Annotated[
        bool, typer.Option("--no-broker", help="No address: the node finds its mesh by mDNS.")
    ] = False,
) -> None:
    """Make the folder of a new node: its keys, its certificate, its policy.

    A node that was given an address of another computer asks mDNS, too, when that does not answer.
    """
    from imlmesh.client import Client
    from imlmesh.discovering import lan_addresses
    from imlmesh.mesh import let_in, open_mesh, policy_text
    from imlmesh.render import emit
    from imlmesh_node.joining import Place
    from imlmesh_protocol.errors import InputError

    if profile and policy:
        raise InputError("usage", "--profile and --policy exclude each other: the file names it")
    if broker and no_broker:
        raise InputError("usage", "--broker and --no-broker exclude each other")
    mesh = open_mesh(settings.home)
    address = None if no_broker else broker or mesh.broker_address
    folder = (out or Path(name)).absolute()
    level, text = policy_text(profile or "local_worker", policy)
    place = Place(
        mesh.authority.mesh,
        name,
        mesh.authority.orchestrator,
        (address,) if address else (),
        "" if address else next(iter(lan_addresses(mesh)), ""),
        mesh.timing,
    )
    let_in(Client.connect(settings.home), folder, place, level, text)
    record = {"node": name, "alias": name, "folder": str(folder), "profile": level}
    if not emit({"schema": "imlmesh.provisioned/1", **record}):
        _tell_provisioned(record, address)


def _tell_provisioned(record: dict[str, str], address: str | None) -> None:
    from imlmesh.render import say, write

    folder, level = record["folder"], record["profile"]
    write(folder)
    say(f"✔ node {record['node']}   profile {level}; the folder holds its keys: keep it private")
    found = "finds its mesh by mDNS, when that is up with --lan"
    say(f"  it {f'calls the broker at {address}' if address else found}")
    say(f"run it:  imlmesh node run {folder}")


@verb(
    app,
    """\
imlmesh node run pi-bed
imlmesh node run pi-bed --broker 192.168.1.20:8883    where mDNS does not reach
imlmesh node run pi-bed --simulate""",
    "run",
)
def run_node(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `node provision` made.")],
    broker: Annotated[
        str | None, typer.Option(metavar="ADDRESS:PORT", help="Try this address first.")
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Pins and buses of a simulated greenhouse.")
    ] = False,
) -> int | None:
    """Run the node of a folder in this process, until Ctrl-C.

    A folder without an address of a broker finds its mesh by mDNS: `imlmesh up --lan` announces it.

    With --simulate nothing of the machine is moved: temperature follows a day of 24 minutes, beds dry,
    and pin 17 waters them. Results say "factory": "mock".
    """
    from imlmesh_protocol.errors import InputError

    if not (folder / "mesh.toml").is_file():
        hint = "imlmesh node provision NAME makes one"
        raise InputError("config.invalid", f"{folder} is not the folder of a node", hint=hint)
    from imlmesh_node.main import start
    from imlmesh_runtime.logs import set_up_logs

    set_up_logs()
    if not settings.quiet:
        # A plain line: the agent's memory stays free of the libraries that draw tables.
        kind = "simulated node" if simulate else "node"
        print(f"{kind} of {folder}: Ctrl-C stops it; problems are told here", file=sys.stderr)
    return start(folder, broker, _tell, simulate=simulate)


def _tell(error: Any) -> None:
    """Why the mesh is not found, and what helps; with --quiet, too."""
    print(f"! {error.message} [{error.code}]\n  try:  {error.hint}", file=sys.stderr, flush=True)


@verb(
    app,
    """\
imlmesh node discover
imlmesh node discover --listen 30s -o json""",
)
def discover(
    listen: Annotated[
        str | None, typer.Option(metavar="TIME", help="For how long; else 3s.")
    ] = None,
) -> None:
    """List nodes on this network that run and look for their mesh, heard by mDNS.

    Says so when mDNS cannot work here, and what to use instead.
    """
    from imlmesh.discovering import print_waiting, waiting_nodes
    from imlmesh.render import emit
    from imlmesh.spans import seconds_of

    found = waiting_nodes(seconds_of(listen))
    if not emit(found, "nodes"):
        print_waiting(found["nodes"])
