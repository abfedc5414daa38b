"""Calls one action: a plan of one, its params typed by the action's schema, and its result.

The one rule: a call is a run as any other: checked, stored, gated, told by `run story`.
Deliberately absent: a way around any of it.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imlmesh.client import Client, path_of
from imlmesh.ending import end_lines
from imlmesh.exits import ExitCode
from imlmesh.foreign import as_json
from imlmesh.live import outcome, say_detached, say_late
from imlmesh.render import emit, say, try_line, write
from imlmesh.typed import json_or_text, typed
from imlmesh_protocol.errors import InputError, InputErrors, Place

_ID = "call"


def params_of(given: Sequence[str], whole: str | None, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The params object: `whole` (JSON, or @FILE with JSON) overlaid by NAME=VALUE words."""
    params = {} if whole is None else _whole(whole)
    known = schema.get("properties", {})
    named: set[str] = set()
    for word in given:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise InputError("usage", f"{word!r} is not PARAM=VALUE")
        if name in named:
            raise InputError("usage", f"{name!r} is given twice")
        named.add(name)
        params[name] = typed(text, known.get(name, {}))
    return params


def _whole(text: str) -> dict[str, Any]:
    if text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            place = Place(file=text[1:])
            raise InputError("plan.not_found", f"{text[1:]}: {exc}", place=place) from exc
    found = json_or_text(text)
    if not isinstance(found, dict):
        raise InputError("usage", "--params must be a JSON object, or @FILE with one")
    return found


def call(
    client: Client,
    module: str,
    action: str,
    fields: Mapping[str, Any],
    timeout_s: float | None,
) -> ExitCode:
    """Run the action with `fields` (params and targets) and print its result."""
    only = {"id": _ID, "module": module, "action": action, **fields}
    plan = {
        "protocol_version": "2.0",
        "plan_id": f"call-{module}-{action}",
        "description": f"One call of {module}.{action}",
        "actions": [only],
    }
    run = _submit(client, plan)
    try:
        asyncio.run(_follow(client, run, timeout_s))
    except TimeoutError:
        say_late(run)
        return ExitCode.TIMED_OUT
    except KeyboardInterrupt:
        say_detached(run)
        return ExitCode.INTERRUPTED
    ended = client.get(path_of("runs", run))
    _print(ended)
    return outcome(ended)


def _submit(client: Client, plan: Mapping[str, Any]) -> str:
    try:
        return str(client.post("runs", {"text": json.dumps(plan)})["run"])
    except InputErrors as exc:
        for error in exc.errors:
            # nobody has seen the text that the place is in
            error.place = None
        raise


async def _follow(client: Client, run: str, timeout_s: float | None) -> None:
    """Until the run ends; says on the way what waits for a person."""
    async with asyncio.timeout(timeout_s):
        async for event in client.events(run=run, after=0):
            if event.kind == "change" and event.data["kind"] == "approval-asked":
                say(f"? {event.data['text']}")
                say(
                    f"  answer: {try_line('approval answer ' + event.data['approval'] + ' OPTION')}"
                )


def _print(run: Mapping[str, Any]) -> None:
    called = run["actions"][0]
    names = ("state", "node", "node_alias", "result", "error", "duration_ms")
    record = {name: called[name] for name in names}
    if emit({"schema": "imlmesh.call/1", "run": run["run"], **record}):
        return
    if run["state"] != "completed":
        for line in end_lines(run):
            say(line)
        return
    result = called["result"]
    if not isinstance(result, dict):
        write(_text(result))
        return
    width = max(map(len, result), default=0)
    for name, value in result.items():
        write(f"{name:<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    return value.rstrip("\n") if isinstance(value, str) else as_json(value)
