"""`imlmesh doctor`: whether what a mesh relies on is as it should be."""

from typing import Annotated

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun("Ask whether the broker keeps strangers out and nodes apart.", "imlmesh doctor broker")


@verb(
    app,
    """\
imlmesh doctor broker                                the broker of this home
imlmesh doctor broker --address 192.168.1.20:8883    another one; control at 192.168.1.20:8884
sudo -u imlmesh imlmesh doctor broker --home /var/lib/imlmesh    that of a service
imlmesh doctor broker -o json""",
)
def broker(
    address: Annotated[
        str | None, typer.Option(metavar="ADDRESS:PORT", help="Where nodes come in.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="ADDRESS:PORT", help="Where the orchestrator comes in.")
    ] = None,
) -> int:
    """Ask a running broker, any that speaks MQTT 3.1.1, what it lets through; no node is disturbed.

    Two nodes, probe-a and probe-b, get certificates of ten minutes that are revoked at the end, so
    it is asked where the keys of the mesh are. The exit code is 1 when a question failed.
    """
    import asyncio

    from rich.text import Text

    from imlmesh.exits import ExitCode
    from imlmesh.mesh import open_mesh
    from imlmesh.probing import places_of, probe_broker
    from imlmesh.render import MARKS, Column, emit, write_table

    mesh = open_mesh(settings.home)
    nodes, for_control = places_of(mesh, address, control)
    found = asyncio.run(probe_broker(mesh.authority, nodes, for_control))
    passed = all(one.passed for one in found)
    record = {
        "schema": "imlmesh.doctor/1",
        "passed": passed,
        "findings": [{"name": f.name, "passed": f.passed, "seen": f.seen} for f in found],
    }
    code = ExitCode.DONE if passed else ExitCode.FAILED
    if emit(record, "findings"):
        return code
    rows: list[list[str | Text]] = []
    for one in sorted(found, key=lambda one: one.passed):
        shape, style = MARKS["completed" if one.passed else "failed"]
        rows.append([Text(f"{shape} {'yes' if one.passed else 'no'}", style), one.name, one.seen])
    write_table([Column("PASSED"), Column("THE BROKER"), Column("SEEN", 1)], rows)
    return code
