"""The verbs that decide whether a node may get work: cordon, drain, quarantine, release, remove.

The one rule: every decision has a reason, and what cannot be taken back asks for the node's name.
Deliberately absent: what the mesh itself decides; `node show` tells that.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from imlmesh.grammar import verb
from imlmesh.settings import settings

Name = Annotated[str, typer.Argument(metavar="NODE", help="Alias or id of the node.")]
Reason = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; people read it beside the node.")
]
For = Annotated[
    str | None,
    typer.Option("--for", metavar="TIME", help="Released by itself after 90s, 5m, 2h, 3d."),
]
_POLL_S = 0.5


def add_verbs(app: typer.Typer) -> None:
    """Put the verbs of this file into a noun."""
    for function, examples in _EXAMPLES.items():
        verb(app, examples)(function)


def cordon(node: Name, reason: Reason, span: For = None) -> None:
    """Give a node nothing new; what it has goes on."""
    _tell(_decide(node, "cordoned", reason, span))


def drain(
    node: Name,
    reason: Reason,
    span: For = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
) -> None:
    """Give a node nothing new and wait until what it has is done. Ctrl-C ends the wait alone."""
    found = _decide(node, "draining", reason, span)
    if not detach and not found["decision"]["drained"]:
        found |= _wait_drained(found)
    _tell(found)


def quarantine(node: Name, reason: Reason, span: For = None) -> None:
    """Stop trusting a node: nothing new, its leases end, and what it reports does not count.

    Repeatable work goes elsewhere or waits for its release. What may not be repeated becomes a
    question: imlmesh approval list
    """
    _tell(_decide(node, "quarantined", reason, span))


def release(
    node: Name,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why it may work again.")
    ] = "released",
) -> None:
    """End cordon, drain or quarantine: the node gets work again."""
    _tell(_decide(node, "open", reason, None))


def remove(
    node: Name,
    reason: Reason,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what it would mean.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for the name.")] = False,
) -> int | None:
    """Remove a node for good: its keys and certificates count no more, its session ends.

    Its id is never used again. Exit code 1 when the broker has not applied it yet: it is tried again
    until it has.
    """
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, say
    from imlmesh_protocol.errors import InputError, MeshError

    try:
        known: Mapping[str, Any] = Client.connect(settings.home).get(path_of("nodes", node))
    except MeshError as exc:
        if exc.code != "node.not_found":
            raise
        known = {"alias": node, "node": node, "live_dispatches": 0, "groups": []}
    alias = known["alias"] or known["node"]
    if dry_run:
        if not emit({"schema": "imlmesh.removal/1", **_loss(known)}):
            say("\n".join(["it would mean:", *_loss_lines(known)]))
        return None
    if not yes:
        say("\n".join(["this cannot be taken back:", *_loss_lines(known)]))
        if not sys.stdin.isatty() or input(f"type {alias} to remove it: ") != alias:
            hint = "type its name when asked, or add --yes"
            raise InputError("usage", f"{alias} was not removed", hint=hint)
    found = _decide(node, "revoked", reason, None)
    _tell(found)
    return 0 if found["broker"] is None or found["broker"]["enforced"] else 1


def grant(
    node: Name,
    profile: Annotated[
        str,
        typer.Argument(metavar="PROFILE", help="readonly, local_worker, power_user, unrestricted."),
    ],
) -> None:
    """Say how much a node may do at most. Its own policy.toml stays the ceiling."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, say, write

    body = {"profile": profile}
    found = Client.connect(settings.home).post(path_of("nodes", node, "profile"), body)
    if emit(found):
        return
    write(f"{found['alias']} may be {found['granted']}")
    say("  what its own policy.toml does not allow it still refuses")


def _decide(node: str, admission: str, reason: str, span: str | None) -> dict[str, Any]:
    from imlmesh.client import Client, path_of
    from imlmesh.spans import seconds_of

    body = {"admission": admission, "reason": reason}
    wanted = body | ({"for_ms": round((seconds_of(span) or 0) * 1_000)} if span else {})
    return dict(Client.connect(settings.home).post(path_of("nodes", node, "admission"), wanted))


def _wait_drained(found: Mapping[str, Any]) -> dict[str, Any]:
    from imlmesh.client import Client, path_of
    from imlmesh.render import say, try_line

    client, name = Client.connect(settings.home), found["alias"]
    shown = -1
    try:
        while True:
            now = client.get(path_of("nodes", found["node"]))
            if not now["live_dispatches"] or now["admission"] != "draining":
                return {"admission": now["admission"], "decision": now["decision"]}
            if now["live_dispatches"] != shown:
                shown = now["live_dispatches"]
                say(f"{name} still has {_dispatches(shown)}")
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        say(f"{name} goes on draining.   end that: " + try_line(f"node release {name}"))
        raise


def _tell(found: Mapping[str, Any]) -> None:
    from imlmesh.fleet import admission_line
    from imlmesh.render import emit, say, try_line, write

    if emit(found):
        return
    write(admission_line(found))
    broker = found["broker"]
    if broker is not None and not broker["enforced"]:
        what = "has not applied it" if not broker["applied"] else "still has its session"
        say(f"! the broker {what}; it is tried again.   see: " + try_line("status"))
    elif found["admission"] == "revoked":
        proved = "; its session at the broker has ended" if broker else ""
        say(f"  its keys and certificates count no more{proved}")
    if found["admission"] in ("cordoned", "draining", "quarantined"):
        say("  end that: " + try_line(f"node release {found['alias']}"))


def _loss(known: Mapping[str, Any]) -> dict[str, Any]:
    names = ("node", "alias", "live_dispatches", "groups")
    return {name: known[name] for name in names}


def _dispatches(number: int) -> str:
    return f"{number} dispatch{'es' * (number != 1)}"


def _loss_lines(known: Mapping[str, Any]) -> list[str]:
    groups = ", ".join(known["groups"]) or "none"
    live = _dispatches(known["live_dispatches"])
    return [
        f"  node {known['node']} leaves the mesh; that id is never used again",
        f"  it has {live}: repeatable work goes elsewhere, the rest becomes questions to you",
        f"  its groups: {groups}",
    ]


_EXAMPLES: dict[Callable[..., Any], str] = {
    grant: """\
imlmesh node grant pi-bed power_user
imlmesh node grant pi-bed readonly       at once, whatever its policy says""",
    cordon: """\
imlmesh node cordon pi-bed --reason "new wires on Monday"
imlmesh node cordon pi-bed --reason "new wires" --for 2h""",
    drain: """\
imlmesh node drain pi-bed --reason "moves to the shed"
imlmesh node drain pi-bed --reason "moves to the shed" --detach""",
    quarantine: """\
imlmesh node quarantine pi-bed --reason "its readings make no sense"
imlmesh node quarantine pi-bed --reason "odd" --for 1d""",
    release: """\
imlmesh node release pi-bed
imlmesh node release pi-bed --reason "a loose plug\"""",
    remove: """\
imlmesh node remove pi-bed --reason "stolen"
imlmesh node remove pi-bed --reason "stolen" --dry-run
imlmesh node remove pi-bed --reason "stolen" --yes""",
}
