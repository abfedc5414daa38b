"""What a request may say: nothing that a message or a store could not hold."""

from typing import Any

import pytest

from imlmesh_orchestrator.api.problems import status_of
from imlmesh_orchestrator.api.requests import (
    flag_of,
    labels_of,
    number_of,
    one_of,
    priority_of,
    text_of,
    texts_of,
)
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.states import RunState

LONE = "\ud800"


@pytest.mark.parametrize("value", ["garden", 4, 4.5, True, None, -limits.COUNT_MAX])
def test_a_label_is_a_plain_value(value: Any) -> None:
    assert labels_of({"labels": {"site": value}}) == {"site": value}


@pytest.mark.parametrize(
    "value", [limits.COUNT_MAX + 1, float("nan"), float("inf"), LONE, "x" * 257, [], {}]
)
def test_a_label_that_cannot_be_stored_is_refused(value: Any) -> None:
    with pytest.raises(InputError):
        labels_of({"labels": {"site": value}})


def test_text_with_half_a_character_is_refused() -> None:
    with pytest.raises(InputError):
        text_of({"file": f"a{LONE}.yaml"}, "file")
    with pytest.raises(InputError):
        texts_of({"nodes": ["pi", LONE]}, "nodes")


@pytest.mark.parametrize("value", ["9" * 19, "9" * 5_000, "-1", "²", ""])
def test_a_number_fits_a_column(value: str) -> None:
    with pytest.raises(InputError):
        number_of({"after": value}, "after")
    assert number_of({"after": "7"}, "after") == 7
    assert number_of({}, "after") is None


@pytest.mark.parametrize("value", [11, -11, 1.5, "3", True, None])
def test_a_priority_is_a_whole_number_within_its_bounds(value: Any) -> None:
    with pytest.raises(InputError):
        priority_of({"priority": value})
    assert [priority_of({"priority": each}) for each in (-10, 0, 10)] == [-10, 0, 10]
    assert priority_of({}) == 0


@pytest.mark.parametrize("value", ["yes", 1, None, []])
def test_a_flag_is_true_or_false(value: Any) -> None:
    with pytest.raises(InputError):
        flag_of({"failed": value}, "failed")
    assert flag_of({"failed": "true"}, "failed") is flag_of({"failed": True}, "failed") is True
    assert flag_of({"failed": "false"}, "failed") is flag_of({}, "failed") is False


def test_a_state_is_one_of_those_that_there_are() -> None:
    assert (one_of({"state": "paused"}, "state", RunState), one_of({}, "state", RunState)) == (
        "paused",
        "",
    )
    with pytest.raises(InputError, match="one of pending"):
        one_of({"state": "waiting"}, "state", RunState)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("memory.not_found", 404),
        ("driver.not_found", 422),
        ("approval.closed", 409),
        ("approval.superseded", 409),
        ("approval.four_eyes", 403),
        ("plan.fingerprint", 409),
        ("plan.nonce_reused", 409),
        ("run.not_ended", 409),
        ("run.retried", 409),
    ],
)
def test_a_code_has_its_status(code: str, status: int) -> None:
    assert status_of(code) == status
