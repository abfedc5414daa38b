"""Pulses, servos and the converter, over gpiozero and its mock."""

from typing import Any

import pytest

from imlmesh_drivers.base import PinRules
from imlmesh_drivers.iot import Iot


def test_pulses_start_change_and_stop(iot: Any) -> None:
    started = iot.do("pwm_start", pin=18, frequency_hz=100)
    assert started == {"pin": 18, "frequency_hz": 100.0, "duty_cycle": 50.0, "factory": "mock"}
    assert (iot.pin(18).frequency, iot.pin(18).state) == (100, 0.5)
    changed = iot.do("pwm_set_duty_cycle", pin=18, duty_cycle=12.5)
    assert (changed["duty_cycle"], changed["previous"]) == (12.5, 50.0)
    assert iot.pin(18).state == 0.125
    assert iot.do("pwm_stop", pin=18) == {"pin": 18, "stopped": True}
    assert (iot.pin(18).frequency, iot.pin(18).function) == (None, "input")
    assert iot.do("pwm_stop", pin=18) == {"pin": 18, "stopped": False}


def test_set_pwm_starts_and_then_changes(iot: Any) -> None:
    first = iot.do("set_pwm", pin=12, mode="BOARD", frequency=50, duty_cycle=10)
    assert (first["mode"], first["frequency"], first["factory"]) == ("BOARD", 50.0, "mock")
    iot.do("set_pwm", pin=18, frequency=200, duty_cycle=75)
    assert (iot.pin(18).frequency, iot.pin(18).state) == (200, 0.75)


def test_a_duty_cycle_needs_pulses(iot: Any) -> None:
    code, text = iot.refusal("pwm_set_duty_cycle", pin=18, duty_cycle=1)
    assert (code, text.partition(":")[0]) == ("driver.params", "pin")


def test_stopped_pulses_leave_the_safe_level(make_iot: Any) -> None:
    iot = make_iot(pins=PinRules("mock", (17,), {17: 1}))
    iot.do("pwm_start", pin=17, frequency_hz=50)
    iot.do("pwm_stop", pin=17)
    assert (iot.pin(17).function, iot.pin(17).state) == ("output", 1)


def test_undoing_of_pulses_is_declared() -> None:
    undos = {name: spec.undo for name, spec in Iot.actions.items() if spec.undo}
    assert undos["pwm_start"].action == "pwm_stop"
    assert undos["pwm_set_duty_cycle"].params["duty_cycle"] == "{{result.previous}}"
    assert undos["add_event_detect"].action == "remove_event_detect"
    assert {"send_i2c", "send_uart", "publish_mqtt", "cleanup"}.isdisjoint(undos)


@pytest.mark.parametrize(
    ("action", "params", "field"),
    [
        ("pwm_start", {"pin": 18, "frequency_hz": 0.5}, "frequency_hz"),
        ("pwm_start", {"pin": 18, "frequency_hz": 50, "duty_cycle": 101}, "duty_cycle"),
        ("set_pwm", {"pin": 41, "frequency": 50, "duty_cycle": 1}, "pin"),
        ("pwm_set_duty_cycle", {"pin": 18, "duty_cycle": float("nan")}, "duty_cycle"),
        ("pwm_stop", {"pin": -1}, "pin"),
        ("set_servo", {"pin": 18, "angle": 91}, "angle"),
        ("read_adc", {"channel": 8}, "channel"),
    ],
)
def test_values_out_of_range_are_named(
    iot: Any, action: str, params: dict[str, Any], field: str
) -> None:
    code, text = iot.refusal(action, **params)
    assert code == "driver.params"
    assert f"{field}: " in text


def test_a_servo_turns_and_holds(iot: Any) -> None:
    assert iot.do("set_servo", pin=18, angle=90) == {"pin": 18, "angle": 90.0, "factory": "mock"}
    # 2 ms of every 20 ms
    assert iot.pin(18).state == pytest.approx(0.1)
    iot.do("set_servo", pin=18, angle=-90)
    assert iot.pin(18).state == pytest.approx(0.05)


def test_a_converter_is_read_over_spi(iot: Any) -> None:
    read = iot.do("read_adc", channel=0)
    assert read["value"] == pytest.approx(0.5, abs=0.001)
    assert (read["factory"], read["spi"]) == ("mock", "software")
    assert iot.do("read_adc", channel=1)["raw"] == 0
    # nothing of it keeps the pins
    iot.do("digital_write", pin=11, value=1)


def test_a_converter_whose_pin_is_in_use_names_the_owner(iot: Any) -> None:
    iot.do("digital_write", "r-9/lamp/n/1", pin=10, value=1)
    code, text = iot.refusal("read_adc", channel=0)
    assert code == "driver.busy"
    assert "r-9/lamp/n/1" in text
    assert iot.pin(10).state == 1
    iot.do("cleanup", pins=[10])
    assert iot.do("read_adc", channel=0)["raw"] > 0


def test_a_converter_needs_all_four_pins(make_iot: Any) -> None:
    iot = make_iot(pins=PinRules("mock", (8, 9, 10)))
    assert iot.refusal("read_adc", channel=0)[0] == "policy.pin"
