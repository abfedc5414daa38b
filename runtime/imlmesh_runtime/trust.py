"""Keys and certificates as files, and what a process needs of them to speak on its mesh.

The one rule: a private key is written once, atomically, for its owner alone, and a key file
that others could have read or written is not silently used. Certificates are only named here;
making them is the orchestrator's `ca`. Deliberately absent: envelopes, revocation.

Signatures are libsodium's (docs/adr/0012); certificates need more, and who never makes one never
loads it.
"""

import base64
import binascii
import hashlib
import json
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from nacl.bindings import crypto_sign, crypto_sign_BYTES
from nacl.signing import SigningKey, VerifyKey

from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.files import check_private, read_file, read_private

logger = logging.getLogger(__name__)

_MTIME_TICK_NS = 1_000_000_000

# The field and the curve constant of Ed25519, RFC 8032 section 5.1.
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P

# What stands before the 32 raw bytes of an Ed25519 key in PKCS 8 and in SubjectPublicKeyInfo:
# the whole structure is fixed by RFC 8410, sections 4 and 7.
_PRIVATE_HEAD = bytes.fromhex("302e020100300506032b657004220420")
_PUBLIC_HEAD = bytes.fromhex("302a300506032b6570032100")


def key_id(raw_public: bytes) -> bytes:
    """How an envelope names a key: the first 8 bytes of the SHA-256 of the 32 raw ones."""
    return hashlib.sha256(raw_public).digest()[:8]


def public_key(raw: bytes) -> VerifyKey:
    """An Ed25519 public key of 32 raw bytes; TrustError `trust.file` for a small-order one.

    A point whose order divides 8 verifies signatures that nobody made. Such points have y = 0,
    y = ±1, or (order 8) a double with y = 0, that is x² = -y², that is d·y⁴ + 2y² = 1.
    """
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    weak = y % _P in (0, 1, _P - 1) or (_D * pow(y, 4, _P) + 2 * y * y - 1) % _P == 0
    if len(raw) != 32 or weak:
        raise TrustError("trust.file", "not an Ed25519 public key that can be trusted")
    return VerifyKey(raw)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key to check signatures with, and its name in envelopes."""

    key_id: bytes
    key: VerifyKey

    @classmethod
    def of_raw(cls, raw: bytes) -> Self:
        """From 32 raw bytes, checked by `public_key`."""
        return cls(key_id(raw), public_key(raw))


@dataclass(frozen=True, slots=True)
class Signer:
    """A key to sign with: `sign(data)` returns 64 bytes; `raw_public` are the 32 public ones."""

    key_id: bytes
    raw_public: bytes
    sign: Callable[[bytes], bytes]

    @classmethod
    def of_key(cls, private: SigningKey) -> Self:
        """Sign with `private`."""
        raw = bytes(private.verify_key)
        secret = bytes(private) + raw  # as libsodium wants it
        return cls(key_id(raw), raw, lambda data: crypto_sign(data, secret)[:crypto_sign_BYTES])


def new_signing_key() -> tuple[bytes, bytes]:
    """(private PEM, public PEM) of a fresh Ed25519 key."""
    private = SigningKey.generate()
    return (
        _pem("PRIVATE KEY", _PRIVATE_HEAD + bytes(private)),
        _pem("PUBLIC KEY", _PUBLIC_HEAD + bytes(private.verify_key)),
    )


def _pem(label: str, der: bytes) -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def _of_pem(path: Path, pem: bytes, label: str, head: bytes) -> bytes:
    """The 32 raw bytes of an Ed25519 key that OpenSSL, or we, wrote; TrustError `trust.file`."""
    lines = pem.strip().splitlines()
    marks = (f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode())
    if len(lines) < 3 or (lines[0], lines[-1]) != marks:
        raise TrustError("trust.file", f"{path} is not the PEM of a {label.lower()}")
    try:
        der = base64.b64decode(b"".join(lines[1:-1]), validate=True)
    except binascii.Error as exc:
        raise TrustError("trust.file", f"{path} is not the PEM of a {label.lower()}") from exc
    if len(der) != len(head) + 32 or not der.startswith(head):
        raise TrustError("trust.file", f"{path} is not an Ed25519 key")
    return der[len(head) :]


def private_pem(private: Any) -> bytes:
    """PKCS 8 PEM of a TLS key, without a passphrase: the file's mode is what protects it."""
    from cryptography.hazmat.primitives import serialization

    pem: bytes = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem


def load_signer(path: Path, *, strict: bool = False) -> Signer:
    """The signer of an Ed25519 PEM file; TrustError `trust.file`, `trust.mode`."""
    pem = read_private(path, strict=strict)
    return Signer.of_key(SigningKey(_of_pem(path, pem, "PRIVATE KEY", _PRIVATE_HEAD)))


def load_public(path: Path) -> PublicKey:
    """The public key of an Ed25519 PEM file; TrustError `trust.file`."""
    return PublicKey.of_raw(_of_pem(path, read_file(path), "PUBLIC KEY", _PUBLIC_HEAD))


def new_tls_key(name: str) -> tuple[bytes, bytes]:
    """(private PEM, certificate request PEM) of a fresh P-256 key.

    The request proves that its maker holds the key; `name` in it binds nobody.
    """
    # Certificates are made by a few short commands; a node never pays for this import.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(private, hashes.SHA256())
    return private_pem(private), signed.public_bytes(serialization.Encoding.PEM)


def broker_name(mesh: str) -> str:
    """The name in the broker's certificate, whatever its address is."""
    return f"broker.{mesh}.imlmesh"


