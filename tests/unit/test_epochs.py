"""Which epoch an orchestrator takes at its start."""

from imlmesh_orchestrator.shell import next_epoch
from imlmesh_orchestrator.store.lifecycle import Marks
from imlmesh_protocol import limits

NOW_MS = 1_800_000_000_000


def marks(epoch: int, at_ms: int) -> Marks:
    return Marks(1, at_ms, epoch, 0, 0, 0, 0)


def test_it_follows_the_clock_so_that_an_older_copy_of_the_store_is_obeyed() -> None:
    assert next_epoch(marks(7, NOW_MS - 1), NOW_MS) == NOW_MS
    assert next_epoch(marks(0, 0), NOW_MS) == NOW_MS


def test_a_copy_that_is_put_back_within_a_second_of_the_last_start_is_obeyed() -> None:
    last = next_epoch(marks(7, NOW_MS - 1), NOW_MS)
    assert next_epoch(marks(7, NOW_MS - 1), NOW_MS + 1) > last


def test_it_rises_with_each_start_also_within_a_millisecond_and_with_a_clock_that_stands_back() -> (
    None
):
    last = NOW_MS
    assert next_epoch(marks(last, NOW_MS - 1), NOW_MS) == last + 1
    assert next_epoch(marks(last, NOW_MS + 5), NOW_MS - 3_600_000) == last + 1


def test_a_clock_that_is_years_ahead_makes_no_epoch() -> None:
    ahead_ms = NOW_MS + limits.EPOCH_CLOCK_MS + 1
    assert next_epoch(marks(7, NOW_MS), ahead_ms) == 8
