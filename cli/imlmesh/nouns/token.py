"""`imlmesh token`: what lets nodes join without asking anybody."""

from typing import Annotated

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "Make tokens that let nodes join.",
    """\
imlmesh token create                             one machine, for an hour
imlmesh token create --uses 20 --ttl 30d --group cams
imlmesh token list
imlmesh token revoke t-1f2e3d4c""",
)


@verb(
    app,
    """\
imlmesh token create                             one machine, for an hour
imlmesh token create --uses 20 --ttl 30d --group cams
imlmesh token create --profile readonly
imlmesh token create -o json                     the text alone: .text""",
)
def create(
    uses: Annotated[int, typer.Option(metavar="N", help="How many machines may use it.")] = 1,
    ttl: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it is good; else 1h.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(metavar="GROUP", help="They belong to it; may be repeated.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="What nodes may do at most; else local_worker.")
    ] = "local_worker",
) -> None:
    """Make a token and print the line to paste on a new machine.

    Whoever has the line may join: give it to nobody else. It pins the root key of this mesh, so that
    no other mesh can take its place. Profiles above local_worker still wait for: imlmesh node approve.
    """
    from imlmesh.client import Client
    from imlmesh.render import emit, say, write
    from imlmesh.spans import seconds_of
    from imlmesh_orchestrator.views.telling import utc

    asked = {"uses": uses, "groups": group or [], "profile": profile}
    seconds = seconds_of(ttl)
    if seconds is not None:
        asked["ttl_ms"] = round(seconds * 1_000)
    made = Client.connect(settings.home).post("tokens", asked)
    if emit(made):
        return
    write(made["line"])
    count = "one machine" if uses == 1 else f"{uses} machines"
    groups = f"   groups: {', '.join(made['groups'])}" if made["groups"] else ""
    say(f"{count}, until {utc(made['expires_at_ms'])}   profile {made['profile']}{groups}")
    say("on it, with --service systemd runs the node from then on")


@verb(app, "imlmesh token list\nimlmesh token list --json", "list")
def list_tokens() -> None:
    """List tokens, also those that ended of late; the secrets are nowhere."""
    from imlmesh.client import Client
    from imlmesh.render import Column, emit, say, try_line, write_table
    from imlmesh_orchestrator.views.telling import utc

    found = Client.connect(settings.home).get("tokens")
    if emit(found, "tokens"):
        return
    if not found["tokens"]:
        say("no tokens.   try: " + try_line("token create"))
        return
    columns = [Column("TOKEN"), Column("STATE"), Column("USED", right=True), Column("UNTIL")]
    columns += [Column("PROFILE", 1), Column("GROUPS", 2), Column("BY", 3)]
    write_table(
        columns,
        [
            [
                each["token"],
                each["state"],
                f"{each['spent']}/{each['uses']}",
                utc(each["expires_at_ms"]),
                each["profile"],
                ", ".join(each["groups"]) or "-",
                each["by"],
            ]
            for each in found["tokens"]
        ],
    )


@verb(app, "imlmesh token revoke t-1f2e3d4c")
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id, as of `token list`.")],
) -> None:
    """End a token; nodes that it let in stay."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write

    found = Client.connect(settings.home).delete(path_of("tokens", token))
    if not emit(found):
        write(f"{found['token']} lets nobody in any more; it let in {found['spent']}")
