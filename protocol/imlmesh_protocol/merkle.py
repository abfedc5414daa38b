"""Merkle trees of RFC 9162, section 2.1: leaf and node hashes, roots, and consistency proofs.

The one rule: a proof is believed only when it leads to both roots; whatever else is in it, or is
missing, is refused and never an exception. Deliberately absent: where hashes are kept.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from imlmesh_protocol.limits import COUNT_MAX

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

#: the hash of the complete subtree of 2^level leaves that begins at leaf `at` * 2^level
FindHash = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of one leaf; its first byte keeps a leaf from being taken for a node."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two neighbours."""
    return hashlib.sha256(b"\1" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Peaks:
    """The complete subtrees of the first `size` leaves, the largest first: all that appending needs."""

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def root(self) -> bytes:
        """The root of these leaves."""
        if not self.hashes:
            return EMPTY_ROOT
        *rest, root = self.hashes
        for left in reversed(rest):
            root = node_hash(left, root)
        return root

    def append(self, leaf: bytes) -> tuple["Peaks", list[tuple[int, int, bytes]]]:
        """The peaks with one leaf more, and (level, at, hash) of each subtree that it completes."""
        hashes = list(self.hashes)
        made = [(0, self.size, leaf)]
        level, at, found = 0, self.size, leaf
        while at & 1:
            found = node_hash(hashes.pop(), found)
            level, at = level + 1, at >> 1
            made.append((level, at, found))
        hashes.append(found)
        return Peaks(self.size + 1, tuple(hashes)), made


NO_PEAKS = Peaks()


def peaks_at(size: int, find: FindHash) -> Peaks:
    """The peaks of the first `size` leaves of a tree that has at least as many."""
    hashes = []
    begin = 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            hashes.append(find(level, begin >> level))
            begin += 1 << level
    return Peaks(size, tuple(hashes))


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The root of leaf hashes."""
    peaks = Peaks()
    for leaf in leaves:
        peaks, _ = peaks.append(leaf)
    return peaks.root()


def prove(old: int, new: int, find: FindHash) -> list[bytes]:
    """The proof that the first `old` of `new` leaves are the tree of `old` leaves (2.1.4.1).

    ValueError unless 0 <= old <= new; the proof from 0, or to itself, is empty.
    """
    if not 0 <= old <= new:
        raise ValueError(f"no proof from {old} to {new}")
    proof: list[bytes] = []
    if old in (0, new):
        return proof
    begin, end, whole = 0, new, True
    parts: list[tuple[int, int]] = []
    while old != end:
        split = _split(end - begin)
        if old - begin <= split:
            parts.append((begin + split, end))
            end = begin + split
        else:
            parts.append((begin, begin + split))
            begin, whole = begin + split, False
    if not whole:
        parts.append((begin, end))
    return [_range(first, last, find) for first, last in reversed(parts)]


def verify(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `new` leaves begins with that of `old` (2.1.4.2)."""
    if not 0 <= old <= new <= COUNT_MAX or any(len(part) != HASH_BYTES for part in proof):
        return False
    if old == new:
        return not proof and old_root == new_root and (old > 0 or new_root == EMPTY_ROOT)
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    path = [old_root, *proof] if old & (old - 1) == 0 else [*proof]
    if not path or not proof:
        return False
    here, last = old - 1, new - 1
    while here & 1:
        here, last = here >> 1, last >> 1
    first_root = second_root = path[0]
    for part in path[1:]:
        if last == 0:
            return False
        if here & 1 or here == last:
            first_root = node_hash(part, first_root)
            second_root = node_hash(part, second_root)
            while not here & 1 and here:
                here, last = here >> 1, last >> 1
        else:
            second_root = node_hash(second_root, part)
        here, last = here >> 1, last >> 1
    return last == 0 and first_root == old_root and second_root == new_root


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _range(begin: int, end: int, find: FindHash) -> bytes:
    """The root of leaves `begin` to `end`, where `begin` is a multiple of what is complete there."""
    count = end - begin
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return find(level, begin >> level)
    split = _split(count)
    return node_hash(_range(begin, begin + split, find), _range(begin + split, end, find))
