"""What a request may say: nothing that a message or a store could not hold."""

from typing import Any

import pytest

from imlmesh_orchestrator.api.requests import labels_of, number_of, text_of, texts_of
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError

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
