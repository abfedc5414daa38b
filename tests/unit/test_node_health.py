"""Health is cheap and never an error: what cannot be read is left out."""

from pathlib import Path
from typing import Any

import psutil
import pytest

from imlmesh_node.health import health


def test_a_folder_or_sensor_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(psutil, "sensors_temperatures", broken, raising=False)
    told = health(Path("/nowhere/at/all"))
    assert {"cpu_percent", "memory_percent", "load"} == set(told)
