"""Merkle trees: roots as RFC 9162 defines them, and proofs that cannot be falsified."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from imlmesh_protocol import merkle

SIZES = st.integers(min_value=0, max_value=70)


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162, section 2.1.1, word for word, over entries."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


class Tree:
    """A tree that keeps the hash of every complete subtree, as the store does."""

    def __init__(self, entries: list[bytes]) -> None:
        self.entries = entries
        self.hashes: dict[tuple[int, int], bytes] = {}
        self.peaks = merkle.Peaks()
        for entry in entries:
            self.peaks, made = self.peaks.append(merkle.leaf_hash(entry))
            for level, at, found in made:
                assert (level, at) not in self.hashes
                self.hashes[level, at] = found

    def root(self, size: int) -> bytes:
        return merkle.peaks_at(size, lambda level, at: self.hashes[level, at]).root()

    def prove(self, old: int, new: int) -> list[bytes]:
        return merkle.prove(old, new, lambda level, at: self.hashes[level, at])


def entries_of(count: int, mark: str = "") -> list[bytes]:
    return [f"{mark}{number}".encode() for number in range(count)]


def test_roots_are_those_of_the_rfc() -> None:
    for count in range(66):
        entries = entries_of(count)
        tree = Tree(entries)
        assert tree.peaks.root() == tree_hash(entries)
        assert merkle.root_of(map(merkle.leaf_hash, entries)) == tree_hash(entries)
        for size in range(count + 1):
            assert tree.root(size) == tree_hash(entries[:size])


def test_appending_costs_the_logarithm() -> None:
    tree = Tree(entries_of(1_000))
    assert len(tree.peaks.hashes) <= 10
    assert len(tree.hashes) < 2 * 1_000


def test_an_honest_proof_is_believed() -> None:
    tree = Tree(entries_of(66))
    for new in range(67):
        for old in range(new + 1):
            proof = tree.prove(old, new)
            assert len(proof) <= 2 * 7
            assert merkle.verify(old, tree.root(old), new, tree.root(new), proof)


@given(SIZES, SIZES, st.data())
def test_a_changed_proof_is_refused(one: int, other: int, data: st.DataObject) -> None:
    old, new = sorted((one, other))
    tree = Tree(entries_of(new))
    proof = tree.prove(old, new)
    known = [*tree.hashes.values(), tree.root(old), tree.root(new), bytes(32)]
    part = st.sampled_from(known)
    changed = data.draw(
        st.one_of(
            st.lists(part, max_size=len(proof) + 2),
            st.integers(0, len(proof)).map(lambda at: proof[:at] + proof[at + 1 :]),
            st.tuples(st.integers(0, len(proof)), part).map(
                lambda put: [*proof[: put[0]], put[1], *proof[put[0] :]]
            ),
            st.permutations(proof),
            st.just([*proof, b""]),
            st.just([part[:31] for part in proof] or [b"short"]),
        )
    )
    believed = merkle.verify(old, tree.root(old), new, tree.root(new), changed)
    assert believed is (changed == proof)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_no_proof_leads_from_another_past(old: int, more: int, data: st.DataObject) -> None:
    """What GO-2022-1117 was: a server that falsifies its proof hides what it rewrote."""
    new = old + more
    before = Tree(entries_of(old))
    at = data.draw(st.integers(0, old - 1))
    rewritten = entries_of(new)
    rewritten[at] = b"rewritten"
    after = Tree(rewritten)
    honest = Tree(entries_of(new))
    pieces = [*before.hashes.values(), *after.hashes.values(), before.peaks.root()]
    pieces += [after.peaks.root(), after.root(old), *honest.hashes.values()]
    for proof in (
        after.prove(old, new),
        honest.prove(old, new),
        [before.peaks.root(), *after.prove(old, new)],
        [before.peaks.root(), after.peaks.root()],
        [],
        data.draw(st.lists(st.sampled_from(pieces), max_size=14)),
    ):
        assert not merkle.verify(old, before.peaks.root(), new, after.peaks.root(), proof)


def test_from_nothing_follows_anything_but_nothing_has_one_root() -> None:
    root = Tree(entries_of(3)).peaks.root()
    assert merkle.verify(0, merkle.EMPTY_ROOT, 3, root, [])
    assert not merkle.verify(0, root, 3, root, [])
    assert not merkle.verify(0, merkle.EMPTY_ROOT, 0, root, [])


@given(
    st.integers(-3, 1 << 70),
    st.binary(max_size=40),
    st.integers(-3, 1 << 70),
    st.binary(max_size=40),
    st.lists(st.binary(max_size=40), max_size=80),
)
def test_rubbish_is_refused_without_an_exception(
    old: int, old_root: bytes, new: int, new_root: bytes, proof: list[bytes]
) -> None:
    believed = merkle.verify(old, old_root, new, new_root, proof)
    if believed:
        assert not proof
        assert old == 0 or (old == new and old_root == new_root)


def test_an_impossible_proof_is_not_made() -> None:
    tree = Tree(entries_of(5))
    for old, new in ((6, 5), (-1, 5)):
        try:
            tree.prove(old, new)
        except ValueError:
            continue
        raise AssertionError("made")
