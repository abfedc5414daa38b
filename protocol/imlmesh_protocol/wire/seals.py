"""Seals: signed heads of the ledger, as they are stored, sent and named by nodes.

A seal is the msgpack array [1, "seal", key_id, body, signature], signed as an envelope is; its body
says of which mesh, how many entries, their Merkle root, when, and which losses were acknowledged.
The one rule: nothing of a seal is believed before its signature. Deliberately absent: whether it
follows from another one; that is `merkle.verify`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nacl.exceptions import CryptoError

from imlmesh_protocol.errors import ProtocolError, TrustError
from imlmesh_protocol.limits import COUNT_MAX, SEAL_BREAKS, SEAL_BYTES
from imlmesh_protocol.merkle import HASH_BYTES
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.documents import FindKey
from imlmesh_protocol.wire.envelope import VERSION, signing_input

KIND = "seal"
_NAMES = ("mesh", "size", "root", "at_ms", "breaks")
_FIELDS = frozenset(_NAMES)

#: (size, root) of a head
Head = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Seal:
    """`root` of the first `size` entries of the ledger of `mesh`; `breaks` are heads that a person
    gave up: a witness of one of them goes on from this seal without a proof."""

    mesh: str
    size: int
    root: bytes
    at_ms: int
    breaks: tuple[Head, ...] = ()

    @property
    def head(self) -> Head:
        return self.size, self.root


def write_seal(seal: Seal, key_id: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """The signed document."""
    body = pack(
        {
            "mesh": seal.mesh,
            "size": seal.size,
            "root": seal.root,
            "at_ms": seal.at_ms,
            "breaks": [list(head) for head in seal.breaks],
        }
    )
    return pack([VERSION, KIND, key_id, body, sign(signing_input(KIND, body))])


def read_seal(document: bytes, find_key: FindKey) -> Seal:
    """The seal of a document; TrustError `seal.invalid`."""
    try:
        parts = unpack(document, max_bytes=SEAL_BYTES)
        version, kind, key_id, body, signature = parts
        key = find_key(key_id) if type(key_id) is bytes else None
        if (version, kind) != (VERSION, KIND) or key is None:
            raise TrustError("seal.invalid", "not a seal by a ledger key of this mesh")
        key.verify(signing_input(KIND, body), signature)
        return _seal_of(unpack(body, max_bytes=SEAL_BYTES))
    except (CryptoError, ProtocolError, ValueError, TypeError) as exc:
        raise TrustError("seal.invalid", f"not a seal: {exc}"[:200]) from exc


def own_seal(document: bytes) -> Seal:
    """The seal of a document that was believed before it was stored; its key may be gone since."""
    return _seal_of(unpack(unpack(document)[3]))


def _seal_of(body: Any) -> Seal:
    """ValueError or TypeError for a body that is not of a seal."""
    if type(body) is not dict or body.keys() != _FIELDS:
        raise ValueError("the body is not of a seal")
    mesh, size, root, at_ms, breaks = (body[name] for name in _NAMES)
    if type(breaks) is not list or len(breaks) > SEAL_BREAKS:
        raise ValueError("the body is not of a seal")
    heads = [(each[0], each[1]) for each in breaks if type(each) is list and len(each) == 2]
    whole = type(mesh) is str and len(heads) == len(breaks) and _is_count(at_ms)
    if not whole or not all(map(_is_head, [(size, root), *heads])):
        raise ValueError("the body is not of a seal")
    return Seal(mesh, size, root, at_ms, tuple(heads))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= COUNT_MAX


def _is_head(head: tuple[Any, Any]) -> bool:
    return _is_count(head[0]) and type(head[1]) is bytes and len(head[1]) == HASH_BYTES
