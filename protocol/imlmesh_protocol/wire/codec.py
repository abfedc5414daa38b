"""msgpack with limits: the only way bytes of the wire become values and back.

The one rule: what `unpack` returns holds only None, bool, int, finite float, str, bytes, list and
dict with unique str keys, within the limits of `limits`. Its refusals are `ProtocolError`s.
"""

import math
import threading
from itertools import chain
from typing import Any

import msgpack

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.limits import MESSAGE_BYTES, MESSAGE_DEPTH, MESSAGE_VALUES

_TEXT = frozenset({str})
_SCALARS = frozenset({type(None), bool, int, str, bytes})
_NUMBERS = {int, float}
_LISTS = {list}
_KNOWN = _SCALARS | {float, dict, list, tuple}


class _Packer(threading.local):
    """One for each thread, for making one costs as much as packing a small message."""

    def __init__(self) -> None:
        self.pack = msgpack.Packer().pack


_packer = _Packer()


def pack(value: Any) -> bytes:
    """Encode `value`; `message.invalid` when it holds something that msgpack cannot carry."""
    try:
        packed: bytes = _packer.pack(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise ProtocolError("message.invalid", f"cannot be encoded: {exc}") from exc
    return packed


def unpack(data: bytes, *, max_bytes: int = MESSAGE_BYTES) -> Any:
    """Decode `data` under the limits; `message.too_large` or `message.invalid` otherwise."""
    value = unpack_unchecked(data, max_bytes=max_bytes)
    check_values(value)
    return value


def unpack_unchecked(data: bytes, *, max_bytes: int = MESSAGE_BYTES) -> Any:
    """As `unpack`, for who knows the type of every value: those of any type are still to be given
    to `check_values`."""
    if len(data) > max_bytes:
        raise ProtocolError("message.too_large", f"{len(data)} bytes, at most {max_bytes}")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique_keys,
            timestamp=0,
            max_array_len=MESSAGE_VALUES,
            max_map_len=MESSAGE_VALUES,
        )
    except ProtocolError:
        raise
    # OverflowError: a timestamp out of range; the others are msgpack's own and bad UTF-8
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as exc:
        raise ProtocolError("message.invalid", f"not msgpack: {type(exc).__name__}") from exc


def check_values(value: Any, *, depth: int = 0) -> None:
    """Refuse what may not travel: foreign types, NaN, too deep or too many values.

    `value` lies in `depth` others.
    """
    level = [value]
    count = 0
    while level:
        depth += 1
        count += len(level)
        if depth > MESSAGE_DEPTH:
            raise ProtocolError("message.invalid", f"nested deeper than {MESSAGE_DEPTH}")
        if count > MESSAGE_VALUES:
            raise ProtocolError("message.invalid", f"more than {MESSAGE_VALUES} values")
        kinds = set(map(type, level))
        if kinds <= _SCALARS:
            return
        level = _below(level, kinds)


def _below(level: list[Any], kinds: set[type]) -> list[Any]:
    """What the values of a level hold. By kinds and not one by one: a message of readings has
    thousands of values."""
    foreign = kinds - _KNOWN
    if foreign:
        names = ", ".join(sorted(kind.__name__ for kind in foreign))
        raise ProtocolError("message.invalid", f"{names} value not allowed")
    if kinds <= _NUMBERS and math.isfinite(sum(level)):
        return []  # what is not finite, or the sum of it, would show: the quick way for readings
    if float in kinds and not all(map(math.isfinite, [v for v in level if type(v) is float])):
        raise ProtocolError("message.invalid", "float value not allowed: it is not finite")
    if kinds == _LISTS:
        return [*chain.from_iterable(level)]
    below: list[Any] = []
    for item in level:
        if type(item) is dict:
            below.extend(item.values())
        elif type(item) is list or type(item) is tuple:
            below.extend(item)
    return below


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ProtocolError("message.invalid", "duplicate key")
    if not _TEXT.issuperset(map(type, result)):
        raise ProtocolError("message.invalid", "a key is not text")
    return result
