"""`imlmesh demo run`: under a minute, ends well, shows the reroute, leaves nothing running."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from waiting import running_with

if TYPE_CHECKING:
    from conftest import Person


@pytest.mark.parametrize(
    "broker", [pytest.param("mosquitto", marks=pytest.mark.mosquitto), "embedded"]
)
def test_the_demo_loses_a_node_and_goes_on(
    person: Person, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(person.env, "IMLMESH_BROKER", broker)
    begin_s = time.monotonic()
    # So long a path leaves no room for a socket: the API answers on loopback, with a token.
    home = person.folder / (f"a home of {broker} with a long name " * 4).strip()
    assert len(str(home)) > 100
    demo = person.open("demo", "run", "--home", str(home), anew=broker == "mosquitto")
    assert demo.wait(90) == 0
    assert time.monotonic() - begin_s < 60
    text = demo.text
    assert f"✔ broker: {broker}" in text
    killed = text.index("killed pi-roof (SIGKILL)")
    suspect = text.index("pi-roof is suspect")
    lost = text.index("pi-roof is lost")
    moved = text.index("goes to pi-bed (attempt 2)")
    assert killed < lost < moved
    assert suspect < lost
    assert "completed after" in text
    assert "dry probes: 2" in text
    assert running_with(person.folder) == []
