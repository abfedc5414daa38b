"""The iot driver in the process of a test, over its shipped twins."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.base import PinRules, Site
from imlmesh_drivers.buses import BusRules, I2cRules
from imlmesh_drivers.call import Call
from imlmesh_drivers.invoke import perform, perform_now
from imlmesh_drivers.iot import Iot
from imlmesh_protocol.errors import DriverError

ALLOWED = (2, 4, 5, 8, 9, 10, 11, 17, 18, 22, 27)


class IotRig:
    """One driver, what its sources said, and what it wants its successor to know."""

    def __init__(self, files: Path, **site: Any) -> None:
        rules: dict[str, Any] = {
            "pins": PinRules("mock", ALLOWED, {17: 0}),
            "buses": BusRules(
                i2c={1: I2cRules("mock", (0x48, 0x50, 0x76)), 2: I2cRules("native", (0x76,))},
                serial={"/dev/ttyS0": "mock", "/dev/ttyGone": "native"},
                onewire="mock",
            ),
        }
        self.site = Site(files=str(files), **(rules | site))
        self.driver = Iot(self.site)
        self.seen: list[tuple[str, Mapping[str, Any]]] = []
        self.kept: Any = None
        self.driver.emit = lambda name, values: self.seen.append((name, dict(values)))
        self.driver.keep = self._keep
        self.driver.safe()

    def do(self, action: str, dispatch: str = "r-1/a/n/1", **params: Any) -> Any:
        """Bind and call one action, as a child does."""
        return perform_now(self.driver, action, params, Call(dispatch))

    def refusal(self, action: str, dispatch: str = "r-2/b/n/1", **params: Any) -> tuple[str, str]:
        """(code, text) of the error that an action must end in."""
        with pytest.raises(DriverError) as caught:
            self.do(action, dispatch, **params)
        return caught.value.code, caught.value.message

    async def wait_for(self, action: str, **params: Any) -> Any:
        """The same as `do` for an action that waits."""
        return await perform(self.driver, action, params, Call("r-1/a/n/1"))

    def pin(self, number: int) -> Any:
        """gpiozero's mock pin, to be driven from outside."""
        return self.driver.pins.factory.pin(number)

    def _keep(self, value: Any) -> None:
        self.kept = value
