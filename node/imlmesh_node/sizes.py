"""What a result may be: plain values, few and small enough.

The one rule: what passes here can be sent, stored and read by every receiver. A tiny result,
which most are, costs no encoding; a large one stays encoded from here on.
"""

import math
from typing import Any

from imlmesh_protocol.errors import DriverError, ProtocolError
from imlmesh_protocol.limits import (
    MESSAGE_DEPTH,
    MESSAGE_VALUES,
    RESULT_BYTES,
    RESULT_CHUNK_BYTES,
)
from imlmesh_protocol.wire.codec import pack, unpack

# a result lies within its item, the list of results and the body
_DEPTH = MESSAGE_DEPTH - 3
_VALUES = MESSAGE_VALUES - 100
_TINY_VALUES = 32
_TINY_CHARS = 256


def check_result(value: Any) -> tuple[Any, bytes]:
    """The result as it will travel: the value, or, of one that needs several messages, its msgpack.

    Raises DriverError `result.too_large` or `driver.failed`.
    """
    if value is None or is_tiny(value):
        return value, b""
    try:
        packed = pack(value)
    except ProtocolError as exc:
        raise DriverError("driver.failed", f"the result {exc.message}") from exc
    if len(packed) > RESULT_BYTES:
        text = f"the result has {len(packed)} bytes, at most {RESULT_BYTES} fit"
        raise DriverError("result.too_large", text)
    depth, values = measure(value)
    if depth > _DEPTH or values > _VALUES:
        text = f"the result has {values} values, {depth} deep; {_VALUES} and {_DEPTH} fit"
        raise DriverError("result.too_large", text)
    try:
        checked = unpack(packed, max_bytes=RESULT_BYTES)
    except ProtocolError as exc:
        raise DriverError("driver.failed", f"the result: {exc.message}") from exc
    return (checked, b"") if len(packed) <= RESULT_CHUNK_BYTES else (None, packed)


def measure(value: Any) -> tuple[int, int]:
    """(depth, values) as receivers count them; a scalar is (1, 1)."""
    level, depth, values = [value], 0, 0
    while level:
        depth += 1
        values += len(level)
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                below.extend(item.values())
            elif type(item) in (list, tuple):
                below.extend(item)
        level = below
    return depth, values


def packed_bytes(value: Any) -> int:
    """How long a checked result is when it travels."""
    return len(pack(value))


def is_tiny(value: Any) -> bool:
    """A flat map of few and short plain values, which every receiver takes as it is."""
    if type(value) is not dict or len(value) > _TINY_VALUES:
        return False
    for key, item in value.items():
        kind = type(item)
        if type(key) is not str or len(key) > _TINY_CHARS:
            return False
        if kind is int:
            if not -(1 << 63) <= item < 1 << 63:
                return False
        elif kind is float:
            if not math.isfinite(item):
                return False
        elif kind is str:
            if len(item) > _TINY_CHARS or not item.isascii():
                return False
        elif item is not None and kind is not bool:
            return False
    return True
