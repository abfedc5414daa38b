"""What a node refuses is counted, every time, and told once a second at most."""

import asyncio

import pytest

from imlmesh_node import inbox
from imlmesh_node.inbox import Refusals

WITHIN_S = 5


class Listener:
    """Who is told, while it listens."""

    def __init__(self) -> None:
        self.listens = True
        self.told: asyncio.Queue[tuple[float, dict[str, int]]] = asyncio.Queue()

    def tell(self, counts: dict[str, int]) -> bool:
        if self.listens:
            self.told.put_nowait((asyncio.get_running_loop().time(), counts))
        return self.listens

    def last(self) -> dict[str, int]:
        return self.told.get_nowait()[1]


async def test_a_flood_is_told_at_once_and_then_once_a_second_with_all_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "REFUSALS_TOLD_MS", 200)
    listener = Listener()
    refusals = Refusals(listener.tell)
    for number in range(1_000):
        code = "message.invalid" if number % 2 else "signature.invalid"
        refusals.note(code, "no")
    async with asyncio.timeout(WITHIN_S):
        first_s, first = await listener.told.get()
        second_s, second = await listener.told.get()
    assert first == {"signature.invalid": 1}
    assert second == {"signature.invalid": 500, "message.invalid": 500}
    assert second_s - first_s >= 0.2
    refusals.note("message.epoch", "no")
    refusals.close()
    assert listener.told.empty(), "an end is no reason to hurry"


async def test_what_nobody_heard_is_told_when_somebody_listens() -> None:
    listener = Listener()
    refusals = Refusals(listener.tell)
    listener.listens = False
    refusals.note("message.retained", "no", 2)
    listener.listens = True
    refusals.tell_soon()
    assert listener.last() == {"message.retained": 2}
    refusals.close()


async def test_what_only_came_too_early_is_no_news() -> None:
    listener = Listener()
    refusals = Refusals(listener.tell)
    refusals.note("message.session", "of the session before")
    refusals.tell_soon()
    assert listener.told.empty()
    refusals.note("message.epoch", "no")
    assert listener.last() == {"message.session": 1, "message.epoch": 1}
    refusals.close()
