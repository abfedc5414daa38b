"""Keys and certificates as files, and what a process needs of them to speak on its mesh.

The one rule: a private key is written once, atomically, for its owner alone, and a key file
that others could have read or written is not silently used. Certificates are only named here;
making them is the orchestrator's `ca`. Deliberately absent: envelopes, revocation lists.

Signatures are libsodium's (docs/adr/0012); certificates need more, and who never makes one never
loads it.
"""

import base64
import binascii
import hashlib
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, TypeVar

from nacl.bindings import crypto_sign, crypto_sign_BYTES
from nacl.signing import SigningKey, VerifyKey

from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError, TrustError
from imlmesh_protocol.wire.documents import ROSTER, TRUST, Roster, Trust, kind_of
from imlmesh_runtime.contexts import client_context as client_context
from imlmesh_runtime.contexts import server_check as server_check
from imlmesh_runtime.contexts import unverified_context as unverified_context
from imlmesh_runtime.files import (
    check_private,
    locked,
    read_file,
    read_private,
    write_private,
)
from imlmesh_runtime.pairs import certificates_of as certificates_of
from imlmesh_runtime.pairs import key_file, own_certificate

Document = TypeVar("Document", Trust, Roster)
T = TypeVar("T")

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
        public_pem(bytes(private.verify_key)),
    )


def public_pem(raw: bytes) -> bytes:
    """The PEM of an Ed25519 public key of 32 raw bytes."""
    return _pem("PUBLIC KEY", _PUBLIC_HEAD + raw)


def _pem(label: str, der: bytes) -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n".encode()


def _of_pem(path: Path | str, pem: bytes, label: str, head: bytes) -> bytes:
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
    return signer_of(read_private(path, strict=strict), path)


def signer_of(pem: bytes, path: Path | str = "the key") -> Signer:
    """The signer of an Ed25519 PEM; `path` names it in TrustError `trust.file`."""
    return Signer.of_key(SigningKey(_of_pem(path, pem, "PRIVATE KEY", _PRIVATE_HEAD)))


def load_public(path: Path) -> PublicKey:
    """The public key of an Ed25519 PEM file; TrustError `trust.file`."""
    return PublicKey.of_raw(_of_pem(path, read_file(path), "PUBLIC KEY", _PUBLIC_HEAD))


def new_tls_key(name: str = "") -> tuple[bytes, bytes]:
    """(private PEM, certificate request PEM) of a fresh P-256 key.

    The request proves that its maker holds the key; without a `name` it names nobody.
    """
    # Certificates are made by a few short commands; a node never pays for this import.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else []
    subject = x509.Name(names)
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    signed = request.sign(private, hashes.SHA256())
    return private_pem(private), signed.public_bytes(serialization.Encoding.PEM)


def broker_name(mesh: str) -> str:
    """The name in the broker's certificate, whatever its address is."""
    return f"broker.{mesh}.imlmesh"


def join_name(mesh: str) -> str:
    """The name in the certificate of the endpoint where nodes join."""
    return f"join.{mesh}.imlmesh"


class HeldTrust:
    """The newest trust and roster that a folder holds; nothing older ever takes their place.

    The folder has root.pub, trust and, once there is one, roster. TrustError `trust.file` when they
    cannot be read, `trust.rollback` for an older version. Another process may take for the same
    folder. `when_newer` is called after newer trust came, `when_unknown` when a plan key is named
    that trust does not have.
    """

    def __init__(self, folder: Path, mesh: str) -> None:
        self._folder = folder
        self._mesh = mesh
        self.when_newer: Callable[[], None] = lambda: None
        self.when_unknown: Callable[[], None] = lambda: None
        self.root = load_public(folder / "root.pub")
        self.trust = self._kept_trust()
        self.roster: Roster | None = None
        if (folder / "roster").exists():
            self.roster = self._kept_roster()

    @property
    def document(self) -> bytes:
        """The trust that is held, as it was signed."""
        return read_file(self._folder / "trust", limits.DOCUMENT_BYTES)

    def reload(self) -> bool:
        """Look for newer trust in the folder, and a newer roster; whether there was newer trust."""
        found = self._kept_trust()
        is_newer = found.version > self.trust.version
        if is_newer:
            self.trust = found
            self.when_newer()
        if (self._folder / "roster").exists():
            roster = self._kept_roster()
            if roster and (self.roster is None or roster.version > self.roster.version):
                self.roster = roster
        return is_newer

    def take(self, document: bytes) -> bool:
        """Keep a newer document, durably; False for the one that is held. Raises ProtocolError or
        TrustError when it is not signed by who may, of another mesh, or older."""
        if kind_of(document) == TRUST:
            trust = self._trust_of(document)
            with locked(self._folder):
                self.reload()
                if not _is_newer(TRUST, self.trust.version, trust.version):
                    return False
                write_private(self._folder / "trust", document)
            self.trust = trust
            self.when_newer()
            return True
        with locked(self._folder):
            self.reload()  # whoever rolls keys over signs the roster anew
            roster = self._roster_of(document)
            if self.roster and not _is_newer(ROSTER, self.roster.version, roster.version):
                return False
            write_private(self._folder / "roster", document)
        self.roster = roster
        return True

    def roster_document(self) -> bytes:
        """The signed bytes of the roster that is held; TrustError `trust.file` without one."""
        return read_file(self._folder / "roster", limits.DOCUMENT_BYTES)

    def plan_key(self, key_id: bytes) -> VerifyKey | None:
        """The plan key of that name: everything down is signed by one."""
        found = _named(self.trust.plan, key_id)
        if found is None:
            self.when_unknown()
        return found

    def ledger_key(self, key_id: bytes) -> VerifyKey | None:
        """The ledger key of that name."""
        return _named(self.trust.ledger, key_id)

    def _trust_of(self, document: bytes) -> Trust:
        root = self.root
        trust = Trust.open(document, lambda key_id: root.key if key_id == root.key_id else None)
        return self._ours(trust)

    def _roster_of(self, document: bytes) -> Roster:
        return self._ours(Roster.open(document, lambda key_id: _named(self.trust.roster, key_id)))

    def _ours(self, document: Document) -> Document:
        if document.mesh != self._mesh:
            raise ProtocolError("message.audience", f"a document of mesh {document.mesh}")
        return document

    def _kept_trust(self) -> Trust:
        return self._kept("trust", lambda: self._trust_of(self.document))

    def _kept_roster(self) -> Roster | None:
        """None when it was signed by a key that trust has dropped since: each that the present keys
        sign is newer, so none that is older can take its place."""
        try:
            return self._kept("roster", lambda: self._roster_of(self.roster_document()))
        except TrustError as exc:
            if exc.code != "signature.unknown_key":
                raise
            return None

    def _kept(self, name: str, opened: Callable[[], T]) -> T:
        """What lies in the folder; nobody sent it now, so one that is spoilt is a file that is."""
        try:
            return opened()
        except (ProtocolError, TrustError) as exc:
            if exc.code in ("signature.unknown_key", "message.audience", "trust.file"):
                raise
            raise TrustError("trust.file", f"{self._folder / name}: {exc.message}") from exc


