"""The body of each message kind: which fields it carries and what they hold.

The one rule: `FIELDS` is the protocol; the generated docs/PROTOCOL.md and the checks below read
it. A field that the table does not name is refused: an old receiver must not half-understand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.limits import COUNT_MAX, DISPATCH_ID_CHARS, SEAL_BYTES
from imlmesh_protocol.merkle import HASH_BYTES
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import check_values, pack, unpack_unchecked
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


def _count_or_none(value: Any) -> bool:
    return value is None or _count(value)


def _map(value: Any) -> bool:
    return type(value) is dict


def _any(value: Any) -> bool:
    return True


def _number_or_none(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _dispatch_id(value: Any) -> bool:
    # in ASCII a character is a byte: an answer that names as many ids as came still fits
    return type(value) is str and len(value) <= DISPATCH_ID_CHARS and value.isascii()


def _dispatch_ids(value: Any) -> bool:
    return type(value) is list and all(_dispatch_id(item) for item in value)


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
        type(item) is list and len(item) == 2 and _dispatch_id(item[0]) and type(item[1]) is bytes
        for item in value
    )


def _one_of(*words: str) -> Check:
    return lambda value: type(value) is str and value in words


def _fault(value: Any) -> bool:
    return type(value) is dict and _text(value.get("code")) and _text(value.get("message"))


_NUMBERS = frozenset({int, float})
_LISTS = {list}
OUTCOMES = ("completed", "failed", "timed_out", "cancelled", "unknown")


def _results(value: Any) -> bool:
    return type(value) is list and bool(value) and all(_result(item) for item in value)


def _result(item: Any) -> bool:
    return (
        type(item) is dict
        and _dispatch_id(item.get("id"))
        and type(item.get("hash")) is bytes
        and item.get("outcome") in OUTCOMES
        and _count(item.get("duration_ms"))
        and ("error" not in item if item["outcome"] == "completed" else _fault(item.get("error")))
    )


def _refusals(value: Any) -> bool:
    return type(value) is list and all(
        type(item) is dict and _dispatch_id(item.get("id")) and _fault(item) for item in value
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
            f"outcome is one of {', '.join(OUTCOMES)}",
        )
    },
    Kind.ACK: {
        "beat": Field(_count_or_none, "number of the heartbeat that this answers, or null"),
        "settled": Field(_dispatch_ids, "dispatch ids whose results are stored"),
    },
    Kind.COMMAND: {
        "do": Field(
            _one_of("cancel", "rebirth", "quarantine", "release", "trust", "roster", "seal"),
            "cancel, rebirth, quarantine, release, trust, roster, seal",
        ),
        "doc": Field(_bytes, "trust, roster: the signed document", False),
        "dispatches": Field(_dispatch_ids, "dispatch ids to cancel", False),
        "seal": Field(_seal, "seal: a signed head of the ledger", False),
        "from": Field(_count, "seal: the size that the proof leads from", False),
        "proof": Field(_hashes, "seal: hashes of the consistency proof, RFC 9162", False),
    },
    Kind.REQUEST: {
        "what": Field(_one_of("time", "inventory"), "time (from a node), inventory (to a node)"),
        "nonce": Field(_text, "made by the asker, comes back in the response"),
    },
    Kind.RESPONSE: {
        "what": Field(_one_of("time", "inventory"), "as in the request"),
        "nonce": Field(_text, "as in the request"),
        "at_ms": Field(_count, "time: the orchestrator's mesh time", False),
        "held": Field(_dispatch_ids, "inventory: dispatches accepted and not finished", False),
        "unsettled": Field(
            _dispatch_ids, "inventory: finished dispatches whose results are kept", False
        ),
    },
    Kind.EVENT: {
        "dispatch": Field(_dispatch_id, "the dispatch that it belongs to", False),
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
    },
    Kind.HEARTBEAT: {
        "beat": Field(_count, "rising number; the ack answers it"),
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


@dataclass(slots=True)
class Dispatch:
    """One attempt to run one action on one node, as it travels inside a delegate.

    Nobody changes one; it is not frozen because that would triple the time to make it.
    """

    id: str
    module: str
    action: str
    params: Mapping[str, Any]
    effect: Effect
    timeout_ms: int
    lease_ms: int
    when_cut_off: str  # "stop" or "finish"
    on_busy: str = "wait"
    claims: tuple[str, ...] = field(default=())


def encode_dispatch(
    id: str,
    module: str,
    action: str,
    params: Mapping[str, Any],
    effect: Effect,
    timeout_ms: int,
    lease_ms: int,
    when_cut_off: str,
    claims: tuple[str, ...] = (),
    on_busy: str = "wait",
) -> bytes:
    """The bin whose SHA-256 names exactly this attempt."""
    terms = encode_terms(
        module, action, effect, timeout_ms, lease_ms, when_cut_off, claims, on_busy
    )
    return encode_attempt(id, params, terms)


def encode_terms(
    module: str,
    action: str,
    effect: Effect,
    timeout_ms: int,
    lease_ms: int,
    when_cut_off: str,
    claims: tuple[str, ...],
    on_busy: str,
) -> bytes:
    """What a dispatch has in common with many, for `encode_attempt`: eight entries of its map."""
    entries = pack(
        {
            "module": module,
            "action": action,
            "effect": effect,
            "timeout_ms": timeout_ms,
            "lease_ms": lease_ms,
            "when_cut_off": when_cut_off,
            "on_busy": on_busy,
            "claims": claims,
        }
    )
    return entries[1:]


def encode_attempt(id: str, params: Mapping[str, Any], terms: bytes) -> bytes:
    """A dispatch: its own two entries, and its terms, which are encoded once for many."""
    return _ID + pack(id) + _PARAMS + pack(params) + terms


#: a map of ten entries begins, as the first byte of one of up to 15 says
_ID = b"\x8a" + pack("id")
_PARAMS = pack("params")
_EFFECTS = {str(effect): effect for effect in Effect}
_DISPATCH_TYPES: dict[str, type] = {
    "id": str,
    "module": str,
    "action": str,
    "params": dict,
    "effect": str,
    "timeout_ms": int,
    "lease_ms": int,
    "when_cut_off": str,
    "on_busy": str,
    "claims": list,
}
DISPATCH_FIELDS = tuple(_DISPATCH_TYPES)
_TYPES = list(_DISPATCH_TYPES.values())
_WORDS = {"when_cut_off": ("stop", "finish"), "on_busy": ("wait", "fail")}


def decode_dispatch(data: bytes) -> Dispatch:
    """Read one bin of a delegate; `message.invalid` when it is not a dispatch."""
    body = unpack_unchecked(data)
    if type(body) is not dict or body.keys() != _DISPATCH_TYPES.keys():
        raise ProtocolError("message.invalid", "not a dispatch")
    values = [body[name] for name in DISPATCH_FIELDS]
    # one comparison of lists: this is read 20,000 times a second
    if [type(value) for value in values] != _TYPES or not _fits(body):
        raise ProtocolError("message.invalid", f"a dispatch of wrong values: {body['id']!r:.120}")
    if body["params"]:
        check_values(body["params"], depth=1)
    values[4] = _EFFECTS[values[4]]
    values[9] = tuple(values[9])
    return Dispatch(*values)


def name_of_dispatch(data: bytes) -> str | None:
    """The id in a bin that `decode_dispatch` refuses, so that its sender can be told; None without."""
    try:
        body = unpack_unchecked(data)
    except ProtocolError:
        return None
    name = body.get("id") if type(body) is dict else None
    return name if _dispatch_id(name) else None


def _fits(body: dict[str, Any]) -> bool:
    return (
        body["effect"] in _EFFECTS
        and body["timeout_ms"] >= 0
        and body["lease_ms"] >= 0
        and body["when_cut_off"] in _WORDS["when_cut_off"]
        and body["on_busy"] in _WORDS["on_busy"]
        and all(type(claim) is str for claim in body["claims"])
    )
