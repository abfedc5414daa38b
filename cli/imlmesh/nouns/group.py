"""`imlmesh group`: named sets of nodes that plans aim at."""

from typing import Annotated

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun("Name sets of nodes.", "imlmesh group set garden pi-bed pi-roof\nimlmesh group list")


@verb(app, "imlmesh group list\nimlmesh group list --json", "list")
def list_groups() -> None:
    """List groups and their nodes; groups with a missing node first."""
    from rich.text import Text

    from imlmesh.client import Client
    from imlmesh.render import MARKS, Column, emit, say, try_line, write_table

    found = Client.connect(settings.home).get("groups")
    if emit(found, "groups"):
        return
    if not found["groups"]:
        say("no groups yet.   try: " + try_line("group set garden NODE ..."))
        return
    rows = []
    for group in found["groups"]:
        online = sum(node["liveness"] == "online" for node in group["nodes"])
        members = Text()
        for node in group["nodes"]:
            shape, style = MARKS[node["liveness"]]
            members.append(f"{shape} {node['alias'] or node['node']}  ", style=style)
        rows.append((online - len(group["nodes"]), group["group"], online, members))
    rows.sort(key=lambda row: row[:2])
    columns = [Column("GROUP"), Column("ONLINE", right=True), Column("NODES", 1)]
    write_table(
        columns, [[name, f"{online}/{online - missing}", m] for missing, name, online, m in rows]
    )


@verb(
    app,
    """\
imlmesh group set garden pi-bed pi-roof   the group is these two from now on
imlmesh group set garden --none           remove the group""",
    "set",
)
def set_group(
    group: Annotated[str, typer.Argument(help="The group's name.")],
    nodes: Annotated[
        list[str] | None, typer.Argument(help="All its nodes, by alias or id.")
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Remove the group.")] = False,
) -> None:
    """Say which nodes a group has; a run that already uses it keeps the old ones."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write
    from imlmesh_protocol.errors import InputError

    if bool(nodes) == none:
        raise InputError("usage", "name the group's nodes, or --none to remove it")
    named = list(dict.fromkeys(nodes or ()))
    found = Client.connect(settings.home).put(path_of("groups", group), {"nodes": named})
    if not emit({"schema": "imlmesh.group/1", **found}):
        write(f"{group}: " + (", ".join(named) or "removed"))
