"""Sensors over their real libraries and twins; garbage is an error with its field, never a value."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.buses import BusRules
from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import perform_now
from imlmesh_drivers.iot import bmp280, onewire
from imlmesh_drivers.iot.twins.greenhouse import Readings
from imlmesh_drivers.iot.twins.onewire import scratchpad_text


def says(iot: Any, temperature_c: float = 20.0, humidity: float = 50.0, hpa: float = 1000) -> None:
    """Put other values into the world of a driver."""
    iot.driver.world.readings = lambda: Readings(temperature_c, humidity, hpa, 0.5)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"sensor_type": "DHT22", "pin": 22},
            {"pin": 22, "temperature": 20.0, "humidity": 50.0, "unit": "celsius"},
        ),
        (
            {"sensor_type": "DHT11", "pin": 22, "unit": "fahrenheit"},
            {"pin": 22, "temperature": 68.0, "humidity": 50.0, "unit": "fahrenheit"},
        ),
        (
            {"sensor_type": "DS18B20"},
            {"sensor": "28-00000a11ce01", "temperature": 20.0, "unit": "celsius"},
        ),
        (
            {"sensor_type": "BMP280"},
            {"address": 0x76, "temperature": 20.0, "pressure_hpa": 1013.25, "unit": "celsius"},
        ),
        ({"pin": 4}, {"pin": 4, "value": 0}),
        ({"sensor_type": "generic", "address": 0x48}, {"address": 0x48, "raw": 0x4000}),
    ],
)
def test_every_kind_is_read(iot: Any, params: dict[str, Any], expected: dict[str, Any]) -> None:
    found = iot.do("read_sensor", **params)
    assert found.pop("factory") == "mock"
    assert found.pop("sensor_type") == params.get("sensor_type", "generic")
    for name, value in expected.items():
        near = pytest.approx(value, abs=0.02) if isinstance(value, float) else value
        assert found.pop(name) == near
    assert found == {}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (
            {"sensor_type": "DHT22", "pin": 22, "unit": "fahrenheit"},
            {"dht22.22.temperature": "°C", "dht22.22.humidity": "%"},
        ),
        (
            {"sensor_type": "BMP280"},
            {"bmp280.76.temperature": "°C", "bmp280.76.pressure_hpa": "hPa"},
        ),
        ({"pin": 4}, {}),
    ],
)
def test_what_is_read_is_telemetry_too(
    iot: Any, params: dict[str, Any], expected: dict[str, str]
) -> None:
    says(iot, 20.0)
    told: dict[str, tuple[float, str]] = {}
    call = Call(
        "r-1/a/n/1", on_reading=lambda name, value, unit, _: told.update({name: (value, unit)})
    )
    perform_now(iot.driver, "read_sensor", params, call)
    assert {name: unit for name, (_, unit) in told.items()} == expected
    for name, (value, _) in told.items():
        if name.endswith("temperature"):
            assert value == pytest.approx(20.0, abs=0.1), "in Celsius, whatever was asked for"


@pytest.mark.parametrize("celsius", [-12.3, -0.1, 0.0, 41.7])
@pytest.mark.parametrize("kind", ["DHT22", "DS18B20", "BMP280"])
def test_cold_and_heat_come_through(iot: Any, kind: str, celsius: float) -> None:
    says(iot, celsius)
    found = iot.do("read_sensor", sensor_type=kind, pin=22)
    # a DS18B20 has sixteenths of a degree
    assert found["temperature"] == pytest.approx(celsius, abs=0.04)


@pytest.mark.parametrize(
    ("params", "code", "field"),
    [
        ({"sensor_type": "DHT22"}, "driver.params", "pin"),
        ({}, "driver.params", "pin, address"),
        ({"pin": 4, "address": 0x48}, "driver.params", "pin, address"),
        ({"sensor_type": "DHT22", "pin": 23}, "policy.pin", "pin"),
        ({"sensor_type": "BMP280", "address": 0x51}, "policy.bus", "address"),
        ({"sensor_type": "BMP280", "address": 0x50}, "driver.unavailable", "address"),
        ({"sensor_type": "DHT99", "pin": 4}, "driver.params", "iot.read_sensor"),
    ],
)
def test_bad_input_is_told_with_its_field(
    iot: Any, params: dict[str, Any], code: str, field: str
) -> None:
    found, text = iot.refusal("read_sensor", **params)
    assert (found, text.partition(":")[0]) == (code, field)


@pytest.mark.parametrize(
    ("celsius", "humidity"), [(81.0, 50.0), (-41.0, 50.0), (20.0, 100.1), (3000.0, 50.0)]
)
def test_a_dht_out_of_its_range_is_no_value(iot: Any, celsius: float, humidity: float) -> None:
    says(iot, celsius, humidity)
    code, text = iot.refusal("read_sensor", sensor_type="DHT22", pin=22)
    assert (code, text.partition(":")[0]) == ("driver.reading", "pin")


@pytest.mark.parametrize("pulses", [[], [50] * 40, [50, 27] * 40 + [50], [50, 70] * 40 + [50]])
def test_a_dht_that_says_nonsense_is_no_value(
    iot: Any, pulses: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from imlmesh_drivers.iot.twins import dht

    monkeypatch.setattr(dht._Dht22, "_get_pulses_bitbang", lambda self: pulses)
    code, text = iot.refusal("read_sensor", sensor_type="DHT22", pin=22)
    assert (code, text.partition(":")[0]) == ("driver.reading", "pin")


def test_a_dht_that_fails_at_first_never_gives_an_old_or_empty_value(iot: Any) -> None:
    says(iot, 3000.0)
    assert iot.refusal("read_sensor", sensor_type="DHT22", pin=22)[0] == "driver.reading"
    # within two seconds the library answers from its memory: that is still out of range
    says(iot, 20.0)
    assert iot.refusal("read_sensor", sensor_type="DHT22", pin=22)[0] == "driver.reading"


GOOD = scratchpad_text(338)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no such thing\n",
        GOOD.replace("52", "53", 1),
        "ff ff ff ff ff ff ff ff ff : crc=ff NO\n",
        "00 00 00 00 00 00 00 00 00 : crc=00 YES\n",
        scratchpad_text(0x0550),
        scratchpad_text(126 * 16),
        scratchpad_text(-56 * 16),
        GOOD[:20],
    ],
)
def test_a_one_wire_answer_that_is_wrong_is_no_value(
    iot: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert iot.do("read_sensor", sensor_type="DS18B20")["temperature"] == 20.0
    twin = iot.driver._onewire
    sensor = twin.folder / "28-00000a11ce01" / "w1_slave"
    monkeypatch.setattr(twin, "measure", lambda: sensor.write_text(text))
    code, message = iot.refusal("read_sensor", sensor_type="DS18B20")
    assert (code, message.partition(":")[0]) == ("driver.reading", "sensor_type")


def test_what_a_chip_said_is_understood(tmp_path: Path) -> None:
    # from a real DS18B20: its checksum was not made by our own code
    (tmp_path / "28-0").mkdir()
    text = "72 01 4b 46 7f ff 0e 10 57 : crc=57 YES\n72 01 4b 46 7f ff 0e 10 57 t=23125\n"
    (tmp_path / "28-0" / "w1_slave").write_text(text)
    assert onewire.read_celsius(tmp_path, "28-0") == 23.125


def test_real_one_wire_files_are_read_where_the_kernel_has_them(
    make_iot: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iot = make_iot(buses=BusRules(onewire="native"))
    monkeypatch.setattr(onewire, "SYSTEM", tmp_path / "bus")
    code, text = iot.refusal("read_sensor", sensor_type="DS18B20")
    assert (code, text.partition(":")[0]) == ("driver.unavailable", "sensor_type")
    (tmp_path / "bus").mkdir()
    assert iot.refusal("read_sensor", sensor_type="DS18B20")[0] == "driver.unavailable"
    for name, sixteenths in (("28-b", 320), ("28-a", -8)):
        (tmp_path / "bus" / name).mkdir()
        (tmp_path / "bus" / name / "w1_slave").write_text(scratchpad_text(sixteenths))
    told: dict[str, float] = {}
    call = Call("r-1/a/n/1", on_reading=lambda name, value, *_: told.update({name: value}))
    warm = perform_now(
        iot.driver, "read_sensor", {"sensor_type": "DS18B20", "unit": "fahrenheit"}, call
    )
    assert warm["all"] == {"28-a": 31.1, "28-b": 68.0}
    assert told == {"ds18b20.28-a.temperature": -0.5, "ds18b20.28-b.temperature": 20.0}
    found = iot.do("read_sensor", sensor_type="DS18B20")
    assert found == {
        "sensor_type": "DS18B20",
        "temperature": -0.5,
        "sensor": "28-a",
        "all": {"28-a": -0.5, "28-b": 20.0},
        "factory": "native",
        "unit": "celsius",
    }
    # pulled off while the bus still lists it
    (tmp_path / "bus" / "28-a" / "w1_slave").unlink()
    assert iot.refusal("read_sensor", sensor_type="DS18B20")[0] == "driver.unavailable"


@pytest.mark.parametrize(
    ("register", "value"),
    [
        (bmp280.CHIP_ID, b"\xff"),
        (bmp280.CALIBRATION, b"\xff" * bmp280.CALIBRATION_BYTES),
        (bmp280.CALIBRATION, bytes(bmp280.CALIBRATION_BYTES)),
        (bmp280.STATUS, bytes([bmp280.MEASURING])),
        (bmp280.DATA, bmp280.raw_to_bytes(bmp280.SKIPPED, bmp280.SKIPPED)),
        (bmp280.DATA, b"\xff" * bmp280.DATA_BYTES),
        (bmp280.DATA, bytes(bmp280.DATA_BYTES)),
    ],
)
def test_a_bmp280_that_says_nonsense_is_no_value(
    iot: Any, register: int, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert iot.do("read_sensor", sensor_type="BMP280")["temperature"] == 20.0
    chip = iot.driver.i2c._open(1).devices[0x76]
    monkeypatch.setattr(chip, "_measure", lambda: None)
    chip._registers[register : register + len(value)] = value
    code, text = iot.refusal("read_sensor", sensor_type="BMP280")
    assert (code, text.partition(":")[0]) == ("driver.reading", "address")


def test_a_real_dht_needs_a_board_that_blinka_knows(
    make_iot: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    iot = make_iot()
    monkeypatch.setitem(sys.modules, "adafruit_dht", None)
    monkeypatch.delitem(sys.modules, "imlmesh_drivers.iot.twins.dht", raising=False)
    code, text = iot.refusal("read_sensor", sensor_type="DHT22", pin=22)
    assert code == "driver.missing"
    assert "imlmesh[dht]" in text
    assert os.environ.get("BLINKA_OS_AGNOSTIC") in (None, "1")


def test_the_folder_of_the_one_wire_twin_goes_with_the_driver(iot: Any) -> None:
    iot.do("read_sensor", sensor_type="DS18B20")
    folder = iot.driver._onewire.folder
    assert folder.is_dir()
    iot.driver.close()
    assert not folder.exists()
