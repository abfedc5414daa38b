"""Tokens, proofs and codes: what was made is read again, and nothing else is taken for it."""

import contextlib
import hashlib
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_orchestrator.entry.nonces import Allowance, Nonces
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.joining import (
    JoinAsk,
    JoinToken,
    code_of,
    commitment_of,
    hkdf,
    proof_of,
    proves,
    token_key,
    unpack_body,
)

NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
ENDPOINTS = st.lists(
    st.sampled_from(["127.0.0.1:8766", "[fd00::20]:8766", "pi.local:1"]), max_size=4
)
TOKENS = st.builds(
    JoinToken,
    NAMES,
    ENDPOINTS.map(tuple),
    st.binary(min_size=32, max_size=32),
    NAMES,
    st.binary(min_size=16, max_size=16),
)
TOKEN = JoinToken("home", ("127.0.0.1:8766",), b"p" * 32, "t-1", b"s" * 16)
ASK = JoinAsk(
    "pi-bed", "readonly", b"i" * 32, b"request", b"n" * 16, "t-1", b"p" * 32, b"", b"s" * 64
)


@given(TOKENS)
def test_a_token_is_one_word_and_comes_back(token):
    assert JoinToken.parse(token.text) == token
    assert token.text.startswith("mj1_")
    assert token.text.isascii()
    assert not set(token.text) & set(" \n=+/'\"$")
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)


@given(TOKENS, st.data())
def test_a_token_that_was_changed_or_cut_off_is_none(token, data):
    text = token.text
    at = data.draw(st.integers(0, len(text) - 1))
    changed = data.draw(st.sampled_from("abcXYZ019-_. \n"))
    for bad in (text[:at], text[:at] + changed + text[at + 1 :], text[:at] + text[at + 1 :]):
        if bad == text:
            continue
        with contextlib.suppress(MeshError):
            assert JoinToken.parse(bad).text == bad, "one text for one token"
            continue
        with pytest.raises(MeshError) as caught:
            JoinToken.parse(bad)
        assert caught.value.code == "token.invalid"
        # what is nearly a secret is not repeated in messages and logs
        assert bad[8:] not in caught.value.message or len(bad) < 12


@given(st.text() | st.binary().map(lambda data: f"mj1_{data.hex()}"))
def test_no_text_is_a_token_by_chance(text):
    with pytest.raises(MeshError) as caught:
        JoinToken.parse(text)
    assert caught.value.code == "token.invalid"


@pytest.mark.parametrize(
    "changed",
    [
        {"endpoints": ("a b:1",)},
        {"endpoints": ("127.0.0.1",)},
        {"endpoints": ("x:1",) * 5},
        {"mesh": "a/b"},
        {"id": ""},
        {"pin": b"short"},
        {"secret": b"short"},
    ],
)
def test_a_token_of_other_parts_is_none(changed):
    with pytest.raises(MeshError):
        JoinToken.parse(replace(TOKEN, **changed).text)


def test_hkdf_is_that_of_rfc_5869():
    """Test case 1, of which 32 bytes are the first."""
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    wanted = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    assert hkdf(b"\x0b" * 22, salt, info).hex() == wanted


def test_a_key_is_of_one_mesh_and_one_token():
    keys = {token_key(b"s" * 16, *each) for each in (("a", "bc"), ("ab", "c"), ("a", "b"))}
    assert len(keys) == 3
    assert TOKEN.key == token_key(TOKEN.secret, "home", "t-1")
    assert TOKEN.secret not in TOKEN.key


def test_a_proof_binds_all_that_is_asked():
    proven = ASK.to_prove("home", b"certificate")
    proof = proof_of(TOKEN.key, proven)
    assert proves(TOKEN.key, proven, proof)
    others = [ASK.to_prove("hom", b"certificate"), ASK.to_prove("home", b"another")]
    for field in fields(JoinAsk):
        if field.name not in ("proof", "signature"):
            value = getattr(ASK, field.name)
            other = value[:-1] + (b"?" if isinstance(value, bytes) else "?") if value else b"?"
            others.append(replace(ASK, **{field.name: other}).to_prove("home", b"certificate"))
    assert len({proven, *others}) == len(others) + 1
    assert not any(proves(TOKEN.key, each, proof) for each in others)
    assert not proves(replace(TOKEN, secret=b"x" * 16).key, proven, proof)


