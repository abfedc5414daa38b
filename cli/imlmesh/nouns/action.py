"""`imlmesh action`: what the nodes can do, and doing one such thing now."""

from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings
from imlmesh.spans import Timeout, seconds_of

app = noun(
    "See what nodes can do, and call one action.",
    """\
imlmesh action list filesystem
imlmesh action show filesystem.read_file
imlmesh action call filesystem.read_file path=notes.txt --node pi-bed""",
)
Name = Annotated[
    str, typer.Argument(metavar="MODULE.ACTION", help="For example filesystem.read_file.")
]


@verb(app, "imlmesh action list\nimlmesh action list iot\nimlmesh action list -o jsonl", "list")
def list_actions(
    module: Annotated[
        str | None, typer.Argument(metavar="[MODULE]", help="Only of this module.")
    ] = None,
) -> None:
    """List the actions that the nodes of the mesh offer."""
    from imlmesh.client import Client
    from imlmesh.fleet import print_actions
    from imlmesh.render import emit, say

    found = Client.connect(settings.home).get("actions", module=module)
    if emit(found, "actions"):
        return
    if not found["actions"]:
        say("no node offers that" if module else "no node offers anything yet")
        return
    print_actions(found["actions"])


@verb(app, "imlmesh action show iot.digital_write")
def show(action: Name) -> None:
    """Show one action: its parameters, what it returns, its effect, what it needs, who has it."""
    from imlmesh.client import Client
    from imlmesh.fleet import print_action
    from imlmesh.render import emit

    found = Client.connect(settings.home).get(_path(action))
    if not emit(found):
        print_action(found)


@verb(
    app,
    """\
imlmesh action call os_exec.get_system_info
imlmesh action call filesystem.read_file path=notes.txt --node pi-bed
imlmesh action call iot.digital_write pin=17 value=1 --node pi-bed     risky ones ask first
imlmesh action call os_exec.run_command --params '{"command": ["uptime"]}' --group garden""",
)
def call(
    action: Name,
    params: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PARAM=VALUE...]", help="Typed as `action show` says."),
    ] = None,
    node: Annotated[str | None, typer.Option(help="On this node.")] = None,
    group: Annotated[str | None, typer.Option(help="On one node of this group.")] = None,
    selector: Annotated[
        str | None, typer.Option(help="On one node that this selector finds.")
    ] = None,
    whole: Annotated[
        str | None,
        typer.Option("--params", metavar="JSON|@FILE", help="All params, or the rest of them."),
    ] = None,
    timeout: Timeout = None,
) -> int:
    """Run one action now and print its result; a run as any other, of a plan of one."""
    from imlmesh.calling import call as call_action
    from imlmesh.calling import params_of
    from imlmesh.client import Client

    client = Client.connect(settings.home)
    offered = client.get(_path(action))
    fields: dict[str, Any] = {"params": params_of(params or (), whole, offered["params"])}
    targets = {"target_node": node, "target_group": group, "target_selector": selector}
    fields |= {name: target for name, target in targets.items() if target is not None}
    return call_action(client, offered["module"], offered["action"], fields, seconds_of(timeout))


def _path(action: str) -> str:
    from imlmesh.client import path_of
    from imlmesh_protocol.errors import InputError

    module, dot, name = action.partition(".")
    if not dot or not name:
        hint = "for example filesystem.read_file; all: imlmesh action list"
        raise InputError("usage", f"{action!r} is not MODULE.ACTION", hint=hint)
    return path_of("actions", module, name)
