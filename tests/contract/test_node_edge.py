"""What an idle node does: next to nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imlmesh_node.edge import Edge
from imlmesh_node.presence import Clocks
from imlmesh_node.stock import Sort
from imlmesh_protocol.limits import SPOOL_LOOK_MS, SPOOL_TURN_MS


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    """That of a node which nobody hears."""
    outbox: Any = SimpleNamespace(send=None, unacked=0)
    presence: Any = SimpleNamespace(is_open=False)
    refusals: Any = SimpleNamespace(note=None)
    made = Edge(tmp_path, outbox, presence, Clocks(), refusals)
    yield made
    await made.close()


async def test_an_empty_spool_is_looked_at_less_often(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s: list[float] = []
    with monkeypatch.context() as patched:
        loop = asyncio.get_running_loop()
        patched.setattr(loop, "call_later", lambda pause_s, _call: pauses_s.append(pause_s))
        edge.start(int)
        assert edge.spool.keep(Sort.READINGS, [(1, "level", 1.0, "%")])
        edge.start(int)
    assert pauses_s == [SPOOL_LOOK_MS / 1_000, SPOOL_TURN_MS / 1_000]


async def test_a_fault_of_ours_does_not_end_the_looking(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(now_ms: int) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(edge._drain, "turn", broken)
    later: list[Any] = []
    with monkeypatch.context() as patched:
        loop = asyncio.get_running_loop()
        patched.setattr(loop, "call_later", lambda _pause_s, call: later.append(call))
        with pytest.raises(KeyError):
            edge.start(int)
    assert later == [edge._on_time]