class NamedContext(ssl.SSLContext):
    """A client context that always asks for one server name, whatever address was dialled."""

    server_name: str

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name, session)


def client_context(ca_pem: Path, cert: Path, key: Path, server_name: str) -> ssl.SSLContext:
    """TLS 1.3 with our certificate, to a server that our CA calls `server_name`.

    Takes paths of PEM files; TrustError `trust.file` when one of them cannot be used.
    """
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Python 3.13 asks for this by default; asking everywhere keeps our certificates honest.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(ca_pem)
        context.load_cert_chain(cert, key)
    except OSError as exc:
        raise TrustError("trust.file", f"{ca_pem}, {cert} or {key}: {exc}") from exc
    return context


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """What a node's folder says of trust: who it is and whom it obeys."""

    signer: Signer
    plan: PublicKey
    context: Callable[[], ssl.SSLContext]

    @classmethod
    def load(cls, folder: Path, mesh: str, *, strict: bool = False) -> Self:
        """From `folder`/keys; TrustError `trust.file`, `trust.mode`."""
        keys = folder / "keys"
        check_private(keys / "node.key", strict=strict)
        return cls(
            signer=load_signer(keys / "identity.key", strict=strict),
            plan=load_public(keys / "plan.pub"),
            context=partial(
                client_context,
                keys / "ca.pem",
                keys / "node.pem",
                keys / "node.key",
                broker_name(mesh),
            ),
        )

    def find_key(self, key_id: bytes, _iss: str) -> VerifyKey | None:
        """The plan key when it is the one named: everything down is signed by it."""
        return self.plan.key if key_id == self.plan.key_id else None


@dataclass(frozen=True, slots=True)
class EnrolledNode:
    """One node that the CA knows. `identity` checks what it signs; `at_ms` is wall time."""

    id: str
    alias: str
    identity: PublicKey
    at_ms: int
    profile: str

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Self:
        """From the JSON that `to_record` gives; KeyError, TypeError, ValueError on another."""
        identity = PublicKey.of_raw(base64.b64decode(record["identity"], validate=True))
        return cls(record["id"], record["alias"], identity, record["at_ms"], record["profile"])

    def to_record(self) -> dict[str, Any]:
        """What enrolled/<id>.json holds; `identity` is base64 of the raw public key."""
        raw = bytes(self.identity.key)
        return {
            "id": self.id,
            "alias": self.alias,
            "identity": base64.b64encode(raw).decode(),
            "at_ms": self.at_ms,
            "profile": self.profile,
        }


class Enrolled:
    """The nodes that the CA enrolled, read from its folder when somebody unknown is named.

    A node provisioned while the orchestrator runs is thus known at once, and a stranger costs
    one `stat`: the folder is read again only when it changed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_id: dict[str, EnrolledNode] = {}
        self._seen_files: set[str] = set()
        self._seen_mtime_ns = -1

    def find(self, key_id: bytes, iss: str) -> VerifyKey | None:
        """The key that node `iss` signs with, when it is the one named `key_id`."""
        node = self.node(iss)
        if node is None or node.identity.key_id != key_id:
            return None
        return node.identity.key

    def node(self, node_id: str) -> EnrolledNode | None:
        """The enrolled node of that id, or None."""
        if node_id not in self._by_id:
            self._read_new()
        return self._by_id.get(node_id)

    def nodes(self) -> tuple[EnrolledNode, ...]:
        """Everybody enrolled by now, by id."""
        self._read_new()
        return tuple(self._by_id[node_id] for node_id in sorted(self._by_id))

    def _read_new(self) -> None:
        try:
            mtime_ns = self._folder.stat().st_mtime_ns
        except OSError as exc:
            raise TrustError("trust.file", f"{self._folder}: {exc.strerror}") from exc
        if mtime_ns == self._seen_mtime_ns:
            return
        # A file that comes within the same tick of the clock would not change the time again,
        # so a young time is not yet a proof that everything was seen.
        settled = time.time_ns() - mtime_ns > _MTIME_TICK_NS
        for path in sorted(self._folder.glob("*.json")):
            if path.name in self._seen_files:
                continue
            if len(self._seen_files) >= limits.ENROLLED_NODES:
                logger.error("more than %d nodes are enrolled", limits.ENROLLED_NODES)
                break
            self._seen_files.add(path.name)
            self._read(path)
        self._seen_mtime_ns = mtime_ns if settled else -1

    def _read(self, path: Path) -> None:
        try:
            node = EnrolledNode.of_record(json.loads(read_file(path)))
        except (TrustError, KeyError, TypeError, ValueError) as exc:
            logger.error("trust.file: %s is not an enrolment: %s", path, exc)
            return
        if f"{node.id}.json" == path.name:
            self._by_id[node.id] = node
        else:
            logger.error("trust.file: %s names another node", path)


@dataclass(frozen=True, slots=True)
class ControlKeys:
    """What the CA's folder gives the orchestrator: its voice and the keys of its nodes."""

    signer: Signer
    enrolled: Enrolled
    context: Callable[[], ssl.SSLContext]

    @classmethod
    def load(cls, ca: Path, mesh: str, *, strict: bool = False) -> Self:
        """From the folder `ca`; TrustError `trust.file`, `trust.mode`."""
        check_private(ca / "control.key", strict=strict)
        return cls(
            signer=load_signer(ca / "plan.key", strict=strict),
            enrolled=Enrolled(ca / "enrolled"),
            context=partial(
                client_context,
                ca / "ca.pem",
                ca / "control.pem",
                ca / "control.key",
                broker_name(mesh),
            ),
        )
