"""Pages that are written from the code, so that they cannot drift: `--write` them or `--check`.

The one rule: a page is a function of what the packages say of themselves.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from imlmesh import offered, reference
from imlmesh_protocol import states
from imlmesh_protocol.errors import CODES
from imlmesh_protocol.limits import MESSAGE_BYTES, MESSAGE_DEPTH, MESSAGE_VALUES
from imlmesh_protocol.wire.messages import DISPATCH_FIELDS, FIELDS
from imlmesh_protocol.wire.topics import CHANNELS, KINDS, NAMED_CHANNELS, Way

HERE = Path(__file__).parent

_WAY = {
    Way.TO: ("`imlmesh/1/<mesh>/to/<node>/<kind>`", "the orchestrator", "that node"),
    Way.FROM: ("`imlmesh/1/<mesh>/from/<node>/<kind>`", "that node", "the orchestrator"),
    Way.ALL: ("`imlmesh/1/<mesh>/all/<kind>`", "the orchestrator", "every node"),
    Way.ORCHESTRATOR: (
        "`imlmesh/1/<mesh>/orchestrator/<id>/status`",
        "that orchestrator",
        "every node",
    ),
}

_ENVELOPE = f"""
## Envelope

Every payload is the msgpack array `[1, kind, key_id, body, signature]`:

- `kind`: the last part of the topic (before an event's channel), as text;
- `key_id`: the first 8 bytes of the SHA-256 of the raw public key;
- `body`: a msgpack map, as bytes;
- `signature`: Ed25519 over `"imlmesh1" ‖ u8 len(kind) ‖ kind ‖ u32 len(body) ‖ body`, big-endian.

The signature is verified over the bytes that came, before they are parsed. At most {MESSAGE_BYTES // 1024} KiB,
depth {MESSAGE_DEPTH}, {MESSAGE_VALUES:,} values; duplicate keys, NaN, extension types, keys that are not text and
trailing bytes are refused.

Every body holds `mesh`, `iss` (who wrote it), `aud` (a node, the orchestrator, or `*`), `id`, `iat` and `exp` (mesh time
in ms), `seq` (rising within a session), and `epoch` when it comes from an orchestrator, `boot` and `session` when it
comes from a node. A will has `exp` 0. What is not above the last place seen of its sender is refused
(`message.replayed`); heartbeats, telemetry and other events each count in a lane of their own.
"""


def protocol() -> Iterator[str]:
    """docs/PROTOCOL.md: topics, envelope, and the fields of every kind."""
    yield "# The wire protocol, version 1\n"
    yield "Written from the code by `docs/pages.py`; ids match `^[a-z0-9][a-z0-9_-]{0,62}$`.\n"
    yield "## Topics\n"
    yield "| topic | written by | read by | kinds |\n|---|---|---|---|"
    for way, (topic, writer, reader) in _WAY.items():
        yield f"| {topic} | {writer} | {reader} | {', '.join(sorted(KINDS[way]))} |"
    channels = ", ".join(
        [*sorted(CHANNELS), *(f"{name}/<name>" for name in sorted(NAMED_CHANNELS))]
    )
    yield f"\nAn event's topic ends in its channel: {channels}."
    yield _ENVELOPE
    yield "## Bodies\n"
    for kind in sorted(FIELDS):
        yield f"### {kind}\n"
        yield "| field | holds | |\n|---|---|---|"
        for name, field in FIELDS[kind].items():
            yield f"| `{name}` | {field.holds} | {'' if field.required else 'optional'} |"
        yield ""
    yield "## A dispatch\n"
    yield "Each entry of `delegate.dispatches` is a msgpack map with exactly the fields "
    yield ", ".join(f"`{name}`" for name in DISPATCH_FIELDS) + "."
    yield "\nThe SHA-256 of the entry names this attempt: accepts and results repeat it."


def error_codes() -> Iterator[str]:
    """docs/errors.md: every code, whose fault it is, and what to try."""
    yield "# Error codes\n"
    yield "Codes are stable; texts are not. `retry` says whether the same thing may work later.\n"
    yield "| code | fault of | retry | try |\n|---|---|---|---|"
    for code, known in sorted(CODES.items()):
        yield f"| `{code}` | {known.blame} | {'yes' if known.retry else 'no'} | {known.hint} |"


def state_tables() -> Iterator[str]:
    """docs/states.md: what can become what, drawn from the tables."""
    yield "# States\n"
    yield "Drawn from `protocol/imlmesh_protocol/states.py`; nothing else ever happens.\n"
    tables = {
        "Action": states.ACTION,
        "Run": states.RUN,
        "Dispatch": states.DISPATCH,
        "Node liveness": states.LIVENESS,
        "Node admission": states.ADMISSION,
        "Approval": states.APPROVAL,
    }
    for name, table in tables.items():
        yield f"## {name}\n\n```mermaid\nstateDiagram-v2"
        for old, following in table.items():
            for new in sorted(following):
                yield f"    {old} --> {new}"
            if not following:
                yield f"    {old} --> [*]"
        yield "```\n"


def command_line() -> Iterator[str]:
    """docs/cli.md: every verb, as its own help says."""
    yield reference.page()


PAGES: dict[str, Callable[[], Iterator[str]]] = {
    "PROTOCOL.md": protocol,
    "actions.md": offered.page,
    "cli.md": command_line,
    "errors.md": error_codes,
    "states.md": state_tables,
}


def main(argv: list[str]) -> int:
    """0 when all pages are current (or were written), 1 otherwise."""
    stale = []
    for name, page in PAGES.items():
        text = "\n".join(page()).rstrip() + "\n"
        place = HERE / name
        if place.exists() and place.read_text(encoding="utf-8") == text:
            continue
        if argv == ["--write"]:
            place.write_text(text, encoding="utf-8")
        else:
            stale.append(name)
    if stale:
        print(f"not current: {', '.join(stale)}; run: python docs/pages.py --write")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
