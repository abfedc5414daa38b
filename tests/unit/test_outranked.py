"""Nodes that obey a higher epoch than the orchestrator's own."""

import logging

import pytest

from imlmesh_orchestrator.outranked import Outranked


def test_who_obeys_a_higher_epoch_is_told_until_it_asks_without_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outranked = Outranked(100)
    for obeys in (0, 99, 100):
        outranked.asked("n1", "pi-1", obeys)
    assert outranked.nodes == {}
    assert not caplog.records
    with caplog.at_level(logging.ERROR):
        outranked.asked("n1", "pi-1", 101)
    assert outranked.nodes == {"n1": 101}
    (record,) = caplog.records
    assert record.__dict__["code"] == "epoch.behind"
    assert all(word in record.getMessage() for word in ("pi-1", "101", "100"))
    outranked.asked("n2", "pi-2", 2**62)
    outranked.asked("n1", "pi-1", 0)
    assert outranked.nodes == {"n2": 2**62}


def test_a_node_that_names_ever_more_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    outranked = Outranked(100)
    for obeys in range(101, 200):
        outranked.asked("n1", "pi-1", obeys)
        outranked.asked("n1", "pi-1", 0)
    assert len(caplog.records) == 1
