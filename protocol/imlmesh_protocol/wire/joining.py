"""Joining a mesh: the token that people paste, the proof that its secret is known, the code they compare.

The one rule: a secret never travels; what travels instead binds all that is asked to one mesh, one
nonce and the server's certificate, so that it is worth nothing anywhere else. Deliberately absent:
sockets, clocks, randomness; secrets and nonces are given.
"""

import base64
import binascii
import hashlib
import hmac
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from imlmesh_protocol.errors import InputError, ProtocolError
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.limits import JOIN_BYTES, TOKEN_CHARS, TOKEN_ENDPOINTS
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.wire.codec import pack, unpack

PREFIX = "mj1_"
SECRET_BYTES = NONCE_BYTES = 16
DIGEST_BYTES = IDENTITY_BYTES = 32
SIGNATURE_BYTES = 64
#: what a person reads aloud: 30 bits, without the letters that look like digits
_SIGNS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_CODE_CHARS = 6
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_ENDPOINT = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a new node is given: `pin` is the SHA-256 of the mesh's root key, `endpoints` are
    host:port, `id` names the token where its secret's derived key is kept."""

    mesh: str
    endpoints: tuple[str, ...]
    pin: bytes
    id: str
    secret: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The token as people paste it."""
        packed = pack(asdict(self))
        return PREFIX + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what was pasted; InputError `token.invalid`, which never repeats the text."""
        body = text.removeprefix(PREFIX)
        if len(text) > TOKEN_CHARS or body == text or not _BASE64URL.fullmatch(body):
            raise InputError("token.invalid", f"a token begins with {PREFIX} and has no spaces")
        try:
            packed = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
            fields = Fields(unpack(packed))
            endpoints = fields.take("endpoints", list)
            made = cls(
                fields.name("mesh"),
                tuple(endpoints),
                fields.blob("pin", DIGEST_BYTES),
                fields.name("id"),
                fields.blob("secret", SECRET_BYTES),
            )
            fields.end()
        except (binascii.Error, ProtocolError) as exc:
            raise InputError("token.invalid", "the token is cut off, or changed") from exc
        usable = all(type(each) is str and _ENDPOINT.fullmatch(each) for each in endpoints)
        if not usable or len(endpoints) > TOKEN_ENDPOINTS or made.text != text:
            raise InputError("token.invalid", "the token is cut off, or changed")
        return made

    @property
    def key(self) -> bytes:
        """What proofs are made with; the mesh keeps this and not the secret."""
        return token_key(self.secret, self.mesh, self.id)


@dataclass(frozen=True, slots=True)
class JoinAsk:
    """What a new node asks: to be `node` with `identity` (raw Ed25519) and a certificate for the
    PEM `request`; with `profile` "" it takes what it is given.

    With a `token` it sends the `proof`; without, `own` is the nonce behind its commitment; with
    neither it asks what became of an earlier question. `nonce` is the server's.
    """

    node: str
    profile: str
    identity: bytes
    request: bytes
    nonce: bytes
    token: str = ""
    proof: bytes = b""
    own: bytes = b""
    signature: bytes = b""

    def to_prove(self, mesh: str, certificate: bytes) -> bytes:
        """The bytes under proof and signature; `certificate` is the server's as DER."""
        return _parts(
            b"join1",
            mesh.encode(),
            self.token.encode(),
            self.node.encode(),
            self.profile.encode(),
            hashlib.sha256(self.request).digest(),
            self.identity,
            self.own,
            self.nonce,
            hashlib.sha256(certificate).digest(),
        )

    def to_wire(self) -> dict[str, Any]:
        """The body of the request."""
        return asdict(self)

    @classmethod
    def of_wire(cls, body: Any) -> Self:
        """From a decoded body; ProtocolError `join.invalid`, InputError `name.invalid` for an id
        that no node can have."""
        fields = Fields(body)
        node, token = fields.take("node", str), fields.take("token", str)
        profile, request = fields.take("profile", str), fields.take("request", bytes)
        if not NAME.fullmatch(node):
            raise InputError("name.invalid", f"node {node[:80]!r} is not an id")
        if (token and not NAME.fullmatch(token)) or (profile and profile not in PROFILES):
            raise ProtocolError("join.invalid", "an unknown profile, or no token's id")
        made = cls(
            node,
            profile,
            fields.blob("identity", IDENTITY_BYTES),
            request,
            fields.blob("nonce", NONCE_BYTES),
            token,
            fields.blob("proof", DIGEST_BYTES if token else 0),
            fields.blob("own", 0, NONCE_BYTES),
            fields.blob("signature", SIGNATURE_BYTES),
        )
        fields.end()
        if token and made.own:
            raise ProtocolError("join.invalid", "a token and a code")
        return made


