"""How long `up` waits for who starts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imlmesh.running import RunningMesh
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_runtime.paths import Home


def too_late(what: str) -> MeshError:
    return MeshError("process.failed", what)


async def test_an_orchestrator_with_large_stores_may_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh: Any = SimpleNamespace(home=Home(tmp_path), control_address="127.0.0.1:8884")
    running = RunningMesh(mesh, print)
    looks: list[None] = []

    async def start(_program: object) -> Any:
        return SimpleNamespace(ends=0, error=too_late)

    def connected() -> str | None:
        looks.append(None)
        return "client" if len(looks) == 4 else None

    monkeypatch.setattr(limits, "CHILD_READY_MS", 100)
    monkeypatch.setattr(running._supervisor, "start", start)
    monkeypatch.setattr(running, "_connected", connected)
    assert await running.start_orchestrator() == "client"
    monkeypatch.setattr(limits, "STORES_READY_MS", 100)
    looks.clear()
    with pytest.raises(MeshError, match="not ready within"):
        await running.start_orchestrator()
