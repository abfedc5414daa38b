"""Signed documents: what they say comes back, and nothing else is read."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey, VerifyKey

from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.wire import documents
from imlmesh_protocol.wire.documents import Roster, Trust
from imlmesh_protocol.wire.envelope import signing_input

KEY = SigningKey(b"k" * 32)
ID = b"k" * 8
TRUST = Trust("home", 3, (b"node",), (b"control",), (b"p" * 32,), (b"l" * 32,), (b"r" * 32,))
ROSTER = Roster("home", 4, 5, ("o",), {"a": ("active", "readonly"), "b": ("revoked", "readonly")})


def sign(data: bytes) -> bytes:
    return KEY.sign(data).signature


def find(key_id: bytes) -> VerifyKey | None:
    return KEY.verify_key if key_id == ID else None


def forged(kind: str, body: object, **changed: object) -> bytes:
    """Signed as it should be, whatever it holds."""
    packed = body if isinstance(body, bytes) else msgpack.packb(body)
    parts = {"version": 1, "kind": kind, "key_id": ID, "body": packed}
    parts["signature"] = sign(signing_input(kind, packed))
    return msgpack.packb(list((parts | changed).values()))


def test_what_was_signed_comes_back():
    assert Trust.open(TRUST.sealed(sign, ID), find) == TRUST
    assert Roster.open(ROSTER.sealed(sign, ID), find) == ROSTER
    assert documents.kind_of(TRUST.sealed(sign, ID)) == documents.TRUST


@pytest.mark.parametrize("document", [TRUST.sealed(sign, ID), ROSTER.sealed(sign, ID)])
def test_no_flipped_bit_is_believed(document):
    made = Trust if documents.kind_of(document) == documents.TRUST else Roster
    for bit in range(len(document) * 8):
        bad = bytearray(document)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(MeshError):
            made.open(bytes(bad), find)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("trust", {}),
        ("trust", []),
        ("trust", b"\xc1"),
        ("trust", {**{n: [b"x" * 32] for n in Trust.__slots__}, "mesh": "home", "version": -1}),
        ("trust", {**{n: [b"x" * 32] for n in Trust.__slots__}, "mesh": "../x", "version": 1}),
        ("trust", {**{n: [] for n in Trust.__slots__}, "mesh": "home", "version": 1}),
        ("trust", {**{n: [b"x" * 31] for n in Trust.__slots__}, "mesh": "home", "version": 1}),
        ("trust", {**{n: [b"x" * 32] * 9 for n in Trust.__slots__}, "mesh": "home", "version": 1}),
        (
            "trust",
            {**{n: [b"x" * 32] for n in Trust.__slots__}, "mesh": "home", "version": 1, "more": 1},
        ),
        ("roster", {"mesh": "home", "version": 1, "at_ms": 1, "orchestrators": "o", "nodes": {}}),
        (
            "roster",
            {
                **{"mesh": "home", "version": 1, "at_ms": 1, "orchestrators": ["o"]},
                "nodes": {"active": {"readonly": ["a/b"]}},
            },
        ),
        (
            "roster",
            {
                **{"mesh": "home", "version": 1, "at_ms": 1, "orchestrators": ["o"]},
                "nodes": {"active": {"readonly": ["a"]}, "revoked": {"readonly": ["a"]}},
            },
        ),
        (
            "roster",
            {
                **{"mesh": "home", "version": 1, "at_ms": 1, "orchestrators": ["o"]},
                "nodes": {"king": {"readonly": ["a"]}},
            },
        ),
        (
            "roster",
            {
                **{"mesh": "home", "version": 1, "at_ms": 1, "orchestrators": ["o"]},
                "nodes": {"active": ["a"]},
            },
        ),
    ],
)
def test_what_is_signed_and_makes_no_sense_is_refused(kind, body):
    made = Trust if kind == "trust" else Roster
    with pytest.raises(MeshError) as caught:
        made.open(forged(kind, body), find)
    assert caught.value.code in ("message.invalid", "message.kind")


def test_a_roster_is_no_trust_and_a_stranger_signs_nothing():
    with pytest.raises(MeshError) as caught:
        Trust.open(ROSTER.sealed(sign, ID), find)
    assert caught.value.code == "message.kind"
    with pytest.raises(MeshError) as caught:
        Trust.open(TRUST.sealed(sign, b"x" * 8), find)
    assert caught.value.code == "signature.unknown_key"
    with pytest.raises(MeshError) as caught:
        documents.kind_of(forged("delegate", {}))
    assert caught.value.code == "message.invalid"


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(data):
    for made in (Trust, Roster):
        with pytest.raises(MeshError):
            made.open(data, find)


def test_a_roster_of_the_largest_fleet_fits_into_a_message():
    nodes = {f"n{number}": ("active", "local_worker") for number in range(limits.ENROLLED_NODES)}
    roster = Roster("home", 1, 1, ("o",), nodes)
    document = roster.sealed(sign, ID)
    assert len(document) < limits.DOCUMENT_BYTES
    assert Roster.open(document, find) == roster