class Fields:
    """The fields of a decoded body, taken one by one; ProtocolError `join.invalid`."""

    def __init__(self, body: Any) -> None:
        if type(body) is not dict:
            raise ProtocolError("join.invalid", "the body is not a map")
        self._body: dict[str, Any] = dict(body)

    def take(self, name: str, kind: type) -> Any:
        """A field of exactly this type."""
        value = self._body.pop(name, None)
        if type(value) is not kind:
            raise ProtocolError("join.invalid", f"{name} is not {kind.__name__}")
        return value

    def blob(self, name: str, *lengths: int) -> bytes:
        """Bytes of one of these lengths."""
        value: bytes = self.take(name, bytes)
        if len(value) not in lengths:
            raise ProtocolError("join.invalid", f"{name} has {len(value)} bytes")
        return value

    def name(self, name: str) -> str:
        """A name as ids are made."""
        value: str = self.take(name, str)
        if not NAME.fullmatch(value):
            raise ProtocolError("join.invalid", f"{name} is not a name")
        return value

    def end(self) -> None:
        """A field that nobody of this version understands may mean a restriction: refused."""
        if self._body:
            raise ProtocolError("join.invalid", f"no field {next(iter(self._body))[:60]!r}")


def unpack_body(data: bytes) -> Any:
    """A body of the join endpoint, or of its answer; ProtocolError."""
    return unpack(data, max_bytes=JOIN_BYTES)


def token_key(secret: bytes, mesh: str, token: str) -> bytes:
    """HKDF-SHA256 of a token's secret, bound to mesh and token."""
    return hkdf(secret, b"imlmesh join", _parts(b"token1", mesh.encode(), token.encode()))


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes by RFC 5869 with SHA-256; one round is all that so many need."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


def proof_of(key: bytes, to_prove: bytes) -> bytes:
    """What shows that the token's key is known."""
    return hmac.digest(key, to_prove, "sha256")


def proves(key: bytes, to_prove: bytes, proof: bytes) -> bool:
    """Whether `proof` is that of `key`, in constant time."""
    return hmac.compare_digest(proof_of(key, to_prove), proof)


def commitment_of(own: bytes, identity: bytes) -> bytes:
    """What a node sends before it hears the server's nonce: then neither can choose the code."""
    return hashlib.sha256(_parts(b"commit1", own, identity)).digest()


def code_of(root: bytes, identity: bytes, own: bytes, nonce: bytes) -> str:
    """What both sides show, as `4KT-9QX`: whoever is between them shows two different ones."""
    digest = hashlib.sha256(_parts(b"code1", root, identity, own, nonce)).digest()
    number = int.from_bytes(digest[:4], "big") >> 2
    signs = "".join(_SIGNS[(number >> 5 * place) & 31] for place in range(_CODE_CHARS))
    return f"{signs[:3]}-{signs[3:]}"


def _parts(*parts: bytes) -> bytes:
    """Each with its length, so that no two lists of parts look alike."""
    return b"".join(len(part).to_bytes(2, "big") + part for part in parts)
