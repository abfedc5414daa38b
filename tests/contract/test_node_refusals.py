"""What a node refuses is counted, every time, and told once a second at most."""

import asyncio

import pytest

from imlmesh_node import inbox
from imlmesh_node.inbox import Refusals

WITHIN_S = 5


async def test_a_flood_is_told_at_once_and_then_once_a_second_with_all_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "REFUSALS_TOLD_MS", 200)
    told: asyncio.Queue[tuple[float, dict[str, int]]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    refusals = Refusals(lambda counts: told.put_nowait((loop.time(), counts)))
    for number in range(1_000):
        code = "message.invalid" if number % 2 else "signature.invalid"
        refusals.note(code, "no")
    async with asyncio.timeout(WITHIN_S):
        (first_s, first), (second_s, second) = await told.get(), await told.get()
    assert first == {"signature.invalid": 1}
    assert second == {"signature.invalid": 500, "message.invalid": 500}
    assert second_s - first_s >= 0.2
    refusals.tell_soon()
    refusals.close()
    assert told.empty(), "an end is no reason to hurry"


async def test_who_refused_nothing_says_nothing() -> None:
    told: list[dict[str, int]] = []
    refusals = Refusals(told.append)
    refusals.tell_soon()
    assert told == []
    refusals.note("message.epoch", "no")
    assert told == [{"message.epoch": 1}]
    refusals.close()
