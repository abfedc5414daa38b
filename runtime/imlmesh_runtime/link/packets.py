"""Where an MQTT packet begins and ends in a stream of bytes.

The one rule: a packet above the limit is refused at its header, before its body is awaited.
Deliberately absent: what packets mean.
"""

from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError


def next_packet(buffer: bytearray, start: int) -> tuple[int, int] | None:
    """(begin, end) of the body of the packet at `start`, or None while it is not complete."""
    size = shift = 0
    for index in range(start + 1, min(start + 5, len(buffer))):
        size |= (buffer[index] & 0x7F) << shift
        shift += 7
        if size > limits.LINK_PACKET_BYTES:
            raise ProtocolError("message.too_large", f"a packet of {size} bytes")
        if buffer[index] < 0x80:
            end = index + 1 + size
            return (index + 1, end) if end <= len(buffer) else None
    if len(buffer) - start > 4:
        raise ProtocolError("message.invalid", "the length of a packet takes over four bytes")
    return None
