"""Large results on their way: which chunk goes out next.

The one rule: one chunk is under way at a time, whatever waits, so that a slow link never holds up a
heartbeat for longer than that; the receiver says which one it wants next, so only what is missing
is sent. Deliberately absent: the bytes, which lie in the journal.
"""

from imlmesh_protocol.limits import CHUNK_RESEND_MS


class Bulks:
    """Dispatch ids in the order in which their results take turns; times in ms."""

    def __init__(self) -> None:
        #: dispatch id to the index of the chunk that it wants
        self._next: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        #: bytes of all of them
        self.size = 0
        self._sent_ms: int | None = None

    def __len__(self) -> int:
        return len(self._next)

    def add(self, id: str, size: int) -> None:
        """This result is to be sent until `forget`."""
        self._next[id] = 0
        self._sizes[id] = size
        self.size += size

    def forget(self, id: str) -> None:
        """It is settled; one that is not known here is ignored."""
        if id in self._next:
            self._answered(id)
            del self._next[id]
            self.size -= self._sizes.pop(id)

    def restart(self) -> None:
        """A new session: what was under way is lost."""
        self._sent_ms = None

    def wanted(self, id: str, index: int) -> None:
        """The receiver has all before `index`; an answer that comes late changes nothing."""
        if self._answered(id):
            self._next[id] = index

    def due(self, at_ms: int) -> tuple[str, int] | None:
        """The chunk that goes out now, if any. One that nobody answered lets others go first."""
        if self._sent_ms is not None:
            if at_ms < self._sent_ms + CHUNK_RESEND_MS:
                return None
            id = next(iter(self._next))
            self._next[id] = self._next.pop(id)
        chunk = next(iter(self._next.items()), None)
        self._sent_ms = None if chunk is None else at_ms
        return chunk

    def _answered(self, id: str) -> bool:
        """Whether a chunk of it is under way, which now it is no more."""
        mine = self._sent_ms is not None and next(iter(self._next)) == id
        if mine:
            self._sent_ms = None
        return mine
