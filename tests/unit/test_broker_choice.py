"""Which broker is taken, and what is said when it cannot be."""

import shutil

import pytest

from imlmesh_broker import Embedded, Mosquitto, choose_broker
from imlmesh_protocol.errors import InputError, LinkError


@pytest.fixture
def installed(monkeypatch):
    def say(found: bool) -> None:
        answer = "/usr/sbin/mosquitto" if found else None
        monkeypatch.setattr(shutil, "which", lambda *_, **__: answer)

    return say


@pytest.mark.parametrize(
    ("found", "forced", "taken"),
    [
        (True, None, Mosquitto),
        (False, None, Embedded),
        (True, "embedded", Embedded),
        (True, "mosquitto", Mosquitto),
    ],
)
def test_mosquitto_is_taken_where_it_is_unless_another_is_forced(installed, found, forced, taken):
    installed(found)
    assert choose_broker({"IMLMESH_BROKER": forced} if forced else {}) is taken


def test_a_forced_broker_that_is_missing_is_said_with_the_way_to_get_it(installed):
    installed(False)
    with pytest.raises(LinkError) as caught:
        choose_broker({"IMLMESH_BROKER": "mosquitto"})
    assert caught.value.code == "broker.missing"
    assert "apt-get install mosquitto" in caught.value.hint


@pytest.mark.parametrize("name", ["emqx", "", "Mosquitto"])
def test_an_unknown_broker_is_refused(installed, name):
    installed(True)
    with pytest.raises(InputError) as caught:
        choose_broker({"IMLMESH_BROKER": name})
    assert caught.value.code == "config.invalid"
    assert "embedded or mosquitto" in caught.value.message
