"""Whether a revocation list may be given to a broker.

The one rule: a list that a broker would choke on never reaches one, since Mosquitto 2.0 lets revoked
certificates in after reading a broken list, 2.1 ends, and both refuse everybody after its time. Pure.
Deliberately absent: which numbers are on it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from imlmesh_protocol.errors import TrustError

_END = b"-----END X509 CRL-----"


def checked_lists(cas: bytes, lists: bytes, now: datetime | None = None) -> bytes:
    """The PEM `lists` again, once each of the PEM `cas` signed one and all are in force at `now`.

    TrustError `broker.lists` says what is wrong; each CA needs one, for without it its clients would
    be refused.
    """
    at = now or datetime.now(UTC)
    try:
        authorities = x509.load_pem_x509_certificates(cas)
        found = [x509.load_pem_x509_crl(part + _END) for part in lists.split(_END)[:-1]]
        signers = [{ca.serial_number for ca in authorities if _signed_by(e, ca)} for e in found]
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise TrustError("broker.lists", f"not a revocation list: {exc}") from exc
    if not all(signers):
        raise TrustError("broker.lists", "a revocation list that no CA of the mesh signed")
    for each in found:
        _check_time(each, at)
    missing = {ca.serial_number for ca in authorities}.difference(*signers)
    if missing or not authorities:
        text = f"{len(missing)} of the mesh's CAs have no revocation list"
        raise TrustError("broker.lists", text)
    return _joined(found)


def _signed_by(found: x509.CertificateRevocationList, ca: x509.Certificate) -> bool:
    key = ca.public_key()
    named = found.issuer == ca.subject and isinstance(key, ec.EllipticCurvePublicKey)
    return named and isinstance(key, ec.EllipticCurvePublicKey) and found.is_signature_valid(key)


def _check_time(found: x509.CertificateRevocationList, at: datetime) -> None:
    until = found.next_update_utc
    if until is None or until <= at:
        raise TrustError("broker.lists", f"the revocation list was good until {until}")
    if found.last_update_utc > at:
        text = f"the revocation list is good from {found.last_update_utc} on: check the clock"
        raise TrustError("broker.lists", text)


def _joined(found: Sequence[x509.CertificateRevocationList]) -> bytes:
    """Written anew, so that what lay around them is not passed on."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in found)
