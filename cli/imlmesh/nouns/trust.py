"""`imlmesh trust`: whom nodes believe, and how keys and CAs are replaced."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "See whom nodes trust; let keys and CAs roll over.",
    """\
imlmesh trust show
imlmesh trust rotate plan                   a new key beside the old one
imlmesh trust finish plan                   the new one alone, when nodes know it""",
)
What = Annotated[
    str, typer.Argument(metavar="WHAT", help="plan, ledger, roster, node-ca or control-ca.")
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The root key, when it was moved away; else ca/root.key."),
]


@verb(app, "imlmesh trust show\nimlmesh trust show -o json")
def show() -> None:
    """Show trust: its version, keys, CAs and their ends, and which nodes are behind."""
    from imlmesh.render import emit
    from imlmesh.trust import standing

    found = standing(settings.home)
    if not emit(found):
        _print(found)


@verb(
    app,
    """\
imlmesh trust rotate plan
imlmesh trust rotate node-ca --root /media/stick/root.key""",
)
def rotate(what: What, root: Root = None) -> None:
    """Make a new key or CA and let nodes know it beside the old one. Nothing relies on it yet, but
    that nodes get their next certificate from a new node CA, at once.

    May be given again whenever it was interrupted.
    """
    from imlmesh.render import emit, say, try_line
    from imlmesh.trust import rotate as begin

    found = begin(settings.home, what, root)
    if emit(found):
        return
    _print(found)
    _say_who_is_away(found)
    say(f"when no node is behind: {try_line(f'trust finish {what}')}")


@verb(
    app,
    """\
imlmesh trust finish plan
imlmesh trust finish node-ca --root /media/stick/root.key
imlmesh trust finish plan --anyway          although a node that is online is behind""",
)
def finish(
    what: What,
    root: Root = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Do not wait for nodes that are online.")
    ] = False,
) -> None:
    """Rely on the new key or CA alone; the old one is worth nothing from then on.

    Nodes that have not heard of the new one are named: they fetch trust at the join endpoint when
    they come back. May be given again whenever it was interrupted.
    """
    from imlmesh.render import emit, say
    from imlmesh.trust import finish as end

    found = end(settings.home, what, root, anyway=anyway)
    if emit(found):
        return
    for node in found["missed"]:
        say(f"! {node} has not heard of it; it fetches trust at the join endpoint")
    _print(found)
    _say_who_is_away(found)
    if what == "control-ca":
        say("  the broker shows its new certificate when it has started again")


def _say_who_is_away(found: dict[str, Any]) -> None:
    from imlmesh.render import say

    if not found["orchestrator"]:
        say("! no orchestrator runs for this home: it tells nodes when it starts")


def _print(found: dict[str, Any]) -> None:
    from imlmesh.render import Column, write, write_table

    root = found["root"]
    place = root["file"] or "moved away"
    write(f'trust of mesh "{found["mesh"]}": version {found["version"]}, root key {root["id"]}')
    write(f"the root key is {'in ' + place if root['file'] else place}")
    write()
    rows = []
    for key in (*found["keys"], *found["cas"]):
        rolling = key["what"] in found["under_way"]
        state = "in use" if key["signs"] else ("known" if rolling else "of the past")
        left = f"{key['days_left']}d" if "days_left" in key else ""
        rows.append([key["what"], key["id"], state, left])
    write_table(
        [Column("WHAT"), Column("ID"), Column("STATE"), Column("ENDS IN", right=True)], rows
    )
    if not found["nodes"]:
        return
    write()
    nodes = [
        [
            node["alias"],
            node["liveness"],
            "not heard" if node["version"] is None else str(node["version"]),
            "behind" if node["behind"] else "",
        ]
        for node in sorted(found["nodes"], key=lambda node: (not node["behind"], node["alias"]))
    ]
    columns = [Column("NODE"), Column("LIVENESS"), Column("TRUST", right=True), Column("")]
    write_table(columns, nodes)
