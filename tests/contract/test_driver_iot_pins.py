"""Digital pins over gpiozero's mock: levels, modes, numbering, owners, safe states, undo."""

from typing import Any

import pytest

from imlmesh_drivers.base import PinRules
from imlmesh_drivers.iot import Iot
from imlmesh_drivers.iot.pins import BOARD, bcm
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.iml.template import render_undo


def undo(iot: Any, action: str, params: dict[str, Any], result: dict[str, Any]) -> Any:
    """Call what undoes a completed action, as a compensation does."""
    declared = Iot.actions[action].undo
    assert declared is not None
    return iot.do(declared.action, **render_undo(declared.params, params, result))


def test_a_level_that_was_written_is_read(iot: Any) -> None:
    assert iot.do("digital_read", pin=4) == {"pin": 4, "value": 0, "factory": "mock"}
    written = iot.do("digital_write", pin=4, value=1)
    assert written == {"pin": 4, "value": 1, "factory": "mock", "previous": 0}
    assert iot.pin(4).function == "output"
    assert iot.do("digital_read", pin=4)["value"] == 1
    undo(iot, "digital_write", {"pin": 4, "value": 1}, written)
    assert iot.pin(4).state == 0


def test_what_the_world_does_to_an_input_is_read(iot: Any) -> None:
    iot.do("set_pin_mode", pin=4, mode="input")
    iot.pin(4).drive_high()
    assert iot.do("get_gpio_pin", pin=4)["state"] == "HIGH"


def test_both_numberings_mean_the_same_pin(iot: Any) -> None:
    done = iot.do("set_gpio_pin", pin=11, state="HIGH", mode="BOARD")
    assert done == {
        "pin": 11,
        "mode": "BOARD",
        "state": "HIGH",
        "factory": "mock",
        "previous": "LOW",
    }
    assert iot.pin(17).state == 1
    assert iot.do("get_gpio_pin", pin=17)["state"] == "HIGH"
    undo(iot, "set_gpio_pin", {"pin": 11, "state": "HIGH", "mode": "BOARD"}, done)
    assert iot.pin(17).state == 0


def test_the_header_is_the_one_of_gpiozero(iot: Any) -> None:
    header = iot.driver.pins.factory.board_info.headers["J8"].pins
    signals = {
        place: int(info.name.removeprefix("GPIO"))
        for place, info in header.items()
        if info.name.startswith("GPIO")
    }
    assert signals == BOARD


def test_power_of_the_header_is_no_pin(iot: Any) -> None:
    code, text = iot.refusal("set_gpio_pin", pin=1, state="HIGH", mode="BOARD")
    assert (code, text.partition(":")[0]) == ("driver.params", "pin")
    with pytest.raises(DriverError):
        bcm(39, "BOARD")


@pytest.mark.parametrize(("pull", "level"), [("up", 1), ("down", 0), ("none", 0), (None, 0)])
def test_a_pull_decides_over_a_pin_that_nobody_drives(iot: Any, pull: Any, level: int) -> None:
    mode = iot.do("set_pin_mode", pin=4, mode="input", pull=pull)
    assert mode == {"pin": 4, "mode": "input", "pull": pull or "none", "factory": "mock"}
    assert iot.do("digital_read", pin=4)["value"] == level


def test_pins_with_resistors_of_their_own_are_inputs_too(iot: Any) -> None:
    assert iot.do("digital_read", pin=2)["value"] == 1
    assert iot.do("add_event_detect", pin=2)["pin"] == 2
    code, text = iot.refusal("set_pin_mode", pin=27, mode="input", pull="sideways")
    assert (code, "pull: " in text) == ("driver.params", True)


def test_an_output_keeps_the_level_that_the_pin_had(iot: Any) -> None:
    iot.do("set_pin_mode", pin=4, mode="input", pull="up")
    assert iot.do("set_pin_mode", pin=4, mode="output")["mode"] == "output"
    assert (iot.pin(4).function, iot.pin(4).state) == ("output", 1)


@pytest.mark.parametrize(
    ("action", "params"),
    [
        ("digital_read", {}),
        ("digital_write", {"value": 1}),
        ("get_gpio_pin", {}),
        ("set_gpio_pin", {"state": "HIGH"}),
        ("set_pin_mode", {"mode": "output"}),
        ("pwm_start", {"frequency_hz": 50.0}),
        ("set_pwm", {"frequency": 50.0, "duty_cycle": 1.0}),
        ("set_servo", {"angle": 0}),
        ("add_event_detect", {}),
        ("remove_event_detect", {}),
        ("pwm_stop", {}),
        ("pwm_set_duty_cycle", {"duty_cycle": 5.0}),
        ("read_sensor", {}),
    ],
)
def test_a_pin_that_the_policy_does_not_list_is_never_touched(
    iot: Any, action: str, params: dict[str, Any]
) -> None:
    code, text = iot.refusal(action, pin=23, **params)
    assert code == "policy.pin"
    assert text.startswith("pin: ")
    assert iot.pin(23).function == "input"
    assert len(iot.pin(23).states) == 1


