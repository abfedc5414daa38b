"""What a certificate says without a library for it, compared with what the library says."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_orchestrator.ca.certificates import Issuer, new_root
from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.pairs import Validity, certificates_of, is_issued_by, validity_of
from imlmesh_runtime.trust import new_tls_key

MOMENTS = st.integers(-631_152_000, 7_258_118_400).map(lambda s: datetime.fromtimestamp(s, UTC))
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a" * 60)])


@given(MOMENTS, st.integers(1, 10**9))
def test_a_validity_is_read_as_the_library_reads_it(begins, seconds):
    made = (
        x509.CertificateBuilder()
        .issuer_name(NAME)
        .subject_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(seconds=seconds))
        .sign(KEY, hashes.SHA256())
    )
    validity = validity_of(made.public_bytes(serialization.Encoding.DER))
    assert validity.begins_ms == made.not_valid_before_utc.timestamp() * 1_000
    assert validity.ends_ms == made.not_valid_after_utc.timestamp() * 1_000


def issued_by(private: bytes, certificate: bytes, lifetime_s: int = 900) -> bytes:
    _, request = new_tls_key("pi")
    issuer = Issuer(private, certificate)
    issued = issuer.issue_client(request, "pi", "imlmesh://mesh/node/pi", lifetime_s)
    return certificates_of(issued.pem)[0]


def test_the_issuer_is_told_from_another_of_the_same_name():
    (key, pem), (other_key, other_pem) = (new_root("home", "node") for _ in range(2))
    (ca,), (other,) = certificates_of(pem), certificates_of(other_pem)
    made = issued_by(key, pem)
    assert is_issued_by(made, ca)
    assert not is_issued_by(made, other)
    assert is_issued_by(issued_by(other_key, other_pem), other)
    assert not is_issued_by(made, b"no certificate")


def test_two_thirds_of_a_life_are_counted_from_when_it_was_made():
    validity = validity_of(issued_by(*new_root("home", "node"), lifetime_s=900))
    made_ms = validity.begins_ms + limits.CERTIFICATE_BACKDATE_MS
    assert validity.ends_ms - made_ms == 900_000
    assert validity.renewal_ms - made_ms == 600_000
    assert Validity(0, 10).renewal_ms == 10


@given(st.binary(max_size=300))
def test_what_is_no_certificate_is_said_so(data):
    with pytest.raises(TrustError) as caught:
        validity_of(data)
    assert caught.value.code == "trust.file"


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_certificate_raises_nothing_else(at, byte):
    whole = bytearray(CERTIFICATE)
    whole[at % len(whole)] = byte
    with contextlib.suppress(TrustError):
        assert validity_of(bytes(whole)).renewal_ms


CERTIFICATE = issued_by(*new_root("home", "node"))
