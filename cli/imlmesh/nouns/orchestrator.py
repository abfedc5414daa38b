"""`imlmesh orchestrator`: the orchestrator alone, for who looks after broker and nodes."""

from typing import Annotated

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun("Run the orchestrator alone.", "imlmesh orchestrator run --home /var/lib/imlmesh")


@verb(
    app,
    """\
imlmesh orchestrator run
imlmesh orchestrator run --home /var/lib/imlmesh --broker 192.168.1.20:8884
imlmesh orchestrator run --join 0.0.0.0:8766         nodes of other machines may join
imlmesh orchestrator run --join 0.0.0.0:8766 --lan   and find it by mDNS""",
)
def run(
    broker: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS:PORT", help="The broker; else the one of `imlmesh up`."),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS:PORT", help="Where nodes join; else on this computer alone."),
    ] = None,
    lan: Annotated[bool, typer.Option("--lan", help="Tell the network by mDNS.")] = False,
) -> int:
    """Run the orchestrator of a home in this process, until Ctrl-C; its broker must run."""
    import os

    from imlmesh.mesh import open_mesh
    from imlmesh_orchestrator.main import main
    from imlmesh_runtime.paths import find_home

    home = find_home(settings.home, os.environ).root
    address = broker or open_mesh(home).control_address
    door = [*(["--join", join] if join else []), *(["--lan"] if lan else [])]
    return main(["--home", str(home), "--broker", address, *door])
