"""I2C through smbus2's messages over the twin's registers, and what a real bus says when it is missing."""

import errno
import sys
from typing import Any

import pytest

from imlmesh_drivers.base import Site
from imlmesh_drivers.iot import Iot
from imlmesh_protocol.limits import I2C_WRITE_BYTES


def test_registers_are_written_and_read(iot: Any) -> None:
    sent = iot.do("send_i2c", address=0x76, data=[0xF5, 0x10])
    assert sent == {"bus": 1, "address": 0x76, "bytes_sent": 2, "factory": "mock"}
    iot.do("send_i2c", address=0x76, data=[0xF5])
    assert iot.do("receive_i2c", address=0x76, num_bytes=1)["data"] == [0x10]
    # the id cannot be written, and reading goes on to the next register
    iot.do("send_i2c", address=0x76, data=[0xD0, 0x00])
    iot.do("send_i2c", address=0x76, data=[0xD0])
    assert iot.do("receive_i2c", address=0x76, num_bytes=2)["data"] == [0x58, 0x00]


def test_a_converter_on_i2c_measures_the_soil(iot: Any) -> None:
    iot.do("send_i2c", address=0x48, data=[1, 0xC3, 0x83])
    iot.do("send_i2c", address=0x48, data=[0])
    read = iot.do("receive_i2c", address=0x48, num_bytes=2)
    assert int.from_bytes(bytes(read["data"]), "big") == 0x4000
    iot.do("send_i2c", address=0x48, data=[1, 0xD3, 0x83])
    iot.do("send_i2c", address=0x48, data=[0])
    assert iot.do("receive_i2c", address=0x48, num_bytes=2)["data"] == [0, 0]


@pytest.mark.parametrize(
    ("params", "code", "field"),
    [
        ({"address": 0x50, "data": [1]}, "driver.unavailable", "address"),
        ({"address": 0x51, "data": [1]}, "policy.bus", "address"),
        ({"address": 0x76, "data": [1], "bus": 3}, "policy.bus", "bus"),
        ({"address": 0x76, "data": [1], "bus": 2}, "driver.unavailable", "bus"),
        ({"address": 0x76, "data": []}, "driver.params", "data"),
        ({"address": 0x76, "data": [0] * (I2C_WRITE_BYTES + 1)}, "driver.params", "data"),
        ({"address": 0x76, "data": [256]}, "driver.params", "iot.send_i2c"),
        ({"address": 128, "data": [1]}, "driver.params", "iot.send_i2c"),
    ],
)
def test_what_cannot_be_sent_is_told_with_its_field(
    iot: Any, params: dict[str, Any], code: str, field: str
) -> None:
    found, text = iot.refusal("send_i2c", **params)
    assert (found, text.partition(":")[0]) == (code, field)


def test_nothing_is_received_where_nothing_is(iot: Any) -> None:
    assert iot.refusal("receive_i2c", address=0x50, num_bytes=1)[0] == "driver.unavailable"
    assert iot.refusal("receive_i2c", address=0x76, num_bytes=257)[0] == "driver.params"


def test_a_device_that_is_unplugged_and_comes_back(iot: Any) -> None:
    iot.do("send_i2c", address=0x76, data=[0xD0])
    devices = iot.driver.i2c._open(1).devices
    gone = devices.pop(0x76)
    code, text = iot.refusal("receive_i2c", address=0x76, num_bytes=1)
    assert (code, "0x76" in text) == ("driver.unavailable", True)
    devices[0x76] = gone
    assert iot.do("receive_i2c", address=0x76, num_bytes=1)["data"] == [0x58]


def test_a_real_bus_is_opened_anew_after_an_error(
    iot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    class Bus:
        def __init__(self, number: int) -> None:
            self.number, self.closed = number, False
            opened.append(self)

        def i2c_rdwr(self, *_: Any) -> None:
            raise OSError(errno.EIO, "Input/output error")

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr("smbus2.SMBus", Bus)
    for _ in range(2):
        assert iot.refusal("receive_i2c", address=0x76, num_bytes=1, bus=2)[0] == (
            "driver.unavailable"
        )
    assert [(bus.number, bus.closed) for bus in opened] == [(2, True)] * 2


def test_a_missing_library_names_its_extra(iot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smbus2", None)
    monkeypatch.delitem(sys.modules, "imlmesh_drivers.iot.twins.i2c", raising=False)
    code, text = iot.refusal("receive_i2c", address=0x76, num_bytes=1)
    assert code == "driver.missing"
    assert "imlmesh[i2c]" in text


def test_without_a_policy_no_bus_is_open(make_iot: Any) -> None:
    iot = make_iot(buses=Site(files="/").buses)
    for action, params, field in (
        ("send_i2c", {"address": 1, "data": [1]}, "bus"),
        ("receive_i2c", {"address": 1, "num_bytes": 1}, "bus"),
        ("send_uart", {"data": "x"}, "port"),
        ("receive_uart", {}, "port"),
        ("read_sensor", {"sensor_type": "BMP280"}, "bus"),
        ("read_sensor", {"sensor_type": "DS18B20"}, "sensor_type"),
    ):
        code, text = iot.refusal(action, **params)
        assert (code, text.partition(":")[0]) == ("policy.bus", field)
    assert Iot.actions["send_i2c"].claims == ("i2c:{bus}",)
