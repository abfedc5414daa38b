"""The body of each message kind: which fields it carries and what they hold.

The one rule: `FIELDS` is the protocol; the generated docs/PROTOCOL.md and the checks below read
it. A field that the table does not name is refused: an old receiver must not half-understand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.limits import (
    COUNT_MAX,
    RESULT_CHUNK_BYTES,
    RESULT_CHUNKS,
    SEAL_BYTES,
)
from imlmesh_protocol.merkle import HASH_BYTES
from imlmesh_protocol.wire.dispatches import is_dispatch_id
from imlmesh_protocol.wire.topics import Kind

Check = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a body: a check, and the words for the generated documentation."""

    check: Check
    holds: str
    required: bool = True


@dataclass(slots=True)
class Message:
    """A verified message. `term` is the epoch (down) or the boot (up), `session` 0 down."""

    kind: Kind
    iss: str
    aud: str
    id: str
    iat: int
    exp: int
    term: int
    session: int
    seq: int
    fields: dict[str, Any]
    channel: str = ""


def _text(value: Any) -> bool:
    return type(value) is str


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= COUNT_MAX


def _has_next(value: Any) -> bool:
    return _count(value) and value < COUNT_MAX


def _count_or_none(value: Any) -> bool:
    return value is None or _count(value)


def _map(value: Any) -> bool:
    return type(value) is dict


def _counts(value: Any) -> bool:
    return type(value) is dict and all(map(_count, value.values()))


def _any(value: Any) -> bool:
    return True


