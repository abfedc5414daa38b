"""A TLS key with its certificate as one file, and what a certificate says without a library for it.

The one rule: a pair is exchanged as a whole, by one rename, so whatever ends in between leaves one
that works. Deliberately absent: making and verifying certificates; an agent that only wants to know
when its own one ends does not load 30 MB for that.
"""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from imlmesh_protocol.errors import TrustError
from imlmesh_protocol.limits import CERTIFICATE_BACKDATE_MS
from imlmesh_runtime.files import read_file, write_private

_PRIVATE = b"-----BEGIN PRIVATE KEY-----"
# Tags of DER (X.690), and what stands before the 20 bytes that name the key of a CA in its
# certificate: the extension subjectKeyIdentifier, RFC 5280 section 4.2.1.2.
_VERSION, _UTC_TIME, _GENERALIZED_TIME = 0xA0, 0x17, 0x18
_SUBJECT_KEY = bytes.fromhex("0603551d0e04160414")
_KEY_NAME_BYTES = 20


@dataclass(frozen=True, slots=True)
class Validity:
    """From when until when a certificate counts, in ms since 1970."""

    begins_ms: int
    ends_ms: int

    @property
    def renewal_ms(self) -> int:
        """Two thirds of its life; it was made CERTIFICATE_BACKDATE_MS after it begins."""
        made_ms = min(self.begins_ms + CERTIFICATE_BACKDATE_MS, self.ends_ms)
        return made_ms + (self.ends_ms - made_ms) * 2 // 3


def certificates_of(pem: bytes) -> tuple[bytes, ...]:
    """The certificates of a PEM file as DER, in its order; TrustError `trust.file` without one."""
    end = b"-----END CERTIFICATE-----"
    try:
        found = [
            ssl.PEM_cert_to_DER_cert((part.strip() + b"\n" + end).decode())
            for part in pem.split(end)[:-1]
        ]
    except ValueError as exc:
        raise TrustError("trust.file", f"not the PEM of certificates: {exc}") from exc
    if not found:
        raise TrustError("trust.file", "not the PEM of certificates")
    return tuple(found)


def validity_of(certificate: bytes) -> Validity:
    """Of a certificate in DER; TrustError `trust.file`."""
    try:
        (whole,) = _parts(certificate)
        fields = _parts(next(_parts(whole[1]))[1])
        first = next(fields)
        skipped = 3 if first[0] == _VERSION else 2  # serial number, algorithm, issuer
        for _ in range(skipped):
            next(fields)
        begins, ends = (_time_ms(*part) for part in _parts(next(fields)[1]))
    except (ValueError, IndexError, StopIteration) as exc:
        raise TrustError("trust.file", f"not a certificate: {exc!r}") from exc
    return Validity(begins, ends)


def is_issued_by(certificate: bytes, ca: bytes) -> bool:
    """Whether a certificate of ours names the key of `ca` (both DER) as its issuer's.

    A look at what it says and no proof: TLS proves.
    """
    start = ca.rfind(_SUBJECT_KEY)
    if start < 0:
        return False
    start += len(_SUBJECT_KEY)
    return ca[start : start + _KEY_NAME_BYTES] in certificate


def certificates_in(pem: Path) -> tuple[bytes, ...]:
    """The certificates of a file, as `certificates_of` gives them; TrustError `trust.file` names it."""
    try:
        return certificates_of(_without_key(read_file(pem)))
    except TrustError as exc:
        if str(pem) in exc.message:
            raise
        raise TrustError("trust.file", f"{pem}: {exc.message}") from exc


def own_certificate(pem: Path) -> bytes:
    """The certificate of a pair as DER; TrustError `trust.file`."""
    return certificates_in(pem)[0]


def key_file(pem: Path) -> Path:
    """Where the key of the certificate in `pem` lies: in the same file once it was renewed, else
    beside it."""
    return pem if _PRIVATE in read_file(pem) else pem.with_suffix(".key")


def write_pair(pem: Path, key: bytes, certificate: bytes) -> None:
    """Put a new key and its certificate (PEM) in the place of the old ones, at once and durably."""
    write_private(pem, certificate + key)
    # from here on it is a key that nobody asks for
    pem.with_suffix(".key").unlink(missing_ok=True)


def _without_key(pem: bytes) -> bytes:
    return pem.partition(_PRIVATE)[0]


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, content) of each value of DER that `data` holds."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise ValueError("a value of DER is longer than what holds it")
        yield tag, data[at : at + length]
        at += length


def _time_ms(tag: int, content: bytes) -> int:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        # RFC 5280 section 4.1.2.5.1: two digits mean 1950 to 2049
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    moment = datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000)
