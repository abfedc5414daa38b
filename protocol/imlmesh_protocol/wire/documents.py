"""Signed documents of a mesh: `trust` (whom to believe) and `roster` (who is in), each with a version.

A document is an envelope without a receiver: msgpack [1, kind, key_id, body, signature] over the same
signing input, so it means the same wherever it lies. The root key signs `trust`, a roster key that
trust names signs `roster`. The one rule: signature first, and versions only rise. Deliberately
absent: files; `runtime/trust` keeps the newest.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from imlmesh_protocol.errors import ProtocolError, TrustError
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.limits import COUNT_MAX, DOCUMENT_BYTES, TRUST_CERTIFICATES, TRUST_KEYS
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.envelope import KEY_ID_BYTES, VERSION, signing_input

TRUST, ROSTER = "trust", "roster"
_KEY_BYTES = 32
#: what a roster says of a node: it takes part, or it never may again
STATUSES = ("active", "revoked")

#: (a word of STATUSES, the highest profile that is granted)
Standing = tuple[str, str]
FindKey = Callable[[bytes], VerifyKey | None]


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom a mesh believes. Certificates are DER, keys raw Ed25519; the newest of each stands first."""

    mesh: str
    version: int
    node_cas: tuple[bytes, ...]
    control_cas: tuple[bytes, ...]
    plan: tuple[bytes, ...]
    ledger: tuple[bytes, ...]
    roster: tuple[bytes, ...]

    @classmethod
    def open(cls, document: bytes, find_key: FindKey) -> Self:
        """From signed bytes; TrustError `signature.invalid`, `signature.unknown_key`, ProtocolError
        `message.invalid`."""
        body = _opened(TRUST, document, find_key)
        cas = [_blobs(body, name, TRUST_CERTIFICATES) for name in ("node_cas", "control_cas")]
        keys = [_blobs(body, name, TRUST_KEYS) for name in ("plan", "ledger", "roster")]
        if any(len(key) != _KEY_BYTES for each in keys for key in each):
            raise ProtocolError("message.invalid", "trust: a key is not of 32 bytes")
        made = cls(_name(body, "mesh"), _count(body, "version"), *cas, *keys)
        _end(TRUST, body)
        return made

    def sealed(self, sign: Callable[[bytes], bytes], key_id: bytes) -> bytes:
        """The signed bytes."""
        return _sealed(TRUST, {name: getattr(self, name) for name in self.__slots__}, sign, key_id)


@dataclass(frozen=True, slots=True)
class Roster:
    """Who is in a mesh at `at_ms` (mesh time). `nodes` maps an id to (a word of STATUSES, the profile
    that no message to that node may exceed); it travels as {status: {profile: [id, …]}}."""

    mesh: str
    version: int
    at_ms: int
    orchestrators: tuple[str, ...]
    nodes: Mapping[str, Standing]

    @classmethod
    def open(cls, document: bytes, find_key: FindKey) -> Self:
        """As `Trust.open`."""
        body = _opened(ROSTER, document, find_key)
        orchestrators = _names(body.pop("orchestrators", None))
        nodes = _standings(body.pop("nodes", None))
        counts = (_count(body, "version"), _count(body, "at_ms"))
        made = cls(_name(body, "mesh"), *counts, orchestrators, nodes)
        _end(ROSTER, body)
        return made

    def sealed(self, sign: Callable[[bytes], bytes], key_id: bytes) -> bytes:
        """The signed bytes; `message.too_large` when there are too many nodes for one message."""
        grouped: dict[str, dict[str, list[str]]] = {}
        for name, (status, profile) in sorted(self.nodes.items()):
            grouped.setdefault(status, {}).setdefault(profile, []).append(name)
        fields = {name: getattr(self, name) for name in self.__slots__} | {"nodes": grouped}
        return _sealed(ROSTER, fields, sign, key_id)


def root_hash(raw_root: bytes) -> str:
    """The SHA-256 of a root key as hex: what a join token pins; mDNS tells the first 8 of it."""
    return hashlib.sha256(raw_root).hexdigest()


def kind_of(document: bytes) -> str:
    """TRUST or ROSTER, as the document itself claims; `message.invalid`."""
    kind = str(_parts(document)[0])
    if kind not in (TRUST, ROSTER):
        raise ProtocolError("message.invalid", f"no document: {kind[:40]!r}")
    return kind