@given(st.binary(max_size=200))
def test_parts_never_run_into_each_other(data):
    one = replace(ASK, node="a", profile="bc").to_prove("home", data)
    assert one != replace(ASK, node="ab", profile="c").to_prove("home", data)


def test_what_is_asked_comes_back():
    for asked in (ASK, replace(ASK, token="", proof=b"", own=b"o" * 16), replace(ASK, profile="")):
        assert JoinAsk.of_wire(unpack_body(pack(asked.to_wire()))) == asked


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"node": "a/b"}, "name.invalid"),
        ({"node": "a\x00"}, "name.invalid"),
        ({"node": 4}, "join.invalid"),
        ({"profile": "root"}, "join.invalid"),
        ({"identity": b"short"}, "join.invalid"),
        ({"identity": "i" * 32}, "join.invalid"),
        ({"request": "text"}, "join.invalid"),
        ({"nonce": b"n" * 15}, "join.invalid"),
        ({"token": "a/b"}, "join.invalid"),
        ({"token": ""}, "join.invalid"),
        ({"own": b"o" * 16}, "join.invalid"),
        ({"own": b"o"}, "join.invalid"),
        ({"signature": b""}, "join.invalid"),
        ({"more": 1}, "join.invalid"),
    ],
)
def test_nothing_else_is_asked(changed, code):
    with pytest.raises(MeshError) as caught:
        JoinAsk.of_wire({**ASK.to_wire(), **changed})
    assert caught.value.code == code


@given(st.recursive(st.none() | st.binary() | st.text() | st.integers(0, 9), st.lists))
def test_any_other_body_is_refused_with_a_code(value):
    for body in (value, {"node": value}, {**ASK.to_wire(), "identity": value}):
        with pytest.raises(MeshError):
            JoinAsk.of_wire(body)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_body_or_refused(data):
    with pytest.raises(MeshError) as caught:
        JoinAsk.of_wire(unpack_body(data))
    assert caught.value.code in ("join.invalid", "name.invalid", "message.invalid")


def test_a_body_has_a_size():
    with pytest.raises(MeshError) as caught:
        unpack_body(pack(b"x" * limits.JOIN_BYTES))
    assert caught.value.code == "message.too_large"
    assert unpack(pack(ASK.to_wire()))["node"] == "pi-bed"


def test_codes_are_short_and_change_with_everything():
    parts = (b"root", b"identity", b"own", b"nonce")
    found = {code_of(*parts)}
    for place in range(4):
        other = [*parts]
        other[place] = b"else"
        found.add(code_of(*other))
    assert len(found) == 5
    assert all(len(code) == 7 and code[3] == "-" and code.isupper() for code in found)
    assert commitment_of(b"own", b"identity") != commitment_of(b"ow", b"nidentity")
    assert commitment_of(b"own", b"identity") != hashlib.sha256(b"ownidentity").digest()


@given(st.binary(min_size=16, max_size=16))
def test_every_sign_of_a_code_is_one_that_is_read_out_well(own):
    assert set(code_of(b"r" * 32, b"i" * 32, own, b"n" * 16)) <= set(
        "0123456789ABCDEFGHJKMNPQRSTVWXYZ-"
    )


def test_a_nonce_is_good_once_for_a_while_and_for_what_was_committed(monkeypatch):
    monkeypatch.setattr(limits, "JOIN_NONCES", 2)
    nonces = Nonces()
    one, two = nonces.give(0), nonces.give(0, b"commitment")
    assert nonces.take(two, limits.JOIN_NONCE_MS - 1) == b"commitment"
    for nonce, now_ms in ((two, 0), (one, limits.JOIN_NONCE_MS), (b"n" * 16, 0)):
        with pytest.raises(MeshError) as caught:
            nonces.take(nonce, now_ms)
        assert caught.value.code == "join.nonce"
    first, _, _ = (nonces.give(0) for _ in range(3))
    with pytest.raises(MeshError):
        nonces.take(first, 0)


def test_a_pace_is_kept_for_each_and_forgotten_in_time(monkeypatch):
    monkeypatch.setattr(limits, "JOIN_WRITES", 2)
    pace = Allowance()
    for now_ms in (0, 1):
        pace.take("a", now_ms)
    with pytest.raises(MeshError) as caught:
        pace.take("a", 2)
    assert caught.value.code == "join.busy"
    pace.take("b", 2)
    pace.take("a", limits.JOIN_PACE_MS)
