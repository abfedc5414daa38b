"""`imlmesh event`: the stream of everything that happens on the mesh."""

from typing import Annotated, Any

import typer

from imlmesh.grammar import noun, verb
from imlmesh.settings import settings
from imlmesh.spans import seconds_of

_KINDS = ("change", "log", "progress", "source", "heartbeat", "refusal")

app = noun("Follow what happens on the mesh.", "imlmesh event tail\nimlmesh event tail -o jsonl")


@verb(
    app,
    """\
imlmesh event tail
imlmesh event tail --run r-12 --after 0   all of one run, from its beginning
imlmesh event tail --kind refusal         messages that were refused
imlmesh event tail --kind source          edges of pins, and what else nodes see by themselves""",
)
def tail(
    run: Annotated[str | None, typer.Option(help="Only this run; ends with it.")] = None,
    after: Annotated[
        int | None, typer.Option(min=0, help="Replay changes after this number.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help=f"Only {', '.join(_KINDS[:-1])} or {_KINDS[-1]}; may be repeated."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="Stop after 90s, 5m, 1h.")
    ] = None,
) -> None:
    """Print events as they happen, until Ctrl-C."""
    import asyncio
    import contextlib

    from imlmesh.client import Client
    from imlmesh_protocol.errors import InputError

    if unknown := sorted({*(kind or ())} - {*_KINDS}):
        # nothing would ever come
        text = f"{unknown[0]!r} is no kind of event; there are {', '.join(_KINDS)}"
        raise InputError("usage", text)

    async def follow() -> None:
        with contextlib.suppress(TimeoutError):
            async with (
                asyncio.timeout(seconds_of(timeout)),
                contextlib.aclosing(client.events(run=run, after=after)) as events,
            ):
                async for event in events:
                    if event.kind != "open" and (not kind or event.kind in kind):
                        _write_event(event)

    client = Client.connect(settings.home)
    asyncio.run(follow())


def _write_event(event: Any) -> None:
    from imlmesh.foreign import one_line
    from imlmesh.render import clock, console, emit_record, write

    data = event.data
    if settings.output != "table":
        emit_record(event.as_record(), line=True)
        return
    at = clock(data["at_ms"]) if "at_ms" in data else " " * 8
    number = "-" if event.seq is None else str(event.seq)
    name = data.get("kind", event.kind)
    write(f"{at} {number:>7} {name:<18} {one_line(_text(event.kind, data))}")
    console().file.flush()


def _text(kind: str, data: dict[str, Any]) -> str:
    if kind == "change":
        run = f"{data['run']} " if data.get("run") else ""
        return f"{run}{data['text']}"
    if kind == "refusal":
        origin = data.get("node") or data.get("topic") or "-"
        return f"{origin}: {data['code']}: {data['message']}"
    if kind == "heartbeat":
        return f"{data['node']} beat {data['beat']}"
    if kind == "source":
        values = " ".join(f"{name}={value}" for name, value in sorted(data["values"].items()))
        return f"{data['node']} {data['source']} {values}"
    if kind == "log":
        return f"{data['run']} {data['action']}@{data['node']} {data['line']}"
    if kind == "progress":
        share = "" if data["fraction"] is None else f"{data['fraction']:.0%} "
        return f"{data['run']} {data['action']}@{data['node']} {share}{data['message']}"
    return " ".join(str(value) for value in data.values())
