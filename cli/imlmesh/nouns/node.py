"""`imlmesh node`: the machines of the mesh, here and elsewhere."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.admitting import add_verbs
from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "Let nodes join; see, label and run them.",
    """\
imlmesh node list
imlmesh node join mj1_x7QdPq...      on the new machine; `token create` prints the line
imlmesh node run pi-bed              on the machine that has the folder
imlmesh node discover                who waits to be let in
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
    if found["nodes"]:
        print_nodes([each for each in found["nodes"] if removed or each["admission"] != "revoked"])
    elif not found.get("never_here"):
        say("no nodes yet.   try: " + try_line("token create"))
    if never := found.get("never_here"):
        say(f"joined and never here: {', '.join(never)}   on it: imlmesh node run FOLDER")


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
imlmesh node join mj1_x7QdPq...                      the line of `imlmesh token create`
imlmesh node join mj1_x7QdPq... --service            and systemd runs it from then on
imlmesh node join @token.txt --name pi-bed           not seen by others in the list of processes
imlmesh node join --at 192.168.1.20:8766             without a token: a person compares a code
imlmesh node join mj1_x7QdPq... --policy garden.policy.toml --out /tmp/pi-bed""",
)
def join(
    token: Annotated[
        str | None, typer.Argument(metavar="[TOKEN]", help="What the owner made; or @FILE.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Where the mesh is; else it is looked for."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Id for ever; else this computer's name.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="readonly, local_worker, power_user or unrestricted.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The node's policy.toml; it names the profile."),
    ] = None,
    service: Annotated[
        bool, typer.Option("--service", help="Let systemd run it; needs root.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; else ./NAME.")
    ] = None,
) -> None:
    """Make this computer a node of a mesh; its keys are made here and never leave.

    May be repeated, whatever ended it. Without a token it shows a code and waits until the owner has
    compared it. A profile above local_worker waits for the owner, too.
    """
    from imlmesh.joining import Wanted, check_service, join_mesh
    from imlmesh.render import emit, say, write
    from imlmesh_protocol.errors import InputError

    if profile and policy:
        raise InputError("usage", "--profile and --policy exclude each other: the file names it")
    if service:
        check_service()
    record = join_mesh(Wanted(token, at, name, profile, policy, out))
    if service:
        from imlmesh.nouns.service import install

        install("node", Path(record["folder"]))
        return
    if emit({"schema": "imlmesh.joined/1", **record}):
        return
    write(record["folder"])
    again = "is in already" if record["before"] else f'is in mesh "{record["mesh"]}"'
    say(f"✔ node {record['node']} {again}; its folder holds its keys: keep it private")
    say(f"run it:  imlmesh node run {record['folder']}")


@verb(
    app,
    """\
imlmesh node approve pi-bed
imlmesh node approve 4KT-9QX                    by the code that it shows
imlmesh node approve pi-new --replaces pi-bed   it is called pi-bed from now on
imlmesh node approve pi-bed --profile readonly""",
)
def approve(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Id or code of a node that waits.")],
    replaces: Annotated[
        str | None, typer.Option(metavar="NODE", help="The gone node whose alias it takes over.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="What it may do at most; else what it asked for.")
    ] = None,
) -> None:
    """Let in a node that waits; compare its code first: `imlmesh node discover`."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write

    asked = {"replaces": replaces, "profile": profile}
    found = Client.connect(settings.home).post(path_of("joins", name, "approve"), asked)
    if not emit(found):
        shown = f", which shows {found['code']}," if found["code"] else ""
        write(f"{found['alias']}{shown} is in as {found['profile']}; it hears so in a few seconds")


@verb(app, "imlmesh node ignore pi-bed\nimlmesh node ignore 4KT-9QX")
def ignore(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Id or code of a node that waits.")],
) -> None:
    """Do not see a waiting node for a day; it is told, and ends."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write

    found = Client.connect(settings.home).post(path_of("joins", name, "ignore"), {})
    if not emit(found):
        write(f"{found['node']} is ignored for a day")


@verb(
    app,
    """\
imlmesh node run pi-bed
imlmesh node run pi-bed --broker 192.168.1.20:8883    where mDNS does not reach
imlmesh node run pi-bed --simulate""",
    "run",
)
def run_node(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `node join` made.")],
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
        hint = "imlmesh node join makes one"
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
imlmesh node discover --listen 30s -o json
imlmesh node discover --open 4m                let in whoever asks, until then""",
)
def discover(
    listen: Annotated[
        str | None, typer.Option(metavar="TIME", help="For how long; else 3s.")
    ] = None,
    door: Annotated[
        str | None,
        typer.Option("--open", metavar="TIME", help="Let in who asks, for at most 15m."),
    ] = None,
) -> None:
    """List nodes that wait to be let in, with their codes, and nodes that look for their mesh.

    Says so when mDNS cannot work here, and what to use instead. With --open whoever asks for no more
    than local_worker is let in without a look until the time is over or Ctrl-C; never for ever.
    """
    from imlmesh.discovering import hold_door_open, print_waiting, waiting_nodes
    from imlmesh.render import emit
    from imlmesh.spans import seconds_of

    seconds = seconds_of(door)
    if seconds is not None:
        hold_door_open(seconds)
        return
    found = waiting_nodes(seconds_of(listen))
    if not emit(found, "nodes"):
        print_waiting(found["nodes"])