def _is_newer(kind: str, held: int, offered: int) -> bool:
    if offered < held:
        text = f"{kind} of version {offered}, and version {held} is known"
        raise TrustError("trust.rollback", text)
    return offered > held


@lru_cache(maxsize=64)
def _public_of(raw: bytes) -> PublicKey:
    return PublicKey.of_raw(raw)


def _named(keys: Iterable[bytes], name: bytes) -> VerifyKey | None:
    return next((key.key for key in map(_public_of, keys) if key.key_id == name), None)


@dataclass(frozen=True, slots=True)
class NodeKeys:
    """What a node's folder says of trust: who it is and whom it obeys."""

    signer: Signer
    held: HeldTrust
    context: Callable[[], ssl.SSLContext]

    @classmethod
    def load(cls, folder: Path, mesh: str, *, strict: bool = False) -> Self:
        """From `folder`/keys; TrustError `trust.file`, `trust.mode`."""
        keys = folder / "keys"
        pem = keys / "node.pem"
        if key_file(pem).exists() or not _is_spoilt(pem):
            check_private(key_file(pem), strict=strict)
        held = HeldTrust(keys, mesh)

        def context() -> ssl.SSLContext:
            held.reload()  # a child may have fetched newer trust
            name = broker_name(mesh)
            return client_context(held.trust.control_cas, pem, key_file(pem), name)

        return cls(load_signer(keys / "identity.key", strict=strict), held, context)

    def find_key(self, key_id: bytes, _iss: str) -> VerifyKey | None:
        """The plan key when it is the one named: everything down is signed by it."""
        return self.held.plan_key(key_id)


def _is_spoilt(pem: Path) -> bool:
    """Whether no certificate can be read in it: then its key is gone with it, and both are renewed."""
    try:
        own_certificate(pem)
    except TrustError:
        return True
    return False


@dataclass(slots=True)
class ControlKeys:
    """What the CA's folder gives the orchestrator: its voices, and the documents that it hands out.

    Voices roll over: who signs asks for the signer each time.
    """

    signer: Signer
    roster: Signer
    ledger: Signer
    held: HeldTrust
    context: Callable[[], ssl.SSLContext]

    @classmethod
    def load(cls, ca: Path, mesh: str, *, strict: bool = False) -> Self:
        """From the folder `ca`; TrustError `trust.file`, `trust.mode`."""
        pem = ca / "control.pem"
        check_private(key_file(pem), strict=strict)
        held = HeldTrust(ca, mesh)

        def context() -> ssl.SSLContext:
            held.reload()  # whoever rolls a CA over is another process
            name = broker_name(mesh)
            return client_context(held.trust.control_cas, pem, key_file(pem), name)

        return cls(*_voices(ca, strict=strict), held, context)

    def reload(self, ca: Path) -> None:
        """What lies in the folder now, after something rolled over."""
        self.held.reload()
        self.signer, self.roster, self.ledger = _voices(ca, strict=False)


def _voices(ca: Path, *, strict: bool) -> tuple[Signer, Signer, Signer]:
    plan, roster, ledger = (
        load_signer(ca / f"{name}.key", strict=strict) for name in ("plan", "roster", "ledger")
    )
    return plan, roster, ledger
