"""Which public keys are believed at all, and how keys are named. No files."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey

from imlmesh_protocol.errors import TrustError
from imlmesh_runtime.trust import PublicKey, Signer, key_id, public_key

P = 2**255 - 19
# y of the eight points whose order divides 8, as every table of them lists; two of order 8.
ORDER_8 = (
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)
WEAK = [y.to_bytes(32, "little") for y in (0, 1, P - 1, P, P + 1)] + [
    bytes.fromhex(point) for point in ORDER_8
]


@pytest.mark.parametrize("raw", WEAK, ids=lambda raw: raw.hex()[:8])
@pytest.mark.parametrize("sign_bit", [0, 0x80])
def test_a_small_order_key_is_refused(raw, sign_bit):
    with pytest.raises(TrustError) as caught:
        public_key(raw[:31] + bytes((raw[31] | sign_bit,)))
    assert caught.value.code == "trust.file"


def test_the_reason_for_it_a_weak_key_verifies_what_nobody_signed():
    # libsodium refuses such keys as well; other libraries do not
    weak = Ed25519PublicKey.from_public_bytes((1).to_bytes(32, "little"))
    forged = (1).to_bytes(32, "little") + bytes(32)
    for message in (b"anything", b"something else"):
        assert weak.verify(forged, message) is None, "it raises when it does not believe"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_key_of_another_length_is_refused(size):
    with pytest.raises(TrustError):
        public_key(b"\x07" * size)


def test_ordinary_keys_are_accepted():
    for _ in range(50):
        raw = bytes(SigningKey.generate().verify_key)
        assert bytes(public_key(raw)) == raw


def test_a_signer_signs_what_its_public_key_verifies():
    signer = Signer.of_key(SigningKey.generate())
    public = PublicKey.of_raw(signer.raw_public)
    assert public.key_id == signer.key_id == hashlib.sha256(signer.raw_public).digest()[:8]
    public.key.verify(b"data", signer.sign(b"data"))
    with pytest.raises(BadSignatureError):
        public.key.verify(b"other data", signer.sign(b"data"))


def test_a_key_id_is_eight_bytes():
    assert len(key_id(bytes(32))) == 8
