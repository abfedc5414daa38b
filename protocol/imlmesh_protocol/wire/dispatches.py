"""One attempt to run one action on one node, as the bytes that travel inside a delegate.

The one rule: the SHA-256 of these bytes names exactly this attempt. They are read with as few looks at
them as is safe: this happens 20,000 times a second.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.limits import DISPATCH_ID_CHARS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import check_values, pack, unpack_unchecked


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
    # packed at once for speed, as a list whose own head, one byte, is left out
    return _ID + pack((id, "params", params))[1:] + terms


#: a map of ten entries begins, as the first byte of one of up to 15 says
_ID = b"\x8a" + pack("id")
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
    return name if is_dispatch_id(name) else None


def _fits(body: dict[str, Any]) -> bool:
    return (
        body["effect"] in _EFFECTS
        and body["timeout_ms"] >= 0
        and body["lease_ms"] >= 0
        and body["when_cut_off"] in _WORDS["when_cut_off"]
        and body["on_busy"] in _WORDS["on_busy"]
        and all(type(claim) is str for claim in body["claims"])
    )


def is_dispatch_id(value: Any) -> bool:
    """Whether it may name a dispatch."""
    # in ASCII a character is a byte: an answer that names as many ids as came still fits
    return type(value) is str and len(value) <= DISPATCH_ID_CHARS and value.isascii()
