"""What the spool keeps and what goes first: oldest telemetry, then oldest events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imlmesh_node import stock
from imlmesh_node.stock import Row, Sort, Stock

E, R = Sort.EVENTS, Sort.READINGS


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stock, "SPOOL_BYTES", 100)
    monkeypatch.setattr(stock, "_MOST", {E: 10, R: 20})


def test_the_oldest_readings_go_first_and_events_only_when_none_are_left() -> None:
    kept = Stock()
    event, _ = kept.add(E, 1, 40)
    first, _ = kept.add(R, 1, 30)
    second, _ = kept.add(R, 1, 30)
    _, gone = kept.add(R, 1, 20)
    assert gone == [first]
    newest, gone = kept.add(E, 1, 60)
    assert [row.sort for row in gone] == [R, R]
    assert gone[0] == second
    _, gone = kept.add(E, 1, 30)
    assert gone == [event]
    assert kept.oldest(E, 1) == [newest]


def test_too_many_of_a_sort_cost_that_sort_alone() -> None:
    kept = Stock()
    for _ in range(10):
        kept.add(E, 1, 1)
    reading, _ = kept.add(R, 5, 1)
    row, gone = kept.add(E, 2, 1)
    assert [each.count for each in gone] == [1, 1]
    assert kept.counts == {E: 10, R: 5}
    assert kept.oldest(R, 1) == [reading]
    assert row in kept.oldest(E, 10)


def test_what_was_sent_is_taken_out_once() -> None:
    kept = Stock()
    rows = [kept.add(R, 3, 10)[0] for _ in range(3)]
    assert kept.oldest(R, 6) == rows[:2]
    assert kept.oldest(R, 1) == rows[:1]
    assert kept.remove(rows[:2]) == rows[:2]
    assert kept.remove(rows[:2]) == []
    assert (len(kept), kept.size) == (3, 10)


def test_numbers_go_on_behind_those_of_the_disk() -> None:
    kept = Stock([Row(R, 7, 1, 1), Row(E, 9, 1, 1)])
    assert kept.add(R, 1, 1)[0].number == 10
    assert (len(kept), kept.size) == (3, 3)


@given(
    st.lists(st.tuples(st.sampled_from(Sort), st.integers(1, 5), st.integers(1, 60)), max_size=60)
)
def test_whatever_comes_the_bounds_hold_and_the_sums_are_right(
    added: list[tuple[Sort, int, int]],
) -> None:
    kept = Stock()
    there: dict[int, Row] = {}
    for sort, count, size in added:
        row, gone = kept.add(sort, count, size)
        there[row.number] = row
        for each in gone:
            del there[each.number]
            over = sum(r.count for r in there.values() if r.sort is each.sort) + each.count
            assert each.sort is R or over > 10 or not any(r.sort is R for r in there.values())
        assert kept.size == sum(each.size for each in there.values()) <= 100
        assert kept.counts[E] <= 10
        assert kept.counts[R] <= 20
        assert len(kept) == sum(each.count for each in there.values())
