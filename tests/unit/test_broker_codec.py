"""MQTT packets: what is right comes back as it was, anything else is refused with a code."""

import contextlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_broker.embedded import codec
from imlmesh_broker.embedded.codec import Message
from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError
from imlmesh_runtime.link.packets import next_packet

CODES = {"message.invalid", "message.too_large"}
NAMES = st.text(
    st.characters(exclude_characters="+#\0", exclude_categories=["Cs"]), min_size=1, max_size=40
)
PARSERS = [
    codec.parse_connect,
    lambda body: codec.parse_publish(0x30, body),
    lambda body: codec.parse_publish(0x32, body),
    lambda body: codec.parse_filters(codec.SUBSCRIBE, body),
    lambda body: codec.parse_filters(codec.UNSUBSCRIBE, body),
    lambda body: codec.parse_number(body, 2),
    codec.read_topic,
]


def field(data: bytes) -> bytes:
    return len(data).to_bytes(2) + data


def connect(flags: int = 0x02, name: bytes = b"MQTT", level: int = 4, rest: bytes = b"") -> bytes:
    return field(name) + bytes((level, flags)) + b"\x00\x14" + field(b"a") + rest


@contextlib.contextmanager
def refused_with_a_code() -> Iterator[None]:
    """Anything but a coded refusal fails the test."""
    try:
        yield
    except ProtocolError as exc:
        if exc.code not in CODES:
            raise


@given(st.sampled_from(PARSERS), st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused_with_a_code(parser, body):
    with refused_with_a_code():
        parser(body)


@given(st.binary(max_size=40), st.data())
def test_a_damaged_connect_is_parsed_or_refused_with_a_code(will, data):
    body = bytearray(connect(0xC6, rest=field(b"t") + field(will) + field(b"u") + field(b"p")))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with refused_with_a_code():
        found = codec.parse_connect(bytes(body))
        assert found is None or 0 <= found[1] <= 65_535


@given(NAMES, st.binary(max_size=300), st.integers(0, 65_535), st.booleans())
def test_a_publish_comes_back_as_it_was(topic, payload, packet_id, retain):
    packet = bytearray(codec.publish(topic.encode(), payload, packet_id, retain))
    begin, end = next_packet(packet, 0)
    assert end == len(packet)
    assert packet[0] & 1 == retain
    assert packet[0] >> 1 & 3 == bool(packet_id)
    body = bytes(packet[begin:end])
    assert codec.parse_publish(packet[0], body) == (topic.encode(), packet_id, payload)
    assert codec.read_topic(topic.encode()) == topic


@given(st.integers(0, 20_000))
def test_a_packet_is_framed_by_its_length(size):
    packet = bytearray(codec.framed(0x30, bytes(size)))
    begin, end = next_packet(packet, 0)
    assert (end - begin, end) == (size, len(packet))
    assert next_packet(packet[:-1], 0) is None


@given(st.lists(st.tuples(NAMES, st.integers(0, 2)), min_size=1, max_size=5))
def test_filters_come_back_as_they_were(wanted):
    body = b"\x00\x05" + b"".join(field(name.encode()) + bytes((qos,)) for name, qos in wanted)
    assert codec.parse_filters(codec.SUBSCRIBE, body) == (5, wanted)
    body = b"\x00\x05" + b"".join(field(name.encode()) for name, _ in wanted)
    assert codec.parse_filters(codec.UNSUBSCRIBE, body) == (5, [(name, 0) for name, _ in wanted])


def test_a_connect_with_everything():
    rest = field(b"imlmesh/1/home/from/a/status") + field(b"gone") + field(b"user") + field(b"pw")
    will = Message("imlmesh/1/home/from/a/status", b"gone", 1, True)
    assert codec.parse_connect(connect(0xEE, rest=rest)) == ("a", 20, will)
    assert codec.parse_connect(connect(0x02)) == ("a", 20, None)


def test_a_will_is_no_longer_than_a_status_needs():
    most = bytes(limits.BROKER_WILL_BYTES)
    _, _, will = codec.parse_connect(connect(0x06, rest=field(b"t") + field(most)))
    assert will.payload == most
    with pytest.raises(ProtocolError) as caught:
        codec.parse_connect(connect(0x06, rest=field(b"t") + field(most + b"x")))
    assert caught.value.code == "message.too_large"


@pytest.mark.parametrize(("name", "level"), [(b"MQTT", 5), (b"MQIsdp", 3), (b"MQTT", 0x84)])
def test_another_version_is_told_apart_from_nonsense(name, level):
    assert codec.parse_connect(connect(name=name, level=level)) is None


@pytest.mark.parametrize(
    "body",
    [
        connect(0x03),
        connect(0x42, rest=field(b"pw")),
        connect(0x1E, rest=field(b"t") + field(b"")),
        connect(0x22),
        connect(0x06, rest=field(b"t")),
        connect(0x06, rest=field(b"t/#") + field(b"")),
        connect(0x02, rest=b"x"),
        connect(name=b"HTTP"),
        field(b"MQTT") + b"\x04\x02",
        field(b"MQTT") + b"\x04\x02\x00\x14" + field(b"\xff"),
    ],
    ids=range(10),
)
def test_a_wrong_connect_is_refused(body):
    with pytest.raises(ProtocolError) as caught:
        codec.parse_connect(body)
    assert caught.value.code == "message.invalid"


@pytest.mark.parametrize("asked", ["a#", "a/#/b", "+a", "a/b+", "#/a", "", "a\0", "#a"])
def test_a_wrong_filter_is_refused(asked):
    with pytest.raises(ProtocolError) as caught:
        codec.parse_filters(codec.UNSUBSCRIBE, b"\x00\x01" + field(asked.encode()))
    assert caught.value.code == "message.invalid"


@pytest.mark.parametrize("topic", ["", "a/+", "#", "a\0b"])
def test_a_wrong_topic_is_refused(topic):
    with pytest.raises(ProtocolError) as caught:
        codec.read_topic(topic.encode())
    assert caught.value.code == "message.invalid"


def test_a_name_above_the_limit_is_refused():
    with pytest.raises(ProtocolError) as caught:
        codec.read_topic(b"x" * (limits.BROKER_TOPIC_BYTES + 1))
    assert caught.value.code == "message.too_large"


def test_qos_2_is_refused():
    with pytest.raises(ProtocolError) as caught:
        codec.parse_publish(0x34, field(b"t") + b"\x00\x01")
    assert caught.value.code == "message.invalid"
