"""X.509 as our mesh uses it: a P-256 root for each role, leaf certificates, revocation lists.

The one rule: every extension that RFC 5280 asks for is there, so that the strictest verifier
(VERIFY_X509_STRICT, the default of Python 3.13) accepts them. Of a request only the key and the
proof of holding it count. Deliberately absent: files, chains.
"""

import contextlib
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.trust import private_pem

_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
_SERVER = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate as PEM, the number that revokes it, and its end in ms of wall time."""

    pem: bytes
    serial: int
    not_after_ms: int


def new_root(mesh: str, role: str) -> tuple[bytes, bytes]:
    """(private PEM, certificate PEM) of the CA of `mesh` for nodes or for control."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, mesh),
            x509.NameAttribute(NameOID.COMMON_NAME, f"imlmesh {role} CA"),
        ]
    )
    certificate = (
        _builder(name, name, private.public_key(), limits.CA_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(private, hashes.SHA256())
    )
    return private_pem(private), certificate.public_bytes(serialization.Encoding.PEM)


class Issuer:
    """Signs leaf certificates with the key of a CA, whose certificate is `der`."""

    def __init__(self, private: bytes, certificate: bytes) -> None:
        """Takes PEM; TrustError `trust.file` when they are not a P-256 key and its certificate."""
        try:
            key = serialization.load_pem_private_key(private, password=None)
            self._certificate = x509.load_pem_x509_certificate(certificate)
        except (ValueError, TypeError) as exc:
            raise TrustError("trust.file", f"the CA cannot be read: {exc}") from exc
        if (
            not isinstance(key, ec.EllipticCurvePrivateKey)
            or key.public_key() != self._certificate.public_key()
        ):
            raise TrustError("trust.file", "the key of the CA does not belong to its certificate")
        self._key = key
        self.der = self._certificate.public_bytes(serialization.Encoding.DER)

    @classmethod
    def of(cls, keys: Iterable[bytes], certificate: bytes) -> Self | None:
        """With the key, of some PEM, that belongs to a certificate in DER; None without one."""
        pem = ssl.DER_cert_to_PEM_cert(certificate).encode()
        for private in keys:
            with contextlib.suppress(TrustError):
                return cls(private, pem)
        return None

    def issue_client(
        self, request: bytes, name: str, uri: str, lifetime_s: int = limits.CERTIFICATE_S
    ) -> Issued:
        """The certificate of a node or control: `name` is the CN, `uri` says the role."""
        san = x509.UniformResourceIdentifier(uri)
        return self._issue(request, name, san, _CLIENT, lifetime_s)

    def issue_server(self, request: bytes, dns_name: str) -> Issued:
        """The certificate of a server that clients know as `dns_name`."""
        name = dns_name.partition(".")[0]
        return self._issue(request, name, x509.DNSName(dns_name), _SERVER, limits.SERVER_S)

    def revocation_list(self, serials: Iterable[int]) -> bytes:
        """A list as PEM that revokes `serials`, valid for limits.CRL_S from now."""
        now = datetime.now(UTC)
        authority = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - timedelta(milliseconds=limits.CERTIFICATE_BACKDATE_MS))
            .next_update(now + timedelta(seconds=limits.CRL_S))
            .add_extension(x509.CRLNumber(int(now.timestamp() * 1_000)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority.value),
                critical=False,
            )
        )
        for serial in sorted(serials):
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(revoked.build())
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def revoked_by(self, lists: bytes) -> tuple[frozenset[int], datetime]:
        """(the numbers that our own list among the PEM `lists` revokes, when it was made).

        TrustError `trust.file` when none of them is ours.
        """
        end = b"-----END X509 CRL-----"
        try:
            found = [x509.load_pem_x509_crl(part + end) for part in lists.split(end)[:-1]]
        except ValueError as exc:
            raise TrustError("trust.file", f"not a revocation list: {exc}") from exc
        for each in found:
            if each.is_signature_valid(self._key.public_key()):
                return frozenset(row.serial_number for row in each), each.last_update_utc
        raise TrustError("trust.file", "no revocation list of this CA")

    def _issue(
        self,
        request: bytes,
        name: str,
        san: x509.GeneralName,
        purpose: x509.ObjectIdentifier,
        lifetime_s: int,
    ) -> Issued:
        public = proven_key(request)
        authority = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        certificate = (
            _builder(self._certificate.subject, _name(name), public, lifetime_s)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName([san]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority.value),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return Issued(
            certificate.public_bytes(serialization.Encoding.PEM),
            certificate.serial_number,
            int(certificate.not_valid_after_utc.timestamp() * 1_000),
        )


def proven_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key that a PEM request proves to hold; TrustError `signature.invalid`."""
    try:
        parsed = x509.load_pem_x509_csr(request)
        public = parsed.public_key()
    except ValueError as exc:
        raise TrustError("signature.invalid", f"not a certificate request: {exc}") from exc
    if (
        not isinstance(public, ec.EllipticCurvePublicKey)
        or not isinstance(public.curve, ec.SECP256R1)
        or not parsed.is_signature_valid
    ):
        raise TrustError("signature.invalid", "the request does not prove a P-256 key")
    return public


def check_request(request: bytes, node: str) -> None:
    """Refuse a PEM request that asks for more than a certificate of `node`: another name, or any
    extension; TrustError `join.request`, or `signature.invalid` as `proven_key`.
    """
    proven_key(request)
    parsed = x509.load_pem_x509_csr(request)
    names = [attribute.value for attribute in parsed.subject]
    if names not in ([], [node]):
        text = f"{node}: the request names {parsed.subject.rfc4514_string()[:120]!r}"
        raise TrustError("join.request", text)
    try:
        extensions = [each.oid.dotted_string for each in parsed.extensions]
    except ValueError as exc:
        raise TrustError("join.request", f"{node}: {exc}") from exc
    if extensions:
        raise TrustError("join.request", f"{node}: the request asks for {', '.join(extensions)}")


def _builder(
    issuer: x509.Name, subject: x509.Name, public: ec.EllipticCurvePublicKey, lifetime_s: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(milliseconds=limits.CERTIFICATE_BACKDATE_MS))
        .not_valid_after(now + timedelta(seconds=lifetime_s))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
