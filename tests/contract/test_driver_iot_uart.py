"""Serial ports through pyserial over a pseudo-terminal: answers, silence, floods, and hanging up."""

import json
import os
import pty
import sys
import tty
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from imlmesh_drivers.buses import BusRules
from imlmesh_protocol.limits import SERIAL_WRITE_BYTES


class Wire:
    """A pseudo-terminal that takes the place of a real port."""

    def __init__(self) -> None:
        self.far, self.near = pty.openpty()
        tty.setraw(self.near)
        self.path = os.ttyname(self.near)
        self._is_up = True

    def hang_up(self) -> None:
        if self._is_up:
            self._is_up = False
            for end in (self.far, self.near):
                os.close(end)


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.hang_up()


@pytest.fixture
def wired(make_iot: Callable[..., Any], wire: Wire) -> Any:
    """A driver whose policy says native of the wire."""
    return make_iot(buses=BusRules(serial={wire.path: "native"}))


def test_the_meter_answers(iot: Any) -> None:
    sent = iot.do("send_uart", data="read\n")
    assert sent == {"port": "/dev/ttyS0", "bytes_sent": 5, "factory": "mock"}
    answer = iot.do("receive_uart", num_bytes=200, timeout=0.5)
    assert json.loads(answer["data"]) == {"temperature_c": 20.0, "humidity": 50.0, "soil": 0.5}
    assert bytes.fromhex(answer["hex"]).decode() == answer["data"]
    assert answer["factory"] == "mock"
    iot.do("send_uart", data="hello\n", baud_rate=115200)
    assert iot.do("receive_uart", num_bytes=6, baud_rate=115200)["data"] == "hello\n"


def test_silence_is_a_result(iot: Any) -> None:
    found = iot.do("receive_uart", timeout=0.1)
    assert (found["data"], found["bytes_received"]) == ("", 0)


def test_a_real_port_is_opened_once_and_loses_nothing(wired: Any, wire: Wire) -> None:
    wired.do("send_uart", port=wire.path, data="grüße")
    assert os.read(wire.far, 100) == "grüße".encode()
    os.write(wire.far, b"\xff\x00ok")
    found = wired.do("receive_uart", port=wire.path, num_bytes=4)
    assert (found["hex"], found["data"], found["factory"]) == ("ff006f6b", "�\x00ok", "native")


def test_a_port_that_takes_nothing_is_told_and_sends_nothing_later(wired: Any, wire: Wire) -> None:
    code, text = wired.refusal(
        "send_uart", port=wire.path, data="x" * SERIAL_WRITE_BYTES, timeout=0.2
    )
    assert (code, text.partition(":")[0]) == ("driver.timeout", "data")
    os.set_blocking(wire.far, False)
    taken = 0
    while True:
        try:
            taken += len(os.read(wire.far, 65_536))
        except BlockingIOError:
            break
    assert taken < SERIAL_WRITE_BYTES


def test_a_port_that_another_process_has_is_not_shared(
    wired: Any, wire: Wire, make_iot: Callable[..., Any]
) -> None:
    wired.do("receive_uart", port=wire.path, timeout=0.1)
    other = make_iot(buses=BusRules(serial={wire.path: "native"}))
    code, text = other.refusal("send_uart", port=wire.path, data="x")
    assert (code, text.partition(":")[0]) == ("driver.unavailable", "port")


def test_a_port_that_goes_away_is_told(wired: Any, wire: Wire) -> None:
    wired.do("send_uart", port=wire.path, data="x")
    wire.hang_up()
    code, text = wired.refusal("receive_uart", port=wire.path, timeout=0.1)
    assert (code, text.partition(":")[0]) == ("driver.unavailable", "port")
    assert wired.refusal("send_uart", port=wire.path, data="x")[0] == "driver.unavailable"


@pytest.mark.parametrize(
    ("action", "params", "code", "field"),
    [
        ("send_uart", {"port": "/dev/sda", "data": "x"}, "policy.bus", "port"),
        ("send_uart", {"port": "/dev/ttyGone", "data": "x"}, "driver.unavailable", "port"),
        ("send_uart", {"data": ""}, "driver.params", "data"),
        ("send_uart", {"data": "x" * (SERIAL_WRITE_BYTES + 1)}, "driver.params", "data"),
        ("send_uart", {"data": "x", "baud_rate": 1}, "driver.params", "iot.send_uart"),
        ("receive_uart", {"num_bytes": 4097}, "driver.params", "iot.receive_uart"),
        ("receive_uart", {"timeout": 31}, "driver.params", "iot.receive_uart"),
        ("receive_uart", {"port": "../ttyS0"}, "policy.bus", "port"),
    ],
)
def test_bad_input_is_told_with_its_field(
    iot: Any, action: str, params: dict[str, Any], code: str, field: str
) -> None:
    found, text = iot.refusal(action, **params)
    assert (found, text.partition(":")[0]) == (code, field)


def test_a_missing_library_names_its_extra(iot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    code, text = iot.refusal("receive_uart")
    assert code == "driver.missing"
    assert "imlmesh[serial]" in text
