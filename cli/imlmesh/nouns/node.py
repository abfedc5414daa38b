"""`imlmesh node`: the machines of the mesh, here and elsewhere."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "See, label, provision and run nodes.",
    """\
imlmesh node list
imlmesh node provision pi-bed        make the folder of a new node
imlmesh node run pi-bed              on the machine that has the folder""",
)
Name = Annotated[str, typer.Argument(metavar="NODE", help="Alias or id of the node.")]


@verb(app, "imlmesh node list\nimlmesh node list --json", "list")
def list_nodes() -> None:
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
    print_nodes(found["nodes"])


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


@verb(
    app,
    """\
imlmesh node provision pi-bed                             profile local_worker
imlmesh node provision pi-bed --profile readonly
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
) -> None:
    """Make the folder of a new node: its keys, its certificate, its policy."""
    from imlmesh.mesh import open_mesh, policy_text
    from imlmesh.render import emit, say, write
    from imlmesh_protocol.errors import InputError

    if profile and policy:
        raise InputError("usage", "--profile and --policy exclude each other: the file names it")
    mesh = open_mesh(settings.home)
    folder = (out or Path(name)).absolute()
    level, text = policy_text(profile or "local_worker", policy)
    made = mesh.authority.provision(
        name,
        folder,
        brokers=(broker or mesh.broker_address,),
        timing=mesh.timing,
        policy_text=text,
        profile=level,
    )
    record = {"node": made.id, "alias": made.alias, "folder": str(folder), "profile": level}
    if emit({"schema": "imlmesh.provisioned/1", **record}):
        return
    write(str(folder))
    say(f"✔ node {made.id}   profile {level}; the folder holds its keys: keep it private")
    say(f"  it calls the broker at {broker or mesh.broker_address}")
    say(f"run it:  imlmesh node run {folder}")


@verb(app, "imlmesh node run pi-bed\nimlmesh node run pi-bed --simulate", "run")
def run_node(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `node provision` made.")],
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Pins and buses of a simulated greenhouse.")
    ] = False,
) -> int | None:
    """Run the node of a folder in this process, until Ctrl-C.

    With --simulate nothing of the machine is moved: temperature follows a day of 24 minutes, beds dry,
    and pin 17 waters them. Results say "factory": "mock".
    """
    from imlmesh_protocol.errors import InputError

    if not (folder / "mesh.toml").is_file():
        hint = "imlmesh node provision NAME makes one"
        raise InputError("config.invalid", f"{folder} is not the folder of a node", hint=hint)
    from imlmesh_node.main import main

    if not settings.quiet:
        # A plain line: the agent's memory stays free of the libraries that draw tables.
        kind = "simulated node" if simulate else "node"
        print(f"{kind} of {folder}: Ctrl-C stops it; problems are told here", file=sys.stderr)
    return main([str(folder), *(["--simulate"] if simulate else [])])
