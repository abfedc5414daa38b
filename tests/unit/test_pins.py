"""The names of pins: one number, and one claim, for every spelling."""

from dataclasses import replace

import pytest

from imlmesh_drivers.base import PinRules, Site
from imlmesh_drivers.registry import shipped_manifest
from imlmesh_node.config import Policy
from imlmesh_node.core.claims import Claims
from imlmesh_node.guard import Guard
from imlmesh_protocol.pins import canonical_claim, pin_number
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.dispatches import Dispatch
from test_node_guard import SITE


@pytest.mark.parametrize(
    "name", ["17", "017", "GPIO17", "gpio17", "BCM17", "BOARD11", "J8:11", "j8:011"]
)
def test_every_spelling_of_a_pin_is_its_number(name: str) -> None:
    assert pin_number(name) == 17
    assert canonical_claim(f"gpio:{name}") == "gpio:17"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "54",
        "117",
        "-1",
        "17.0",
        "GPIO",
        "BOARD1",
        "BOARD41",
        "J8:2",
        "led",
        "1７",
        "17 ",
        "17\n",
    ],
)
def test_what_is_no_pin_has_no_number(name: str) -> None:
    assert pin_number(name) is None
    assert canonical_claim(f"gpio:{name}") == f"gpio:{name}"


@pytest.mark.parametrize("claim", ["BOARD11", "i2c:1", "serial:/dev/ttyS0", "my gpio:BOARD11"])
def test_other_claims_stay_as_they_are(claim: str) -> None:
    assert canonical_claim(claim) == claim


def checked(
    action: str, claims: tuple[str, ...] = (), site: Site = SITE, **params: object
) -> Dispatch:
    """As the guard of a node hands it to the core."""
    guard = Guard(Policy("local_worker", ("iot",), site), shipped_manifest())
    asked = Dispatch(
        *(f"r/{action}/pi/1", "iot", action, params, Effect.PHYSICAL),
        *(1, 1, "finish", "wait", claims),
    )
    dispatch, fault = guard.check(asked)
    assert fault is None
    return dispatch


@pytest.mark.parametrize(
    ("action", "claims", "params"),
    [
        ("set_gpio_pin", (), {"pin": 11, "state": "LOW", "mode": "BOARD"}),
        ("set_gpio_pin", (), {"pin": 17, "state": "LOW"}),
        ("get_gpio_pin", (), {"pin": 11, "mode": "BOARD"}),
        ("set_pwm", (), {"pin": 11, "frequency": 50, "duty_cycle": 1, "mode": "BOARD"}),
        ("send_uart", ("gpio:J8:11",), {"data": "x"}),
    ],
)
def test_a_pin_has_one_holder_however_it_is_written(
    action: str, claims: tuple[str, ...], params: dict[str, object]
) -> None:
    held = Claims()
    first = checked("digital_write", pin=17, value=1)
    held.take(first.claims, first.id)
    assert held.holder(checked(action, claims, **params).claims) == first.id


def test_letting_go_of_all_pins_claims_all_that_the_policy_allows() -> None:
    assert checked("cleanup").claims == checked("cleanup", pins=None).claims == ("gpio:17",)
    assert checked("cleanup", pins=[]).claims == ()
    several = replace(SITE, pins=PinRules("mock", (4, 5, 17)))
    held = Claims()
    first = checked("digital_write", pin=17, value=1)
    held.take(first.claims, first.id)
    everything = checked("cleanup", ("x",), several)
    assert everything.claims == ("gpio:17", "gpio:4", "gpio:5", "x")
    assert held.holder(everything.claims) == first.id
    assert held.holder(checked("cleanup", (), several, pins=[4, 5]).claims) is None


def test_a_node_without_pins_has_none_to_claim() -> None:
    assert checked("cleanup", (), replace(SITE, pins=None)).claims == ()


def test_a_place_of_the_header_does_not_claim_the_pin_of_that_number() -> None:
    on_header = checked("set_gpio_pin", pin=11, state="LOW", mode="BOARD")
    assert on_header.claims == ("gpio:17",)
