"""What is kept of the last commits: the same rows as the file, or none at all."""

from typing import Any

import pytest

from imlmesh_orchestrator.store.recent import Recent
from imlmesh_protocol import limits


def change(seq: int, kind: str = "result-taken", body: bytes = b"own") -> tuple[Any, ...]:
    return (seq, "r-1-bcdf", 10 + seq, "m", kind, 1, body)


@pytest.fixture
def recent() -> Recent:
    held = Recent(4)
    held.add([change(5), change(6, "run-ended")], [(5, "output", "d5", None)])
    held.add(
        [change(7, "run-created"), change(8)],
        [(7, "input", "digest", "document"), (8, "output", "d8", None)],
    )
    return held


def test_changes_of_the_kinds_that_were_asked_for(recent: Recent) -> None:
    found = recent.changes(5, {"result-taken", "run-ended"}, 10)
    assert found == [
        (6, "r-1-bcdf", 16, "m", "run-ended", b"own"),
        (8, "r-1-bcdf", 18, "m", "result-taken", b"own"),
    ]
    assert recent.changes(8, {"result-taken"}, 10) == []


def test_a_row_on_its_way_has_its_own_body_or_that_of_its_change(recent: Recent) -> None:
    assert recent.outflow(5, 10) == [
        (7, "input", "digest", "document", "r-1-bcdf", 17, "run-created", 1),
        (8, "output", "d8", b"own", "r-1-bcdf", 18, "result-taken", 1),
    ]


def test_no_more_than_was_asked_for(recent: Recent) -> None:
    assert [row[0] for row in recent.outflow(4, 2) or []] == [5, 7]
    assert [row[0] for row in recent.changes(4, {"result-taken"}, 1) or []] == [5]


def test_what_came_before_is_asked_of_the_file(recent: Recent) -> None:
    assert recent.changes(3, {"run-ended"}, 10) is None
    assert recent.outflow(3, 10) is None


def test_what_nobody_asks_for_again_is_gone(recent: Recent) -> None:
    recent.forget(7)
    assert recent.outflow(6, 10) is not None
    assert recent.outflow(5, 10) is None
    recent.forget(8)
    assert recent.outflow(8, 10) == []


def test_too_much_goes_from_the_oldest_on(recent: Recent) -> None:
    large = b"x" * (limits.RECENT_BYTES - 400)
    recent.add([change(9, body=large)], [(9, "output", "d9", None)])
    assert recent.outflow(7, 10) is None, "the file has to say what 8 was"
    assert [row[0] for row in recent.outflow(8, 10) or []] == [9]
    recent.add([change(10, body=b"x" * (limits.RECENT_BYTES + 1))], [])
    assert recent.changes(9, {"result-taken"}, 10) is None
    assert recent.changes(10, {"result-taken"}, 10) == []
