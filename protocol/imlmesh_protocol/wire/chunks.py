"""Pieces of a result that one message cannot carry, as an item of a `complete` holds them.

The one rule: every piece but the last is full, so that its index says where it lies. Deliberately absent:
making the whole of them, which the receiver does within its own bounds.
"""

from collections.abc import Mapping
from typing import Any

from imlmesh_protocol.limits import RESULT_CHUNK_BYTES, RESULT_CHUNKS

_FIELDS = {"index", "count", "hash", "data"}
_SHA256_BYTES = 32


def is_chunk(item: Mapping[str, Any]) -> bool:
    """Whether `item["chunk"]` is a piece, in place of the result of what completed."""
    chunk = item["chunk"]
    if type(chunk) is not dict or chunk.keys() != _FIELDS:
        return False
    index, count, digest, data = (chunk[name] for name in ("index", "count", "hash", "data"))
    return (
        item["outcome"] == "completed"
        and "result" not in item
        and type(count) is int
        and 2 <= count <= RESULT_CHUNKS
        and type(index) is int
        and 0 <= index < count
        and type(digest) is bytes
        and len(digest) == _SHA256_BYTES
        and type(data) is bytes
        and 1 <= len(data) <= RESULT_CHUNK_BYTES
        and (index == count - 1 or len(data) == RESULT_CHUNK_BYTES)
    )
