"""Dispatches as bytes, and the table of fields."""

import msgpack
import pytest

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import messages, topics
from imlmesh_protocol.wire.messages import decode_dispatch, encode_dispatch


def encoded() -> bytes:
    return encode_dispatch(
        "r-1/a/pi/1",
        "iot",
        "digital_write",
        {"pin": 17},
        Effect.PHYSICAL,
        60_000,
        6_000,
        "finish",
        ("gpio:17",),
    )


def test_a_dispatch_comes_back_as_it_went() -> None:
    dispatch = decode_dispatch(encoded())
    assert dispatch.effect is Effect.PHYSICAL
    assert (dispatch.id, dispatch.params, dispatch.claims) == (
        "r-1/a/pi/1",
        {"pin": 17},
        ("gpio:17",),
    )
    assert (dispatch.timeout_ms, dispatch.lease_ms, dispatch.on_busy) == (60_000, 6_000, "wait")


def test_the_same_dispatch_has_the_same_bytes() -> None:
    assert encoded() == encoded()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 5),
        ("params", []),
        ("effect", "maybe"),
        ("timeout_ms", -1),
        ("timeout_ms", True),
        ("lease_ms", 1.5),
        ("when_cut_off", "explode"),
        ("claims", ["a", 1]),
        ("on_busy", None),
    ],
)
def test_a_dispatch_with_a_wrong_field_is_refused(name: str, value: object) -> None:
    body = {**msgpack.unpackb(encoded()), name: value}
    with pytest.raises(ProtocolError) as caught:
        decode_dispatch(msgpack.packb(body))
    assert caught.value.code == "message.invalid"


@pytest.mark.parametrize("change", [{"more": 1}, {"params": None}])
def test_a_dispatch_with_other_fields_is_refused(change: dict[str, object]) -> None:
    body = msgpack.unpackb(encoded())
    body.update(change)
    with pytest.raises(ProtocolError):
        decode_dispatch(msgpack.packb(body))


def test_every_kind_has_its_fields() -> None:
    assert set(messages.FIELDS) == set(topics.Kind)
