"""MQTT 3.1.1 as a broker needs it: bodies of packets to values, and packets for clients.

The one rule: a packet is checked whole before anything is done with a part of it; what is wrong
raises ProtocolError, `message.invalid` or `message.too_large`. Pure. Deliberately absent: QoS 2.
"""

from dataclasses import dataclass

from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError

CONNECT, CONNACK, PUBLISH, PUBACK, SUBACK, UNSUBACK = 0x10, 0x20, 0x30, 0x40, 0x90, 0xB0
#: the bits 0010 are reserved and must be set (sections 3.8.1 and 3.10.1 of the OASIS standard)
SUBSCRIBE, UNSUBSCRIBE = OF_FILTERS = 0x82, 0xA2
PINGREQ, PINGRESP, DISCONNECT = 0xC0, b"\xd0\x00", 0xE0
ACCEPTED, OTHER_VERSION, OTHER_ID = 0, 1, 2
REFUSED_FILTER = 0x80


@dataclass(frozen=True, slots=True)
class Message:
    """What is published: a will, or what is retained. `qos` is 0 or 1."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


def parse_connect(body: bytes) -> tuple[str, int, Message | None] | None:
    """(client id, keepalive in seconds or 0 for none, will); None for another version of MQTT."""
    name, at = _field(body, 0)
    if name not in (b"MQTT", b"MQIsdp") or len(body) < at + 4:
        raise ProtocolError("message.invalid", "not a CONNECT")
    level, flags = body[at], body[at + 1]
    if (name, level) != (b"MQTT", 4):
        return None
    keepalive_s = int.from_bytes(body[at + 2 : at + 4])
    will_qos = flags >> 3 & 3
    has_will = bool(flags & 0x04)
    has_name, has_password = flags & 0x80, flags & 0x40
    is_odd = flags & 0x01 or will_qos == 3 or (has_password and not has_name)
    if is_odd or (not has_will and flags & 0x38):
        raise ProtocolError("message.invalid", "flags of a CONNECT")
    client_id, at = _field(body, at + 4)
    will = None
    if has_will:
        topic, at = _field(body, at)
        payload, at = _field(body, at)
        will = Message(read_topic(topic), payload, min(will_qos, 1), bool(flags & 0x20))
    for _ in range(bool(has_name) + bool(has_password)):
        _, at = _field(body, at)
    if at != len(body):
        raise ProtocolError("message.invalid", "bytes behind the end of a CONNECT")
    return _decoded(client_id), keepalive_s, will


def parse_publish(first: int, body: bytes) -> tuple[bytes, int, bytes]:
    """(topic as sent, packet id or 0 at QoS 0, payload); the topic is for `read_topic`."""
    size = 2 + int.from_bytes(body[:2])
    if not first & 0x06:
        if size > len(body):
            raise ProtocolError("message.invalid", "a PUBLISH that ends within its topic")
        return body[2:size], 0, body[size:]
    if first & 0x04:
        raise ProtocolError("message.invalid", "QoS 2 is not spoken here")
    packet_id = int.from_bytes(body[size : size + 2])
    if not packet_id or size + 2 > len(body):
        raise ProtocolError("message.invalid", "a PUBLISH without a packet id")
    return body[2:size], packet_id, body[size + 2 :]


def parse_number(body: bytes, size: int) -> int:
    """A body of `size` bytes as a number: the packet id of a PUBACK, nothing of a PINGREQ."""
    if len(body) != size:
        raise ProtocolError("message.invalid", f"a body of {len(body)} bytes for {size}")
    return int.from_bytes(body)


def parse_filters(first: int, body: bytes) -> tuple[int, list[tuple[str, int]]]:
    """(packet id, [(filter, QoS)]) of a SUBSCRIBE, or an UNSUBSCRIBE, where every QoS is 0."""
    packet_id, at = int.from_bytes(body[:2]), 2
    found = []
    while at < len(body):
        raw, at = _field(body, at)
        asked, qos = _filter(raw), 0
        if first == SUBSCRIBE:
            if at >= len(body) or body[at] > 2:
                raise ProtocolError("message.invalid", "a filter without a QoS")
            qos, at = body[at], at + 1
        found.append((asked, qos))
        if len(found) > limits.BROKER_FILTERS:
            raise ProtocolError(
                "message.too_large", f"over {limits.BROKER_FILTERS} filters at once"
            )
    if not packet_id or not found:
        raise ProtocolError("message.invalid", "a packet without its id or without a filter")
    return packet_id, found


def read_topic(raw: bytes) -> str:
    """A topic that may be published to: not empty, no wildcard, not too long."""
    topic = _name(raw)
    if "+" in topic or "#" in topic:
        raise ProtocolError("message.invalid", "a topic with a wildcard")
    return topic


def publish(topic: bytes, payload: bytes, packet_id: int, retain: bool) -> bytes:
    """A PUBLISH; `packet_id` 0 means QoS 0."""
    first = bytes((PUBLISH | bool(packet_id) << 1 | retain,))
    number = packet_id.to_bytes(2) if packet_id else b""
    size = _length(2 + len(topic) + len(number) + len(payload))
    return b"".join((first, size, len(topic).to_bytes(2), topic, number, payload))


def acknowledged(first: int, packet_id: int) -> bytes:
    """A PUBACK or UNSUBACK."""
    return bytes((first, 2)) + packet_id.to_bytes(2)


def framed(first: int, body: bytes) -> bytes:
    """A packet of any kind."""
    return bytes((first,)) + _length(len(body)) + body


def _length(size: int) -> bytes:
    if size < 128:
        return bytes((size,))
    return bytes((size & 0x7F | 0x80,)) + _length(size >> 7)


def _filter(raw: bytes) -> str:
    asked = _name(raw)
    *upper, last = asked.split("/")
    if any("#" in level for level in upper) or ("#" in last and last != "#"):
        raise ProtocolError("message.invalid", "a # that is not the last level")
    if any("+" in level and level != "+" for level in (*upper, last)):
        raise ProtocolError("message.invalid", "a + that is not a level of its own")
    return asked


def _name(raw: bytes) -> str:
    if len(raw) > limits.BROKER_TOPIC_BYTES:
        raise ProtocolError("message.too_large", f"a topic of {len(raw)} bytes")
    if not raw:
        raise ProtocolError("message.invalid", "an empty topic")
    return _decoded(raw)


def _field(body: bytes, at: int) -> tuple[bytes, int]:
    """(bytes behind their length of two bytes, where they end)."""
    end = at + 2 + int.from_bytes(body[at : at + 2])
    if at + 2 > len(body) or end > len(body):
        raise ProtocolError("message.invalid", "a field that is longer than its packet")
    return body[at + 2 : end], end


def _decoded(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as exc:
        raise ProtocolError("message.invalid", "text that is not UTF-8") from exc
    if "\0" in text:
        raise ProtocolError("message.invalid", "text with U+0000")
    return text
