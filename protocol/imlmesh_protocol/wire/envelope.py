"""Signed envelopes: bytes in, a believed message out, and the way back.

An envelope is the msgpack array [1, kind, key_id, body, signature]; the signature is Ed25519 over
"imlmesh1" ‖ u8 len(kind) ‖ kind ‖ u32 len(body) ‖ body, exactly the bytes that travel.
The one rule: signature, then parse, then audience, age and order; nothing is believed earlier.
Deliberately absent: keys from files and clocks; the caller brings both.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from imlmesh_protocol.errors import ProtocolError, TrustError
from imlmesh_protocol.limits import CLOCK_TOLERANCE_MS, COUNT_MAX, MESSAGE_BYTES
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.messages import Message, check_fields
from imlmesh_protocol.wire.topics import Kind, Topic, Way, is_telemetry

VERSION = 1
KEY_ID_BYTES = 8
_DOMAIN = b"imlmesh1"
# heartbeats may wait behind other messages, and events at QoS 0 may overtake those at QoS 1;
# telemetry waits behind everything
_OWN_LANE = frozenset({Kind.HEARTBEAT, Kind.EVENT})
_TELEMETRY_LANE = "telemetry"
_TEXTS = ("mesh", "iss", "aud", "id")
_COUNTS = ("iat", "exp", "seq")
#: the header's counts by direction: those of all, then who speaks for how long
_COUNTS_OF = {
    way: (*_COUNTS, *(("boot", "session") if way is Way.FROM else ("epoch",))) for way in Way
}


def signing_input(kind: str, body: bytes) -> bytes:
    """What is signed: the kind is bound to the body, so neither can be swapped."""
    name = kind.encode()
    return b"".join((_DOMAIN, bytes((len(name),)), name, struct.pack(">I", len(body)), body))


class Sealer:
    """Makes envelopes of one sender. Orchestrators pass the epoch as `term`, nodes their boot."""

    def __init__(
        self, sign: Callable[[bytes], bytes], key_id: bytes, mesh: str, iss: str, way: Way
    ) -> None:
        self._sign = sign
        self._key_id = key_id
        self._mesh = mesh
        self._iss = iss
        self._up = way is Way.FROM
        self.term = 0
        self.session = 0
        self._seq = 0

    def sign_with(self, sign: Callable[[bytes], bytes], key_id: bytes) -> None:
        """Every message from now on is signed by another key of the sender."""
        self._sign, self._key_id = sign, key_id

    def new_session(self, term: int, session: int) -> None:
        """Every message from now on belongs to this epoch or boot, and session."""
        self.term, self.session = term, session

    def seal(
        self, kind: Kind, aud: str, fields: Mapping[str, Any], now_ms: int, lifetime_ms: int
    ) -> bytes:
        """One signed message; `lifetime_ms` 0 means that it has no expiry (wills)."""
        self._seq += 1
        body: dict[str, Any] = {
            "mesh": self._mesh,
            "iss": self._iss,
            "aud": aud,
            "id": f"{self._iss}.{self.term}.{self.session}.{self._seq}",
            "iat": now_ms,
            "exp": now_ms + lifetime_ms if lifetime_ms else 0,
            "seq": self._seq,
        }
        if self._up:
            body["boot"], body["session"] = self.term, self.session
        else:
            body["epoch"] = self.term
        body.update(fields)
        packed = pack(body)
        envelope = pack(
            [VERSION, str(kind), self._key_id, packed, self._sign(signing_input(kind, packed))]
        )
        if len(envelope) > MESSAGE_BYTES:
            raise ProtocolError("message.too_large", f"{kind} of {len(envelope)} bytes")
        return envelope


class Opener:
    """Opens what comes to one receiver and remembers how far each sender has counted.

    `find_key(key_id, iss)` returns the public key that `iss` may sign with, or None.
    """

    def __init__(
        self, mesh: str, me: str, find_key: Callable[[bytes, str], VerifyKey | None]
    ) -> None:
        self._mesh = mesh
        self._me = me
        self._find_key = find_key
        #: (sender, lane) → (term, session, seq) of the last message taken
        self.floors: dict[tuple[str, str], tuple[int, int, int]] = {}

    def open(self, topic: Topic, envelope: bytes, now_ms: int | None) -> Message:
        """A believed message. `now_ms` None skips age: first contact, where a nonce stands in."""
        kind, key_id, packed, signature = _outer(topic, envelope)
        key = self._find_key(key_id, topic.name)
        if key is None:
            raise TrustError("signature.unknown_key", f"{topic.name}: no such key is enrolled")
        try:
            key.verify(signing_input(kind, packed), signature)
        except CryptoError:
            raise TrustError("signature.invalid", f"{topic.name}: {kind} is not signed") from None
        message = _inner(topic, kind, packed)
        self._check_way(topic, message, now_ms)
        return message

    def _check_way(self, topic: Topic, message: Message, now_ms: int | None) -> None:
        if topic.mesh != self._mesh or message.aud not in (self._me, "*"):
            raise ProtocolError("message.audience", f"{message.id[:80]} is for {message.aud[:80]}")
        if topic.way in (Way.FROM, Way.ORCHESTRATOR) and message.iss != topic.name:
            raise TrustError("signature.invalid", f"{message.iss[:80]} wrote as {topic.name}")
        if not message.exp:
            if message.fields.get("state") != "gone":
                raise ProtocolError("message.invalid", "only a will may lack an expiry")
            return
        if now_ms is not None:
            if message.exp < now_ms:
                raise ProtocolError(
                    "message.expired", f"{message.id[:80]}: {now_ms - message.exp} ms too late"
                )
            if message.iat > now_ms + CLOCK_TOLERANCE_MS:
                raise ProtocolError(
                    "message.expired", f"{message.id[:80]}: from {message.iat - now_ms} ms ahead"
                )
        self._check_order(message)

    def _check_order(self, message: Message) -> None:
        lane: str = message.kind if message.kind in _OWN_LANE else ""
        if is_telemetry(message.channel):
            lane = _TELEMETRY_LANE
        place = (message.term, message.session, message.seq)
        if place <= self.floors.get((message.iss, lane), (0, 0, 0)):
            raise ProtocolError("message.replayed", f"{message.id[:80]} was seen or overtaken")
        self.floors[message.iss, lane] = place


def _outer(topic: Topic, envelope: bytes) -> tuple[Kind, bytes, bytes, bytes]:
    parts = unpack(envelope)
    if type(parts) is not list or len(parts) != 5 or parts[0] != VERSION:
        raise ProtocolError("message.invalid", "not an envelope of this version")
    _, kind, key_id, packed, signature = parts
    if kind != topic.kind:
        raise ProtocolError("message.kind", f"{str(kind)[:40]!r} on a topic of {topic.kind}")
    if (
        type(key_id) is not bytes
        or len(key_id) != KEY_ID_BYTES
        or type(packed) is not bytes
        or type(signature) is not bytes
    ):
        raise ProtocolError("message.invalid", "not an envelope of this version")
    return topic.kind, key_id, packed, signature


def _inner(topic: Topic, kind: Kind, packed: bytes) -> Message:
    body = unpack(packed)
    if type(body) is not dict:
        raise ProtocolError("message.invalid", "the body is not a map")
    mesh, iss, aud, id = (_text(body, name) for name in _TEXTS)
    iat, exp, seq, term, *session = [_count(body, name) for name in _COUNTS_OF[topic.way]]
    if mesh != topic.mesh:
        raise ProtocolError("message.audience", f"of mesh {mesh[:80]!r}")
    check_fields(kind, body)
    return Message(
        kind=kind,
        iss=iss,
        aud=aud,
        id=id,
        iat=iat,
        exp=exp,
        term=term,
        session=session[0] if session else 0,
        seq=seq,
        fields=body,
        channel=topic.channel,
    )


def _text(body: dict[str, Any], name: str) -> str:
    value = body.pop(name, None)
    if type(value) is not str:
        raise ProtocolError("message.invalid", f"header field {name} is not valid")
    return value


def _count(body: dict[str, Any], name: str) -> int:
    value = body.pop(name, None)
    if type(value) is not int or not 0 <= value <= COUNT_MAX:
        raise ProtocolError("message.invalid", f"header field {name} is not valid")
    return value
