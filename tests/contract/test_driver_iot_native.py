"""A policy that says native on a machine without the thing: told with its field, nothing guessed."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.base import PinRules, Site
from imlmesh_drivers.buses import BusRules, I2cRules
from imlmesh_drivers.call import Call
from imlmesh_drivers.child import Child
from imlmesh_protocol.errors import DriverError

#: no board has these: neither this machine nor a Pi that runs the tests
PIN, HEADER_PIN, BUS, PORT = 53, 40, 10, "/dev/no-such-port"


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    site = Site(
        files=str(tmp_path),
        pins=PinRules("native", (PIN, HEADER_PIN)),
        buses=BusRules(i2c={BUS: I2cRules("native", (0x76,))}, serial={PORT: "native"}),
    )
    made = Child("iot", site.to_wire())
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("action", "params", "says"),
    [
        ("digital_write", {"pin": PIN, "value": 1}, ""),
        ("set_gpio_pin", {"pin": HEADER_PIN, "state": "HIGH"}, ""),
        ("add_event_detect", {"pin": PIN}, ""),
        ("pwm_start", {"pin": PIN, "frequency_hz": 1}, ""),
        ("read_sensor", {"sensor_type": "DHT22", "pin": HEADER_PIN}, "pin: "),
        ("receive_i2c", {"address": 0x76, "num_bytes": 1, "bus": BUS}, "bus: /dev/i2c-10"),
        ("send_uart", {"port": PORT, "data": "x"}, "port: /dev/no-such-port"),
    ],
)
async def test_what_is_not_there_is_told(
    child: Child, action: str, params: dict[str, Any], says: str
) -> None:
    with pytest.raises(DriverError) as caught:
        await child.call(action, params, Call("r-1/a/n/1"), 20)
    # without a pin library, or without such a pin
    assert caught.value.code in ("driver.missing", "driver.unavailable")
    assert caught.value.message.startswith(says)
    assert "mock" not in caught.value.message
