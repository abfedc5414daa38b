"""The frames between the agent and a driver child: 4 bytes of length, then msgpack.

The one rule: a frame is at most DRIVER_MESSAGE_BYTES, checked before anything is read or sent.
To the child: [site wire] or [site wire, kept], then [call id, action, params, dispatch]. From it:
["ready"] or ["failed", code, message], then ["log", call id, line, stream], ["progress", call id,
fraction, message], ["reading", call id, metric, value, unit, dropped before it], ["result", call id,
value] and ["error", call id, code, message]; at any time ["event", name, values] of a source and
["keep", value] for the next child.
"""

import struct
from typing import Any, BinaryIO

import msgpack

from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.limits import DRIVER_MESSAGE_BYTES

HEADER = struct.Struct(">I")


def encode(frame: list[Any]) -> bytes:
    """A frame with its length; `result.too_large` past the limit, TypeError for foreign types."""
    packed: bytes = msgpack.packb(frame)
    if len(packed) > DRIVER_MESSAGE_BYTES:
        raise DriverError("result.too_large", f"{len(packed)} bytes are more than a frame may have")
    return HEADER.pack(len(packed)) + packed


def decode(packed: bytes) -> list[Any]:
    """The frame of its bytes; ValueError when they are none."""
    frame = msgpack.unpackb(packed, strict_map_key=False)
    if not isinstance(frame, list) or not frame:
        raise ValueError("a frame is a list that says what it is")
    return frame


def length(header: bytes) -> int:
    """The length that a header announces; ValueError past the limit."""
    size: int = HEADER.unpack(header)[0]
    if size > DRIVER_MESSAGE_BYTES:
        raise ValueError(f"a frame of {size} bytes is too large")
    return size


def read(source: BinaryIO) -> list[Any] | None:
    """The next frame of a blocking pipe; None at its end."""
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    size = length(header)
    packed = source.read(size)
    return decode(packed) if len(packed) == size else None
