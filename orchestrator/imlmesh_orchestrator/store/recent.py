"""The rows of the last commits, for whoever copies them on: what is here need not be read again.

The one rule: it holds what was committed, in order and without a gap, or says that it does not; the
file is always the truth. Deliberately absent: what the rows are copied into.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol import limits

#: seq, run, at_ms, cause, kind, version, body
ChangeRow = tuple[int, str | None, int, str, str, int, bytes]
#: seq, file, id, body; a body of None is that of the change with the same seq
OutflowRow = tuple[int, str, str, Any]

_ROW_BYTES = 300  # what a row takes beside its body


@dataclass(frozen=True, slots=True)
class _Commit:
    changes: Sequence[ChangeRow]
    outflow: Sequence[OutflowRow]
    size: int

    @property
    def last(self) -> int:
        return self.changes[-1][0]


class Recent:
    """`after` is the change behind which nothing is missing."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._commits: deque[_Commit] = deque()
        self._size = 0

    def add(self, changes: Sequence[ChangeRow], outflow: Sequence[OutflowRow]) -> None:
        """The rows of a commit that succeeded; the oldest go when there are too many."""
        size = sum(len(row[6]) for row in changes) + _ROW_BYTES * len(changes)
        self._commits.append(_Commit(changes, outflow, size))
        self._size += size
        while self._size > limits.RECENT_BYTES:
            self._drop()

    def forget(self, seq: int) -> None:
        """Nobody asks any more for what came up to `seq`."""
        while self._commits and self._commits[0].last <= seq:
            self._drop()

    def changes(self, after: int, kinds: Collection[str], most: int) -> list[Any] | None:
        """The next changes of these kinds as (seq, run, at_ms, cause, kind, body); None: ask the file."""
        if after < self.after:
            return None
        found: list[Any] = []
        for commit in self._commits:
            if commit.last <= after:
                continue
            for seq, run, at_ms, cause, kind, _, body in commit.changes:
                if seq > after and kind in kinds:
                    found.append((seq, run, at_ms, cause, kind, body))
                    if len(found) == most:
                        return found
        return found

    def outflow(self, after: int, most: int) -> list[Any] | None:
        """The next rows on their way to other files as (seq, file, id, body, run, at_ms, kind,
        version); None: ask the file."""
        if after < self.after:
            return None
        found: list[Any] = []
        for commit in self._commits:
            first = commit.changes[0][0]
            for seq, file, name, body in commit.outflow:
                if seq > after:
                    _, run, at_ms, _, kind, version, own = commit.changes[seq - first]
                    told = own if body is None else body
                    found.append((seq, file, name, told, run, at_ms, kind, version))
                    if len(found) == most:
                        return found
        return found

    def _drop(self) -> None:
        commit = self._commits.popleft()
        self._size -= commit.size
        self.after = commit.last
