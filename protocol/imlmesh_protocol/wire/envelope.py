"""Signed envelopes: bytes in, a believed message out, and the way back.

An envelope is the msgpack array [1, kind, key_id, body, signature]; the signature is Ed25519 over
"imlmesh1" ‖ u8 len(kind) ‖ kind ‖ u32 len(body) ‖ body, exactly the bytes that travel.
The one rule: signature, then parse, then audience, age and order, then the fields; nothing is
believed earlier. Before the signature nothing is built from the bytes but three slices of them.
Deliberately absent: keys from files and clocks; the caller brings both.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from imlmesh_protocol.errors import ProtocolError, TrustError
from imlmesh_protocol.limits import (
    CLOCK_TOLERANCE_MS,
    COUNT_MAX,
    MESSAGE_BYTES,
    MESSAGE_EXPIRY_MS,
    TWO_SENDERS_MS,
)
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.messages import Message, check_fields
from imlmesh_protocol.wire.topics import Kind, Topic, Way, is_telemetry

VERSION = 1
KEY_ID_BYTES = 8
SIGNATURE_BYTES = 64
#: `aud` of what goes to all
EVERYBODY = "*"
_DOMAIN = b"imlmesh1"
#: an envelope's bytes before its key id
_HEADS = {kind: b"\x95" + pack(VERSION) + pack(str(kind)) + b"\xc4\x08" for kind in Kind}
_SIGNATURE_HEAD = b"\xc4\x40"
#: how many bytes of length follow each of msgpack's marks of a bin
_BIN_SIZE_BYTES = {b"\xc4": 1, b"\xc5": 2, b"\xc6": 4}
#: the ways on which one is spoken to, and those on which the topic names who speaks
_TO_ONE = frozenset({Way.TO, Way.FROM})
_BY_NAME = frozenset({Way.FROM, Way.ORCHESTRATOR})
# heartbeats may wait behind other messages, and events at QoS 0 may overtake those at QoS 1;
# telemetry waits behind everything
_OWN_LANE = frozenset({Kind.HEARTBEAT, Kind.EVENT})
_TELEMETRY_LANE = "telemetry"
_LANES = ("", *_OWN_LANE, _TELEMETRY_LANE)
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


Sign = Callable[[bytes], bytes]


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

    def document(self, made: Callable[[bytes, Sign, bytes], bytes], body: bytes) -> bytes:
        """What `made` makes of a body, the way to sign, and the key's id: not a message of its own."""
        return made(body, self._sign, self._key_id)

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

    `find_key(key_id, iss)` returns the public key that `iss` may sign with, or None. `peer` is the
    orchestrator that a node obeys, and that hears its answers.
    """

    def __init__(
        self,
        mesh: str,
        me: str,
        find_key: Callable[[bytes, str], VerifyKey | None],
        peer: str | None = None,
    ) -> None:
        self._mesh = mesh
        self._me = me
        self._find_key = find_key
        self._peer = peer
        #: (sender, lane) → (term, session, seq) of the last message taken
        self.floors: dict[tuple[str, str], tuple[int, int, int]] = {}
        #: when that message was written at the latest: as it says, or when it came
        self._dates: dict[tuple[str, str], int] = {}

    def open(self, topic: Topic, envelope: bytes, now_ms: int | None) -> Message:
        """A believed message. `now_ms` None skips age: first contact, where a nonce stands in."""
        message = self._signed(topic, envelope)
        if message.exp:
            _check_age(message, now_ms)
            self._check_order(topic, message, now_ms or 0)
        elif message.fields.get("state") != "gone":
            raise ProtocolError("message.invalid", "only a will may lack an expiry")
        try:
            check_fields(topic.kind, message.fields)
        except ProtocolError as exc:
            # fresh, and its own: nobody else can make this fault
            if message.exp:
                _by(message, exc)
            raise
        return message

    def open_question(
        self, topic: Topic, envelope: bytes, now_ms: int
    ) -> tuple[Message, ProtocolError | None]:
        """A question whose answer fits its nonce alone and changes nothing here, and what is wrong with
        its order: one who has forgotten how far it counted learns that from the answer."""
        message = self._signed(topic, envelope)
        if not message.exp:
            raise ProtocolError("message.invalid", "only a will may lack an expiry")
        _check_age(message, None)
        late = None
        try:
            self._check_order(topic, message, now_ms)
        except ProtocolError as exc:
            late = exc
        try:
            check_fields(topic.kind, message.fields)
        except ProtocolError as exc:
            raise late or _by(message, exc) from None
        return message, late

    def last_term(self, sender: str) -> int:
        """The highest epoch or boot of which a message of `sender` was taken; 0 before the first."""
        return max(self.floors.get((sender, lane), (0,))[0] for lane in _LANES)

    def _signed(self, topic: Topic, envelope: bytes) -> Message:
        """What its sender wrote to us, in whatever order and at whatever time."""
        self._check_topic(topic)
        key_id, packed, signature = _outer(topic, envelope)
        key = self._find_key(key_id, topic.name)
        if key is None:
            raise TrustError("signature.unknown_key", f"{topic.name}: no such key is enrolled")
        try:
            key.verify(signing_input(topic.kind, packed), signature)
        except CryptoError:
            text = f"{topic.name}: {topic.kind} is not signed"
            raise TrustError("signature.invalid", text) from None
        message = _inner(topic, packed)
        self._check_way(topic, message)
        return message

    def _check_topic(self, topic: Topic) -> None:
        """Whatever a broker hands over: only our own topics are read."""
        if topic.mesh != self._mesh or (topic.way is Way.TO and topic.name != self._me):
            raise ProtocolError("message.audience", f"on a topic of {topic.mesh}/{topic.name}")

    def _check_way(self, topic: Topic, message: Message) -> None:
        aud = self._me if topic.way in _TO_ONE else EVERYBODY
        if message.aud != aud:
            raise ProtocolError("message.audience", f"{message.id[:80]} is for {message.aud[:80]}")
        writer = topic.name if topic.way in _BY_NAME else self._peer
        if writer is not None and message.iss != writer:
            raise TrustError("signature.invalid", f"{message.iss[:80]} wrote as {writer}")

    def _check_order(self, topic: Topic, message: Message, now_ms: int) -> None:
        lane: str = message.kind if message.kind in _OWN_LANE else ""
        if is_telemetry(message.channel):
            lane = _TELEMETRY_LANE
        place = _place_of(message)
        sender = (message.iss, lane)
        floor = self.floors.get(sender, (0, 0, 0))
        if message.term < floor[0] and topic.way is not Way.FROM:
            text = f"{message.id[:80]} is of epoch {message.term}, now is {floor[0]}"
            raise ProtocolError("message.epoch", text)
        if place <= floor:
            if message.iat > self._dates.get(sender, COUNT_MAX) + TWO_SENDERS_MS:
                # nobody can repeat what was written only after the message that overtook it
                text = f"{message.id[:80]} was written after a message of {floor}"
                raise _by(message, ProtocolError("message.two_senders", text))
            raise ProtocolError("message.replayed", f"{message.id[:80]} was seen or overtaken")
        # who asks for the time dates that by a clock that may be behind
        self.floors[sender], self._dates[sender] = place, max(message.iat, now_ms)


def _check_age(message: Message, now_ms: int | None) -> None:
    """By mesh time; without it only how long the message says that it lives."""
    if not 0 <= message.exp - message.iat <= MESSAGE_EXPIRY_MS:
        text = f"{message.id[:80]} lives {message.exp - message.iat} ms"
        raise ProtocolError("message.expired", text)
    if now_ms is None:
        return
    if message.exp < now_ms:
        text = f"{message.id[:80]}: {now_ms - message.exp} ms too late"
        raise ProtocolError("message.expired", text)
    if message.iat > now_ms + CLOCK_TOLERANCE_MS:
        text = f"{message.id[:80]}: from {message.iat - now_ms} ms ahead"
        raise _by(message, ProtocolError("message.expired", text))


def _place_of(message: Message) -> tuple[int, int, int]:
    return (message.term, message.session, message.seq)


def _by(message: Message, error: ProtocolError) -> ProtocolError:
    """What its sender, and nobody else, can be blamed for."""
    error.sender, error.stamp = message.iss, _place_of(message)
    return error


def _outer(topic: Topic, envelope: bytes) -> tuple[bytes, bytes, bytes]:
    """(key_id, body, signature), cut out of an envelope in msgpack's shortest form.

    Anybody may send bytes: so no decoder that follows what they say runs before the signature.
    """
    if len(envelope) > MESSAGE_BYTES:
        text = f"{len(envelope)} bytes, at most {MESSAGE_BYTES}"
        raise ProtocolError("message.too_large", text)
    head = _HEADS[topic.kind]
    start = len(head)
    if not envelope.startswith(head):
        _blame(topic, envelope)
    packed_at = start + KEY_ID_BYTES
    size_bytes = _BIN_SIZE_BYTES.get(envelope[packed_at : packed_at + 1], 0)
    body_at = packed_at + 1 + size_bytes
    size = int.from_bytes(envelope[packed_at + 1 : body_at], "big")
    end = body_at + size
    if (
        not size_bytes
        or len(envelope) != end + len(_SIGNATURE_HEAD) + SIGNATURE_BYTES
        or not envelope.startswith(_SIGNATURE_HEAD, end)
    ):
        raise ProtocolError("message.invalid", "not an envelope of this version")
    signature = envelope[end + len(_SIGNATURE_HEAD) :]
    return envelope[start:packed_at], envelope[body_at:end], signature


def _blame(topic: Topic, envelope: bytes) -> NoReturn:
    """A kind of ours that lies on the topic of another, or no envelope at all."""
    for kind, head in _HEADS.items():
        if envelope.startswith(head):
            raise ProtocolError("message.kind", f"{kind} on a topic of {topic.kind}")
    raise ProtocolError("message.invalid", "not an envelope of this version")


def _inner(topic: Topic, packed: bytes) -> Message:
    body = unpack(packed)
    if type(body) is not dict:
        raise ProtocolError("message.invalid", "the body is not a map")
    mesh, iss, aud, id = (_text(body, name) for name in _TEXTS)
    iat, exp, seq, term, *session = [_count(body, name) for name in _COUNTS_OF[topic.way]]
    if mesh != topic.mesh:
        raise ProtocolError("message.audience", f"of mesh {mesh[:80]!r}")
    return Message(
        kind=topic.kind,
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
