"""msgpack under limits: what goes in comes out, and nothing else comes in."""

import struct

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.limits import MESSAGE_BYTES, MESSAGE_DEPTH, MESSAGE_VALUES
from imlmesh_protocol.wire.codec import pack, unpack

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.binary(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_what_is_packed_comes_back(value: object) -> None:
    assert unpack(pack(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    code = "read"
    try:
        unpack(data)
    except ProtocolError as exc:
        code = exc.code
    assert code in ("read", "message.invalid")


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x82\xa1a\x01\xa1a\x02", id="duplicate key"),
        pytest.param(b"\x81\xc4\x01a\x01", id="bytes key"),
        pytest.param(b"\x81\x01\x01", id="number key"),
        pytest.param(b"\xcb" + struct.pack(">d", float("nan")), id="NaN"),
        pytest.param(b"\xcb" + struct.pack(">d", float("inf")), id="infinity"),
        pytest.param(b"\xd4\x05a", id="foreign ext"),
        pytest.param(msgpack.packb(msgpack.Timestamp(1)), id="timestamp"),
        pytest.param(b"\xd7\xff" + b"\xff" * 8, id="timestamp out of range"),
        pytest.param(b"\x01\x01", id="trailing bytes"),
        pytest.param(b"\x92\x01", id="cut short"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xa1\xff", id="bad text"),
        pytest.param(nested(MESSAGE_DEPTH + 1), id="too deep"),
        pytest.param(nested(5_000), id="very deep"),
        pytest.param(msgpack.packb([0] * (MESSAGE_VALUES + 1)), id="too many values"),
    ],
)
def test_what_may_not_travel_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        unpack(data)
    assert caught.value.code == "message.invalid"


def test_too_many_bytes_are_refused_unread() -> None:
    with pytest.raises(ProtocolError) as caught:
        unpack(b"\x00" * (MESSAGE_BYTES + 1))
    assert caught.value.code == "message.too_large"


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**70])
def test_what_msgpack_cannot_carry_is_refused_when_packed(value: object) -> None:
    with pytest.raises(ProtocolError):
        pack(value)
