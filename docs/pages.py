"""Pages that are written from the code, so that they cannot drift: `--write` them or `--check`.

The one rule: a page is a function of what the packages say of themselves.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from imlmesh import offered, reference
from imlmesh_protocol import states
from imlmesh_protocol.errors import CODES
from imlmesh_protocol.limits import (
    BROKER_PACKET_BYTES,
    CLOCK_TOLERANCE_MS,
    MESSAGE_BYTES,
    MESSAGE_DEPTH,
    MESSAGE_EXPIRY_MS,
    MESSAGE_VALUES,
    TIME_LATE_PER_S,
)
from imlmesh_protocol.wire.dispatches import DISPATCH_FIELDS
from imlmesh_protocol.wire.messages import FIELDS
from imlmesh_protocol.wire.topics import (
    CHANNELS,
    KINDS,
    NAMED_CHANNELS,
    REFUSALS,
    Way,
    orchestrator_probe,
)

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

Every payload is the msgpack array `[1, kind, key_id, body, signature]`, its first three parts and the signature in
msgpack's shortest form:

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

#: (what must hold, the codes of what does not), in the order of the code
_UNSIGNED = (
    (
        "the topic is in the table above, it is the receiver's to read, and of its mesh",
        ("message.kind", "message.audience"),
    ),
    (
        "the broker had not kept it from before the subscription, unless it is a status",
        ("message.retained",),
    ),
    (
        "a node: the orchestrator has answered this session's nonce, unless this is that answer; the "
        "orchestrator: not too many heartbeats and readings wait",
        ("message.session", "link.full", "telemetry.rate"),
    ),
    (
        f"at most {MESSAGE_BYTES // 1024} KiB, the outer shape of an envelope, the topic's kind",
        ("message.too_large", "message.invalid", "message.kind"),
    ),
    ("the key is one that the sender may sign with", ("signature.unknown_key",)),
    ("the signature", ("signature.invalid",)),
)
_SIGNED = (
    ("the body is a map of what may travel, with the header's fields", ("message.invalid",)),
    (
        "`mesh` is ours; `aud` is the receiver, on `all` and `orchestrator` it is `*`; `iss` is the name "
        "in the topic, and to a node the orchestrator of its `mesh.toml`",
        ("message.audience", "signature.invalid"),
    ),
    (
        f"it lives {MESSAGE_EXPIRY_MS // 1_000} s at most, and `iat` - {CLOCK_TOLERANCE_MS // 1_000} s ≤ "
        "mesh time ≤ `exp`; time requests and their answers have no age, the nonce stands in for it",
        ("message.expired",),
    ),
    ("on the way down, the epoch is the highest that was met, or higher", ("message.epoch",)),
    (
        "(epoch or boot, session, seq) is above the last place of that sender; a time request that is not is "
        f"still answered, {TIME_LATE_PER_S * 60:.0f} times a minute at most, and has no other effect",
        ("message.replayed", "message.two_senders"),
    ),
    ("the fields are those of the kind, and make sense", ("message.invalid", "message.kind")),
)
_DISPATCHED = (
    ("(epoch, seq) is above the floor in the journal", ("message.epoch", "message.replayed")),
    ("it can be read as a dispatch", ("message.invalid",)),
    (
        "nothing of its id is in the journal: what is known is answered from there and never run again",
        ("dispatch.hash",),
    ),
    (
        "the node's own policy allows module, action, profile and params",
        ("action.unknown", "plan.effect", "driver.params", "policy.module", "policy.profile"),
    ),
    ("there is room for it, and for its result", ("node.full",)),
)

_REFUSED = f"""
What fails up to the signature is counted by code and answered to nobody: whoever can write to a broker can write
anything to any topic, so a bad signature on a node's topic changes nothing that is known of that node. What fails after it
was signed by the sender, but old and redirected messages can be brought by somebody else, so the orchestrator counts
against a node only what that node wrote to it, now: fields and sense.

What the broker itself does not carry comes to no receiver. Who sends a packet above {BROKER_PACKET_BYTES // 1024} KiB loses the
connection; under `imlmesh up` the broker's log is read, and the orchestrator counts it as `message.too_large` and shows it
with the client's name, a line a second at most, as the broker's word and so against no node. (Where somebody else runs the
broker, its log alone says so.) What is sent to a topic of somebody else is dropped.

A dispatch that is refused for itself is answered by a signed `reject` with the code. A whole `delegate` that is too old or
was seen before is not: its orchestrator sends the same dispatches again until they are accepted, and a repetition must
not end what runs. Each node tells all its counts in a signed event `{REFUSALS}`, once a second at most;
`imlmesh node show NODE` has both sides' counts (`-o json`: `refused.received`, `refused.sent`), `imlmesh status` and
`imlmesh event tail --kind refusal` those of the mesh.

A node's floor and the highest epoch are in its journal: the floor is stored in the commit that takes work which may not be
repeated, that refuses a dispatch, or that forgets a settled one; a new epoch is stored when it is met. After a crash the
answer to the first nonce comes with a higher place than everything that was recorded before.

A node that lost its journal while its clock stands back counts its boots from below. The answer to its time request names
the highest `boot` that the orchestrator took from it; the node stores the next number as its own, begins a new session with it
and asks again. Its birth then says that its journal began with that boot. A node that was heard in its present boot does not: there
a second machine uses its keys (`message.two_senders`). A start that the answer names and the node's journal does not know was of a
newer journal: the node then goes on like one that lost its own.

A node that refuses an older epoch asks for the time at once and names in `obeys` the epoch that it obeys, until an answer counts.
An orchestrator that hears a higher one than its own says so (`epoch.behind`) and changes nothing: it may have been replaced, and
one node's word must not move the epoch of all (`docs/ledger.md`).
"""


def acceptance() -> Iterator[str]:
    """How a receiver decides, with the code of every refusal."""
    yield "## Acceptance\n"
    yield "Every receiver checks in this order and stops at the first that does not hold.\n"
    number = 0
    for title, rows in (
        ("Of bytes that anybody may have sent", _UNSIGNED),
        ("Of what the sender signed", _SIGNED),
        ("Of each dispatch in a `delegate`, on the node", _DISPATCHED),
    ):
        yield f"| | {title} | else |\n|---|---|---|"
        for text, codes in rows:
            number += 1
            unknown = set(codes) - CODES.keys()
            if unknown:
                raise KeyError(f"no such code: {unknown}")
            yield f"| {number} | {text} | {', '.join(f'`{code}`' for code in codes)} |"
        yield ""
    yield (
        "Then intent and floor are committed, and only after that the `accept` leaves and a driver starts"
        " (`docs/adr/0002-repeatable-work-before-its-commit.md` has the one exception)."
    )
    yield _REFUSED


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
    probe = orchestrator_probe("<mesh>", "<id>")
    yield f"\nAn orchestrator writes to `{probe}` and reads it itself, to know whether the broker carries anything."
    yield "16 random bytes without an envelope: nobody else has a right there (`docs/liveness.md`)."
    yield _ENVELOPE
    yield from acceptance()
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
