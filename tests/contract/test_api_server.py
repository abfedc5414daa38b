"""The server of the API while nobody asks anything."""

import asyncio

import pytest
import uvicorn

from imlmesh_orchestrator.api.server import _Server


async def test_an_idle_server_sleeps_and_ends_when_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = _Server(uvicorn.Config(lambda: None, lifespan="off", log_config=None))
    ticks: list[int] = []

    async def on_tick(number: int) -> bool:
        ticks.append(number)
        return server.should_exit

    monkeypatch.setattr(server, "on_tick", on_tick)
    serving = asyncio.create_task(server.main_loop())
    await asyncio.sleep(0.5)  # nothing happens, and that for a while
    assert len(ticks) == 1
    server.end()
    await asyncio.wait_for(serving, 5)
    assert len(ticks) == 2
