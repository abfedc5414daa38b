"""`imlmesh memory`: values that actions of a session leave for later ones."""

from typing import Annotated

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings

app = noun(
    "See and change what plans remember.",
    """\
imlmesh memory list
imlmesh memory get last_watering
imlmesh memory set threshold 0.4 --session garden""",
)
Key = Annotated[str, typer.Argument(metavar="KEY", help="As in memory.read_keys of an action.")]
Session = Annotated[
    str | None,
    typer.Option(metavar="NAME", help='session_id of the plans that share it; else "default".'),
]


@verb(app, "imlmesh memory list\nimlmesh memory list --session garden", "list")
def list_entries(session: Session = None) -> None:
    """List keys, of all sessions or of one."""
    import time

    from imlmesh.client import Client
    from imlmesh.render import Column, duration, emit, say, write_table

    found = Client.connect(settings.home).get("memory", session=session)
    if emit(found, "entries"):
        return
    if not found["entries"]:
        say("nothing is remembered")
        return
    now_ms = time.time_ns() // 1_000_000
    columns = [
        Column("KEY"),
        Column("SESSION"),
        Column("BYTES", 2, right=True),
        Column("AGO", 1, right=True),
        Column("BY", 3),
    ]
    rows = [
        [e["key"], e["session"], str(e["size"]), duration(now_ms - e["at_ms"]), e["by"]]
        for e in found["entries"]
    ]
    write_table(columns, rows)


@verb(app, "imlmesh memory get last_watering\nimlmesh memory get last_watering -o json", "get")
def get_value(key: Key, session: Session = None) -> None:
    """Print a value: text as it is, anything else as JSON."""
    from imlmesh.client import Client, path_of
    from imlmesh.foreign import as_json
    from imlmesh.render import emit, write

    found = Client.connect(settings.home).get(path_of("memory", key), session=session)
    if not emit(found):
        value = found["value"]
        write(value if isinstance(value, str) else as_json(value, 2))


@verb(
    app,
    """\
imlmesh memory set threshold 0.4               a number
imlmesh memory set place '{"x": 1}'            an object
imlmesh memory set greeting hello              no JSON, so text
imlmesh memory set zip 01234 --text            text, whatever it looks like
imlmesh memory set frost -- -2.5               a value that begins with a dash""",
    "set",
)
def set_value(
    key: Key,
    value: Annotated[
        str, typer.Argument(metavar="VALUE", help="JSON; what is no JSON is taken as text.")
    ],
    text: Annotated[bool, typer.Option("--text", help="Take it as text in any case.")] = False,
    session: Session = None,
) -> None:
    """Write a value that plans of the session can read."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write
    from imlmesh.typed import json_or_text

    body = {"value": value if text else json_or_text(value)}
    found = Client.connect(settings.home).put(path_of("memory", key), body, session=session)
    if not emit(found):
        write(f"{found['key']} of session {found['session']}: {found['size']} bytes")


@verb(app, "imlmesh memory delete last_watering")
def delete(key: Key, session: Session = None) -> None:
    """Forget a value."""
    from imlmesh.client import Client, path_of
    from imlmesh.render import emit, write

    found = Client.connect(settings.home).delete(path_of("memory", key), session=session)
    if not emit(found):
        write(f"{found['key']} of session {found['session']}: deleted")