def test_a_header_pin_is_checked_by_what_it_is(iot: Any) -> None:
    # 22 is allowed as BCM number; place 22 of the header is BCM 25, which is not
    assert iot.refusal("set_gpio_pin", pin=22, state="HIGH", mode="BOARD")[0] == "policy.pin"
    iot.do("set_gpio_pin", pin=22, state="HIGH")


def test_cleanup_lets_go_and_sets_what_is_safe(iot: Any) -> None:
    iot.do("digital_write", pin=4, value=1)
    iot.do("digital_write", pin=17, value=1)
    iot.do("pwm_start", pin=18, frequency_hz=50.0)
    iot.do("add_event_detect", pin=5)
    done = iot.do("cleanup")
    assert done == {"pins": [4, 5, 17, 18], "cleaned": True}
    assert [iot.pin(pin).function for pin in (4, 5, 18)] == ["input"] * 3
    assert (iot.pin(17).function, iot.pin(17).state) == ("output", 0)
    assert iot.kept == []
    assert iot.do("cleanup", pins=[4]) == {"pins": [], "cleaned": False}


def test_cleanup_of_one_pin_that_is_not_allowed_touches_none(iot: Any) -> None:
    iot.do("digital_write", pin=4, value=1)
    assert iot.refusal("cleanup", pins=[4, 23])[0] == "policy.pin"
    assert (iot.pin(4).function, iot.pin(4).state) == ("output", 1)


def test_a_kept_pin_names_who_keeps_it(iot: Any) -> None:
    iot.do("pwm_start", "r-7/fan/n/1", pin=18, frequency_hz=50.0)
    for action, params in (
        ("digital_write", {"value": 1}),
        ("digital_read", {}),
        ("set_pin_mode", {"mode": "input"}),
        ("pwm_start", {"frequency_hz": 9.0}),
        ("set_servo", {"angle": 1}),
        ("add_event_detect", {}),
        ("read_sensor", {"sensor_type": "DHT22"}),
    ):
        code, text = iot.refusal(action, pin=18, **params)
        assert code == "driver.busy", action
        assert "r-7/fan/n/1" in text
    assert iot.pin(18).frequency == 50.0


def test_what_fails_leaves_the_pin_as_it_was(iot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpiozero

    def broken(*_: Any, **__: Any) -> None:
        raise gpiozero.PinPWMUnsupported("no such pulses")

    iot.do("digital_write", pin=4, value=1)
    monkeypatch.setattr(gpiozero, "PWMOutputDevice", broken)
    code, text = iot.refusal("pwm_start", pin=4, frequency_hz=1.0)
    assert (code, text.partition(":")[0]) == ("driver.unavailable", "pin")
    assert (iot.pin(4).function, iot.pin(4).state) == ("output", 1)
    assert iot.do("digital_write", pin=4, value=0)["previous"] == 1


def test_a_driver_begins_in_its_safe_state_and_stops_what_moves(make_iot: Any) -> None:
    iot = make_iot(pins=PinRules("mock", (4, 18, 27), {27: 1}))
    assert (iot.pin(27).function, iot.pin(27).state) == ("output", 1)
    iot.do("digital_write", pin=27, value=0)
    iot.do("digital_write", pin=4, value=1)
    iot.do("set_servo", pin=18, angle=20)
    iot.driver.safe()
    assert iot.pin(27).state == 1
    assert iot.pin(18).function == "input"
    # an output without a safe level is left alone: nobody said which one is safe
    assert iot.pin(4).state == 1


def test_without_rules_no_pin_exists(make_iot: Any) -> None:
    iot = make_iot(pins=None)
    for action, params in (
        ("digital_read", {"pin": 4}),
        ("cleanup", {"pins": [4]}),
        ("read_adc", {"channel": 0}),
    ):
        code, text = iot.refusal(action, **params)
        assert (code, text.partition(":")[0]) == ("policy.pin", "pin")
    assert not Iot.stands_guard(iot.site)


def test_one_pin_that_fails_keeps_no_other_from_its_safe_level(
    make_iot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    iot = make_iot(pins=PinRules("mock", (4, 17, 27), {4: 0, 17: 0, 27: 0}))
    for pin in (4, 17, 27):
        iot.do("digital_write", pin=pin, value=1)

    def broken(_value: Any) -> None:
        raise OSError("the chip is gone")

    monkeypatch.setattr(iot.pin(4), "_set_state", broken)
    with pytest.raises(DriverError) as caught:
        iot.driver.safe()
    assert caught.value.code == "driver.unavailable"
    assert [iot.pin(pin).state for pin in (17, 27)] == [0, 0]
