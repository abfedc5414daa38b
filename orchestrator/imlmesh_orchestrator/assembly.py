"""Results that come in chunks, until they are whole.

The one rule: a result counts only when all of it is here and has the hash that its node signed with
each chunk. Room for all of it is set aside with its first chunk: what has begun can end, and a newcomer
waits when a fleet reports at once. Deliberately absent: what a result means.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, ProtocolError
from imlmesh_protocol.wire.codec import unpack

#: (node, dispatch, its hash)
_Key = tuple[str, str, bytes]


@dataclass(slots=True)
class _Parts:
    """One result: its chunks by index, and when the last one came."""

    digest: bytes
    count: int
    touched_ms: int = 0
    chunks: dict[int, bytes] = field(default_factory=dict)

    @property
    def room(self) -> int:
        """Bytes set aside for it."""
        return self.count * limits.RESULT_CHUNK_BYTES

    @property
    def missing(self) -> int | None:
        """Index of the first chunk that is not here."""
        return next((i for i in range(self.count) if i not in self.chunks), None)


class Assembly:
    """Times in ms, of the clock that the caller counts with."""

    def __init__(self) -> None:
        #: the one that was touched last at the end
        self._results: dict[_Key, _Parts] = {}
        self._rooms: Counter[str] = Counter()

    @property
    def size(self) -> int:
        """Bytes set aside now."""
        return self._rooms.total()

    def take(self, node: str, item: Mapping[str, Any], at_ms: int) -> int | None:
        """Keep a checked item of a `complete` with a chunk; the index of the next one that is
        missing, or None when the result is whole. LinkError `link.full` without room for it."""
        self.expire(at_ms)
        chunk = item["chunk"]
        key = (node, item["id"], item["hash"])
        parts = self._results.get(key)
        if parts is None or (parts.digest, parts.count) != (chunk["hash"], chunk["count"]):
            parts = self._begin(key, _Parts(chunk["hash"], chunk["count"]))
        parts.touched_ms = at_ms
        parts.chunks.setdefault(chunk["index"], chunk["data"])
        self._results[key] = self._results.pop(key)
        return parts.missing

    def value(self, node: str, item: Mapping[str, Any]) -> Any:
        """The whole result; ProtocolError `message.invalid` when it is not what was announced.

        It stays here for a while, since a node that does not hear of its success sends the last
        chunk again.
        """
        key = (node, item["id"], item["hash"])
        parts = self._results[key]
        packed = b"".join(parts.chunks[index] for index in range(parts.count))
        try:
            if hashlib.sha256(packed).digest() != parts.digest:
                text = f"{item['id'][:120]}: the chunks do not make the result that they announce"
                raise ProtocolError("message.invalid", text)
            return unpack(packed, max_bytes=limits.RESULT_BYTES)
        except ProtocolError:
            self._forget(key)
            raise

    def expire(self, at_ms: int) -> None:
        """Forget what nobody went on with."""
        while self._results:
            key = next(iter(self._results))
            if self._results[key].touched_ms + limits.ASSEMBLY_MS > at_ms:
                return
            self._forget(key)

    def _begin(self, key: _Key, parts: _Parts) -> _Parts:
        node = key[0]
        if key in self._results:
            self._forget(key)
        while self._rooms[node] + parts.room > limits.ASSEMBLY_NODE_BYTES:
            self._forget(next(other for other in self._results if other[0] == node))
        while self.size + parts.room > limits.ASSEMBLY_BYTES:
            self._forget(self._dispensable(node))
        self._results[key] = parts
        self._rooms[node] += parts.room
        return parts

    def _dispensable(self, node: str) -> _Key:
        """A whole result is only here in case of a lost ack, and one at a time is a node's share."""
        for key, parts in self._results.items():
            if parts.missing is None:
                return key
        most, room = self._rooms.most_common(1)[0]
        if most == node or room <= limits.RESULT_CHUNKS * limits.RESULT_CHUNK_BYTES:
            raise LinkError("link.full", f"{node}: large results of other nodes are on their way")
        return next(key for key in self._results if key[0] == most)

    def _forget(self, key: _Key) -> None:
        parts = self._results.pop(key)
        self._rooms[key[0]] -= parts.room
        if not self._rooms[key[0]]:
            del self._rooms[key[0]]
