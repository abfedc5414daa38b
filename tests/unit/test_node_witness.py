"""The node as a witness: what it keeps, what it refuses, and that it stores before it names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey, VerifyKey

from imlmesh_node.witness import Kept, Witness
from imlmesh_protocol import limits, merkle
from imlmesh_protocol.errors import MeshError, ProtocolError, StoreError, TrustError
from imlmesh_protocol.wire.messages import check_fields
from imlmesh_protocol.wire.seals import Seal, own_seal, read_seal, write_seal
from imlmesh_protocol.wire.topics import Kind

KEY = SigningKey(bytes(32))
STRANGER = SigningKey(bytes([7] * 32))
KEY_ID = b"ledgerky"


def find_key(key_id: bytes) -> VerifyKey | None:
    return KEY.verify_key if key_id == KEY_ID else None


class Ledger:
    """A ledger whose entries are `mark` and their number."""

    def __init__(self, *marks: str) -> None:
        self.hashes: dict[tuple[int, int], bytes] = {}
        self.peaks = [merkle.Peaks()]
        for number, mark in enumerate(marks):
            peaks, made = self.peaks[-1].append(merkle.leaf_hash(f"{mark}{number}".encode()))
            self.hashes |= {(level, at): found for level, at, found in made}
            self.peaks.append(peaks)

    def seal(self, size: int, breaks: tuple[tuple[int, bytes], ...] = ()) -> Seal:
        return Seal("home", size, self.peaks[size].root(), 1, breaks)

    def prove(self, old: int, new: int) -> list[bytes]:
        return merkle.prove(old, new, lambda level, at: self.hashes[level, at])


def document(seal: Seal, key: SigningKey = KEY) -> bytes:
    return write_seal(seal, KEY_ID, lambda data: key.sign(data).signature)


def told(seal: Seal, since: int, proof: list[bytes]) -> dict[str, Any]:
    fields = {"do": "seal", "seal": document(seal), "from": since, "proof": proof}
    check_fields(Kind.COMMAND, fields)
    return fields


class Journal:
    def __init__(self) -> None:
        self.kept: list[tuple[Kept, bytes]] = []
        self.waiting: list[Callable[[], None]] = []
        self.error: MeshError | None = None
        self.slow = False

    def keep(
        self, seals: list[tuple[Kept, bytes]], done: Callable[[MeshError | None], None]
    ) -> None:
        def stored() -> None:
            if self.error is None:
                self.kept += seals
            done(self.error)

        self.waiting.append(stored) if self.slow else stored()


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def witness(journal: Journal) -> Witness:
    return Witness("home", find_key, journal.keep, None)


HONEST = Ledger(*"a" * 20)
REWRITTEN = Ledger(*"aab", *"a" * 17)


def test_the_first_seal_is_believed_and_the_next_by_its_proof(
    witness: Witness, journal: Journal
) -> None:
    witness.take(told(HONEST.seal(5), 0, []))
    assert own_seal(witness.document or b"").size == 5
    witness.take(told(HONEST.seal(12), 5, HONEST.prove(5, 12)))
    assert own_seal(witness.document or b"").size == 12
    assert [what for what, _ in journal.kept] == [Kept.LAST, Kept.LAST]


def test_the_same_seal_again_is_no_alarm(witness: Witness, journal: Journal) -> None:
    witness.take(told(HONEST.seal(5), 0, []))
    witness.take(told(HONEST.seal(5), 3, HONEST.prove(3, 5)))
    assert len(journal.kept) == 1


def test_a_shorter_ledger_is_refused_and_kept_as_evidence(
    witness: Witness, journal: Journal
) -> None:
    witness.take(told(HONEST.seal(12), 0, []))
    with pytest.raises(TrustError) as caught:
        witness.take(told(HONEST.seal(5), 0, []))
    assert caught.value.code == "seal.rollback"
    assert witness.size == 12
    assert [what for what, _ in journal.kept] == [Kept.LAST, Kept.REFUSED]


@pytest.mark.parametrize("size", [12, 15])
def test_another_past_is_refused_with_any_proof(
    witness: Witness, journal: Journal, size: int
) -> None:
    witness.take(told(HONEST.seal(12), 0, []))
    for proof in (REWRITTEN.prove(12, size), HONEST.prove(12, size), []):
        with pytest.raises(TrustError) as caught:
            witness.take(told(REWRITTEN.seal(size), 12, proof))
        assert caught.value.code == "seal.fork"
    assert (own_seal(witness.document or b"").head, witness.size) == (HONEST.seal(12).head, 12)


def test_a_proof_from_elsewhere_is_left_for_the_next(witness: Witness, journal: Journal) -> None:
    witness.take(told(HONEST.seal(5), 0, []))
    witness.take(told(HONEST.seal(12), 8, HONEST.prove(8, 12)))
    assert witness.size == 5
    witness.take(told(HONEST.seal(12), 5, HONEST.prove(5, 12)))
    assert witness.size == 12


def test_a_loss_that_a_person_acknowledged_is_followed_and_remembered(
    witness: Witness, journal: Journal
) -> None:
    witness.take(told(HONEST.seal(12), 0, []))
    given_up = witness.document
    witness.take(told(REWRITTEN.seal(9, (HONEST.seal(12).head,)), 0, []))
    assert witness.size == 9
    assert (Kept.GIVEN_UP, given_up) in journal.kept
    other = REWRITTEN.seal(7, ((11, HONEST.seal(11).root),))
    with pytest.raises(TrustError):
        witness.take(told(other, 0, []))


def test_what_is_not_stored_is_not_named(witness: Witness, journal: Journal) -> None:
    journal.slow = True
    witness.take(told(HONEST.seal(5), 0, []))
    assert witness.document is None
    with pytest.raises(TrustError):
        # it counts from the moment it was believed, or two could be believed at once
        witness.take(told(REWRITTEN.seal(5), 0, []))
    journal.waiting[0]()
    assert own_seal(witness.document or b"").size == 5
    journal.slow, journal.error = False, StoreError("store.full", "no room")
    witness.take(told(HONEST.seal(12), 5, HONEST.prove(5, 12)))
    assert own_seal(witness.document or b"").size == 5


def test_strangers_and_other_meshes_are_refused(witness: Witness, journal: Journal) -> None:
    good = HONEST.seal(5)
    fields = told(good, 0, [])
    for wrong in (
        document(good, STRANGER),
        document(replace(good, mesh="other")),
        document(good)[:-1],
        document(good).replace(b"ledgerky", b"otherkey"),
        b"",
        b"\x93\x01\x02\x03",
    ):
        with pytest.raises(MeshError) as caught:
            witness.take(fields | {"seal": wrong})
        assert caught.value.code == "seal.invalid"
    with pytest.raises(ProtocolError):
        witness.take({"do": "seal", "seal": document(good)})
    assert (witness.document, journal.kept) == (None, [])


@given(st.binary(max_size=300), st.integers(0, 400))
def test_a_changed_seal_is_never_believed(noise: bytes, at: int) -> None:
    good = document(HONEST.seal(5, ((3, bytes(32)),)))
    place = at % len(good)
    for changed in (noise, good[:place] + noise + good[place + len(noise) :]):
        if changed == good:
            continue
        with pytest.raises(TrustError) as caught:
            read_seal(changed, find_key)
        assert caught.value.code == "seal.invalid"


def test_a_seal_with_all_its_breaks_fits() -> None:
    breaks = tuple((limits.COUNT_MAX, bytes([n]) * 32) for n in range(limits.SEAL_BREAKS))
    longest = Seal("m" * 63, limits.COUNT_MAX, bytes(32), limits.COUNT_MAX, breaks)
    data = document(longest)
    assert len(data) <= limits.SEAL_BYTES
    assert read_seal(data, find_key) == longest
    with pytest.raises(TrustError):
        read_seal(document(replace(longest, breaks=(*breaks, breaks[0]))), find_key)
