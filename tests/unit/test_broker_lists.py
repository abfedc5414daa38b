"""What may be given to a broker: revocation lists that count, and who is shut out."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from imlmesh_broker.revocation import checked_lists
from imlmesh_broker.rights import ALL_IN, Access
from imlmesh_orchestrator.ca.certificates import Issuer, new_root
from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError

ROOTS = [new_root("home", role) for role in ("node", "node", "control")]
NODE, NEWER, CONTROL = (Issuer(*root) for root in ROOTS)
PEM, NEWER_PEM, _ = (certificate for _, certificate in ROOTS)


def on_list(lists: bytes) -> set[int]:
    return {row.serial_number for row in x509.load_pem_x509_crl(lists)}


def test_a_good_list_is_passed_on_and_nothing_else():
    lists = NODE.revocation_list([7, 9])
    found = checked_lists(PEM, b"# a remark\n" + lists + b"\nrubbish")
    assert found == lists
    assert on_list(found) == {7, 9}


def test_each_ca_that_rolls_over_needs_its_list():
    both, lists = NEWER_PEM + PEM, NEWER.revocation_list([1]) + NODE.revocation_list([2])
    assert checked_lists(both, lists) == lists
    for short in (NEWER.revocation_list([1]), NODE.revocation_list([2])):
        with pytest.raises(TrustError) as caught:
            checked_lists(both, short)
        assert caught.value.code == "broker.lists"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lists: b"",
        lambda lists: b"no PEM at all",
        lambda lists: lists[:-60],
        lambda lists: lists[:40] + lists[44:],
        lambda lists: lists[:100] + (b"B" if lists[100:101] == b"A" else b"A") + lists[101:],
        lambda lists: CONTROL.revocation_list([]),
        lambda lists: lists + CONTROL.revocation_list([]),
        lambda lists: PEM,
    ],
    ids=["empty", "text", "cut", "shorter", "flipped", "foreign", "one foreign", "certificate"],
)
def test_a_list_that_does_not_count_is_refused(spoil: Callable[[bytes], bytes]):
    with pytest.raises(TrustError) as caught:
        checked_lists(PEM, spoil(NODE.revocation_list([7])))
    assert caught.value.code == "broker.lists"


@pytest.mark.parametrize("off_s", [-limits.CERTIFICATE_BACKDATE_MS / 1000 - 60, limits.CRL_S + 60])
def test_a_list_out_of_its_time_is_refused(off_s: float):
    """A broker would refuse everybody by it."""
    lists = NODE.revocation_list([7])
    with pytest.raises(TrustError) as caught:
        checked_lists(PEM, lists, datetime.now(UTC) + timedelta(seconds=off_s))
    assert caught.value.code == "broker.lists"


def test_certificates_that_are_none_are_refused():
    with pytest.raises(TrustError):
        checked_lists(b"", NODE.revocation_list([]))


def test_who_is_shut_out_is_read_and_written_alike():
    access = Access(3, frozenset({"a"}), frozenset({"b", "c"}))
    assert Access.parse(access.text(), "o") == access
    both = json.dumps({"version": 4, "revoked": ["a"], "quarantined": ["a", "b"]}).encode()
    assert Access.parse(both, "o") == Access(4, frozenset({"a"}), frozenset({"b"}))
    assert Access.parse(ALL_IN.text(), "o") == ALL_IN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        "{}",
        '{"version": 1, "revoked": []}',
        '{"version": -1, "revoked": [], "quarantined": []}',
        '{"version": true, "revoked": [], "quarantined": []}',
        '{"version": 1, "revoked": "a", "quarantined": []}',
        '{"version": 1, "revoked": {"a": 1}, "quarantined": []}',
        '{"version": 1, "revoked": [1], "quarantined": []}',
        '{"version": 1, "revoked": ["a\\nuser b"], "quarantined": []}',
        '{"version": 1, "revoked": ["o"], "quarantined": []}',
        "[" * 10_000,
    ],
)
def test_a_file_that_is_not_whole_is_not_taken(text: str):
    with pytest.raises(TrustError) as caught:
        Access.parse(text.encode(), "o")
    assert caught.value.code == "broker.access"


def test_a_list_is_told_apart_by_its_ca():
    gone, made = NODE.revoked_by(CONTROL.revocation_list([1]) + NODE.revocation_list([2, 3]))
    assert gone == {2, 3}
    assert made <= datetime.now(UTC)
    with pytest.raises(TrustError):
        NODE.revoked_by(CONTROL.revocation_list([1]))
