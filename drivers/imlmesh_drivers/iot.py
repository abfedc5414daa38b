"""The IML module `iot`: digital pins through gpiozero, on real hardware or on its mock.

The one rule: the policy says which of the two, nothing is guessed, and a pin that the policy does
not list is never touched. Pins are BCM numbers. gpiozero is imported when the first pin is used.
"""

from typing import Any, Literal, TypedDict

from imlmesh_drivers.base import Driver, Pin, PinRules, Site, action
from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.manifest import Undo


class PinValue(TypedDict):
    """A pin and its level."""

    pin: int
    value: int


class PinSet(PinValue):
    """A pin, its level now, and the level that it had before."""

    previous: int


class Gpio(Driver):
    """Read and set digital pins."""

    module = "iot"
    version = "0.1.0"
    runs = "process"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._factory: Any = None
        #: the gpiozero device of every pin in use, and whether it is an output
        self._devices: dict[int, tuple[Any, bool]] = {}

    @action(effect="pure", impact=0.1, permission="readonly", claims="gpio:{pin}")
    async def digital_read(self, pin: Pin) -> PinValue:
        """Read the level of a pin: 0 or 1; of an output, the level that was set."""
        self._check(pin)
        if pin not in self._devices:
            self._devices[pin] = (
                self._open("InputDevice", pin, pull_up=None, active_state=True),
                False,
            )
        return {"pin": pin, "value": int(self._devices[pin][0].value)}

    @action(
        effect="physical",
        impact=0.5,
        permission="local_worker",
        claims="gpio:{pin}",
        undo=Undo("digital_write", {"pin": "{{params.pin}}", "value": "{{result.previous}}"}),
    )
    async def digital_write(self, pin: Pin, value: Literal[0, 1]) -> PinSet:
        """Make a pin an output and set its level; `previous` is the level that it had.

        The undo sets that level again; a pin that was an input stays an output.
        """
        self._check(pin)
        previous = self._set(pin, value)
        return {"pin": pin, "value": value, "previous": previous}

    def safe(self) -> None:
        """Set every pin that the policy gives a safe level to that level."""
        for pin, level in self._rules().safe.items() if self.site.pins else ():
            self._set(pin, level)

    def _rules(self) -> PinRules:
        if self.site.pins is None:
            raise DriverDenied("policy.pin", "the policy of this node has no [pins]")
        return self.site.pins

    def _check(self, pin: int) -> None:
        if pin not in self._rules().allow:
            raise DriverDenied("policy.pin", f"pin {pin} is not in [pins] allow of the policy")

    def _set(self, pin: int, level: int) -> int:
        """Drive a pin; gives the level that it had before."""
        device, is_output = self._devices.get(pin, (None, False))
        if device is None:
            device = self._open("InputDevice", pin, pull_up=None, active_state=True)
        previous = int(device.value)
        if is_output:
            device.value = level
            return previous
        device.close()
        self._devices[pin] = (self._open("OutputDevice", pin, initial_value=bool(level)), True)
        return previous

    def _open(self, kind: str, pin: int, **options: Any) -> Any:
        if self._factory is None:
            self._factory = _pin_factory(self._rules().factory)
        import gpiozero

        try:
            return getattr(gpiozero, kind)(pin, pin_factory=self._factory, **options)
        except Exception as exc:  # gpiozero lets errors of its pin libraries through
            raise DriverError("driver.unavailable", f"pin {pin}: {exc}") from exc


def _pin_factory(kind: Literal["native", "mock"]) -> Any:
    try:
        if kind == "mock":
            from gpiozero.pins.mock import MockFactory

            return MockFactory()
        from gpiozero.pins.lgpio import LGPIOFactory
    except ImportError as exc:
        message = f"{exc}: pip install 'imlmesh[gpio]' and, for real pins, lgpio"
        raise DriverError("driver.missing", message) from exc
    try:
        return LGPIOFactory()
    except Exception as exc:  # lgpio raises a class of its own that is no OSError
        raise DriverError("driver.unavailable", f"no GPIO chip can be opened: {exc}") from exc