def _number_or_none(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _dispatch_ids(value: Any) -> bool:
    return type(value) is list and all(is_dispatch_id(item) for item in value)


def _readings(value: Any) -> bool:
    return type(value) is dict and all(_number_or_none(item) for item in value.values())


def _series(value: Any) -> bool:
    # all columns at once, by kinds: a message may carry a thousand readings of many metrics
    if type(value) is not dict or {*map(type, value.values())} != _LISTS:
        return False
    pairs = [*value.values()]
    if {*map(len, pairs)} != {2} or {*map(type, chain.from_iterable(pairs))} != _LISTS:
        return False
    times, values = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return (
        [*map(len, times)] == [*map(len, values)]
        and all(times)
        and {*map(type, chain.from_iterable(times))} == {int}
        and _NUMBERS.issuperset(map(type, chain.from_iterable(values)))
    )


def _texts(value: Any) -> bool:
    return type(value) is dict and all(map(_text, value.values()))


def _bytes(value: Any) -> bool:
    return type(value) is bytes


def _bins(value: Any) -> bool:
    return type(value) is list and bool(value) and all(type(item) is bytes for item in value)


def _seal(value: Any) -> bool:
    return type(value) is bytes and len(value) <= SEAL_BYTES


def _hashes(value: Any) -> bool:
    return type(value) is list and all(
        type(item) is bytes and len(item) == HASH_BYTES for item in value
    )


def _pairs(value: Any) -> bool:
    return type(value) is list and all(
        type(item) is list and len(item) == 2 and is_dispatch_id(item[0]) and type(item[1]) is bytes
        for item in value
    )


def _one_of(*words: str) -> Check:
    return lambda value: type(value) is str and value in words


def _fault(value: Any) -> bool:
    return type(value) is dict and _text(value.get("code")) and _text(value.get("message"))


_SHA256_BYTES = 32
_NUMBERS = frozenset({int, float})
_LISTS = {list}
OUTCOMES = ("completed", "failed", "timed_out", "cancelled", "unknown")


def _results(value: Any) -> bool:
    return type(value) is list and bool(value) and all(_result(item) for item in value)


def _result(item: Any) -> bool:
    return (
        type(item) is dict
        and is_dispatch_id(item.get("id"))
        and type(item.get("hash")) is bytes
        and item.get("outcome") in OUTCOMES
        and _count(item.get("duration_ms"))
        and ("error" not in item if item["outcome"] == "completed" else _fault(item.get("error")))
        and ("chunk" not in item or _chunk(item))
    )


def _chunk(item: dict[str, Any]) -> bool:
    chunk = item["chunk"]
    if type(chunk) is not dict or chunk.keys() != {"index", "count", "hash", "data"}:
        return False
    index, count, digest, data = (chunk[name] for name in ("index", "count", "hash", "data"))
    return (
        item["outcome"] == "completed"
        and "result" not in item
        and type(count) is int
        and 2 <= count <= RESULT_CHUNKS
        and type(index) is int
        and 0 <= index < count
        and type(digest) is bytes
        and len(digest) == _SHA256_BYTES
        and type(data) is bytes
        and 1 <= len(data) <= RESULT_CHUNK_BYTES
        # all but the last are full, so that everybody knows where each one lies
        and (index == count - 1 or len(data) == RESULT_CHUNK_BYTES)
    )


def _wants(value: Any) -> bool:
    return type(value) is list and all(
        type(item) is list and len(item) == 2 and is_dispatch_id(item[0]) and _count(item[1])
        for item in value
    )


def _refusals(value: Any) -> bool:
    return type(value) is list and all(
        type(item) is dict and is_dispatch_id(item.get("id")) and _fault(item) for item in value
    )


FIELDS: dict[Kind, Mapping[str, Field]] = {
    Kind.DELEGATE: {"dispatches": Field(_bins, "list of bin: encoded dispatches")},
    Kind.ACCEPT: {
        "dispatches": Field(_pairs, "list of [dispatch id, SHA-256 of the dispatch's bin]"),
        "started": Field(
            _dispatch_ids, "ids of accepted dispatches whose driver has started", False
        ),
    },
    Kind.REJECT: {"refusals": Field(_refusals, "list of {id, code, message}")},
    Kind.COMPLETE: {
        "results": Field(
            _results,
            "list of {id, hash, outcome, duration_ms, result} or {…, error {code, message}}; "
            f"outcome is one of {', '.join(OUTCOMES)}; in place of a large result chunk "
            "{index, count, hash, data}: a piece of its msgpack, and the SHA-256 of the whole",
        )
    },
    Kind.ACK: {
        "beat": Field(_count_or_none, "number of the heartbeat that this answers, or null"),
        "settled": Field(_dispatch_ids, "dispatch ids whose results are stored"),
        "wants": Field(
            _wants, "list of [dispatch id, index]: the chunk of its result that comes next", False
        ),
    },
    Kind.COMMAND: {
        "do": Field(
            _one_of(
                "cancel", "rebirth", "quarantine", "release", "trust", "roster", "seal", "permit"
            ),
            "cancel, rebirth, quarantine, release, trust, roster, seal, permit",
        ),
        "doc": Field(_bytes, "trust, roster, permit: the signed document", False),
        "drop": Field(_dispatch_ids, "permit: ids of those that hold no more", False),
        "dispatches": Field(_dispatch_ids, "dispatch ids to cancel", False),
        "seal": Field(_seal, "seal: a signed head of the ledger", False),
        "from": Field(_count, "seal: the size that the proof leads from", False),
        "proof": Field(_hashes, "seal: hashes of the consistency proof, RFC 9162", False),
    },
    Kind.REQUEST: {
        "what": Field(_one_of("time", "inventory"), "time (from a node), inventory (to a node)"),
        "nonce": Field(_text, "made by the asker, comes back in the response"),
        "obeys": Field(
            _count,
            "time, once the node refused what an older epoch said: the epoch that it obeys",
            False,
        ),
    },
    Kind.RESPONSE: {
        "what": Field(_one_of("time", "inventory"), "as in the request"),
        "nonce": Field(_text, "as in the request"),
        "at_ms": Field(_count, "time: the orchestrator's mesh time", False),
        "boot": Field(
            _has_next,
            "time, to another start of the node than the one heard last: that one's boot, which the "
            "node's must exceed; a journal that began later forgot what was before",
            False,
        ),
        "held": Field(_dispatch_ids, "inventory: dispatches accepted and not finished", False),
        "unsettled": Field(
            _dispatch_ids, "inventory: finished dispatches whose results are kept", False
        ),
    },
    Kind.EVENT: {
        "dispatch": Field(is_dispatch_id, "the dispatch that it belongs to", False),
        "line": Field(_text, "log: one line", False),
        "stream": Field(_text, "log: stdout, stderr or log", False),
        "fraction": Field(_number_or_none, "progress: 0..1, or null when unknown", False),
        "message": Field(_text, "progress: what is being done", False),
        "values": Field(_map, "telemetry/refusals, source: name to value", False),
        "readings": Field(
            _series, "telemetry: metric to [[mesh time in ms, …], [number, …]]", False
        ),
        "units": Field(_texts, "telemetry: metric to unit, where there is one", False),
    },
    Kind.STATUS: {
        "state": Field(_one_of("online", "offline", "gone"), "gone is the broker's word: a will"),
        "manifest": Field(_any, "birth: what the node can do", False),
        "facts": Field(_map, "birth: os, arch, cpu, memory_mb, …", False),
        "profile": Field(_text, "birth: the ceiling of the node's policy", False),
        "heartbeat_ms": Field(_count, "birth: how often it beats", False),
        "lost_ms": Field(_count, "birth: silence after which it counts as lost", False),
        "trust": Field(_count, "birth: version of the trust that the node holds", False),
        "roster": Field(_count, "birth: version of the roster that it holds, 0 without one", False),
        "permits": Field(
            _counts, "birth: the permits that it holds, and how often each has run", False
        ),
        "journal_since": Field(
            _count, "birth: the boot that began its journal; what it held before is lost", False
        ),
    },
    Kind.ESCALATE: {
        "code": Field(_text, "what the node asks a person about, as a code"),
        "message": Field(_text, "the same in words"),
    },
    Kind.HEARTBEAT: {
        "beat": Field(
            _count,
            "number that the ack answers; it rises once it was answered, until then the same beat comes again",
        ),
        "held": Field(_dispatch_ids, "dispatches whose leases this beat renews"),
        "health": Field(
            _readings, "cpu_percent, memory_percent, disk_percent, temperature_c, load"
        ),
        "seal": Field(_seal, "the last seal that this node witnessed, as it was signed", False),
    },
}


def check_fields(kind: Kind, fields: Mapping[str, Any]) -> None:
    """Refuse a body whose own fields are not those of its kind: `message.invalid`."""
    table = FIELDS[kind]
    for name in fields:
        if name not in table:
            raise ProtocolError("message.invalid", f"{kind} has no field {name[:60]!r}")
    for name, entry in table.items():
        if name not in fields:
            if entry.required:
                raise ProtocolError("message.invalid", f"{kind} lacks {name!r}")
        elif not entry.check(fields[name]):
            raise ProtocolError("message.invalid", f"{kind}.{name} does not hold: {entry.holds}")