def _sealed(
    kind: str, fields: Mapping[str, Any], sign: Callable[[bytes], bytes], key_id: bytes
) -> bytes:
    return sign_body(kind, pack(dict(fields)), sign, key_id)


def sign_body(kind: str, body: bytes, sign: Callable[[bytes], bytes], key_id: bytes) -> bytes:
    """The document of a packed body; `message.too_large`."""
    document = pack([VERSION, kind, key_id, body, sign(signing_input(kind, body))])
    if len(document) > DOCUMENT_BYTES:
        raise ProtocolError("message.too_large", f"{kind} of {len(document)} bytes")
    return document


def _opened(kind: str, document: bytes, find_key: FindKey) -> dict[str, Any]:
    body = unpack(signed_body(kind, document, find_key))
    if type(body) is not dict:
        raise ProtocolError("message.invalid", f"{kind}: the body is not a map")
    return body


def signed_body(kind: str, document: bytes, find_key: FindKey) -> bytes:
    """The packed body of a document that a key of `find_key` signed; raises as `Trust.open`."""
    claimed, key_id, packed, signature = _parts(document)
    if claimed != kind:
        raise ProtocolError("message.kind", f"{str(claimed)[:40]!r} where {kind} is due")
    key = find_key(key_id)
    if key is None:
        raise TrustError("signature.unknown_key", f"{kind}: signed by a key that may not")
    try:
        key.verify(signing_input(kind, packed), signature)
    except CryptoError:
        raise TrustError("signature.invalid", f"{kind} is not signed") from None
    return packed


def own_body(document: bytes) -> bytes:
    """The packed body of a document that was believed before it was stored."""
    packed: bytes = _parts(document)[2]
    return packed


def _parts(document: bytes) -> tuple[Any, bytes, bytes, bytes]:
    parts = unpack(document)
    if type(parts) is not list or len(parts) != 5 or parts[0] != VERSION:
        raise ProtocolError("message.invalid", "not a document of this version")
    _, kind, key_id, packed, signature = parts
    blobs = (key_id, packed, signature)
    if any(type(blob) is not bytes for blob in blobs) or len(key_id) != KEY_ID_BYTES:
        raise ProtocolError("message.invalid", "not a document of this version")
    return kind, key_id, packed, signature


def _standings(value: Any) -> dict[str, Standing]:
    if type(value) is not dict or not all(type(each) is dict for each in value.values()):
        raise ProtocolError("message.invalid", "roster: nodes is not {status: {profile: [id]}}")
    found = [
        (name, (status, profile))
        for status, profiles in value.items()
        for profile, names in profiles.items()
        for name in _names(names)
    ]
    known = all(status in STATUSES and profile in PROFILES for _, (status, profile) in found)
    if not known or len(dict(found)) != len(found):
        text = "roster: an unknown status or profile, or an id that is in twice"
        raise ProtocolError("message.invalid", text)
    return dict(found)


def _names(value: Any) -> tuple[str, ...]:
    if type(value) is not list or not all(type(v) is str and NAME.fullmatch(v) for v in value):
        raise ProtocolError("message.invalid", "roster: not a list of ids")
    return tuple(value)


def _name(body: dict[str, Any], name: str) -> str:
    value = body.pop(name, None)
    if type(value) is not str or not NAME.fullmatch(value):
        raise ProtocolError("message.invalid", f"{name} is not a name")
    return value


def _count(body: dict[str, Any], name: str) -> int:
    value = body.pop(name, None)
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise ProtocolError("message.invalid", f"{name} is not a number from 0")
    return value


def _blobs(body: dict[str, Any], name: str, most: int) -> tuple[bytes, ...]:
    value = body.pop(name, None)
    if type(value) is not list or not 1 <= len(value) <= most:
        raise ProtocolError("message.invalid", f"trust: {name} has from 1 to {most} entries")
    if any(type(item) is not bytes for item in value):
        raise ProtocolError("message.invalid", f"trust: {name} holds something else than bytes")
    return tuple(value)


def _end(kind: str, body: Mapping[str, Any]) -> None:
    """Fields that nobody of this version understands may mean a restriction: refused."""
    if body:
        raise ProtocolError("message.invalid", f"{kind} has no field {next(iter(body))[:60]!r}")
