"""Pins through gpiozero: who uses which and as what, their safe levels, foreign errors coded.

The one rule: a pin that the policy does not list is never touched, and one that is kept (PWM, a servo,
watched edges) is not taken from whom it serves. Pins are BCM numbers. gpiozero is imported when the
first pin is used. Deliberately absent: actions.
"""

import contextlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from imlmesh_drivers.base import PinRules
from imlmesh_drivers.buses import Factory
from imlmesh_drivers.iot.libraries import library
from imlmesh_drivers.iot.twins.world import World
from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.pins import BOARD

Kind = Literal["input", "output", "pwm", "servo", "edges"]
#: whoever comes next may change these
_FREE: tuple[Kind, ...] = ("input", "output")
Pull = Literal["none", "up", "down"]
_PULLS: dict[Pull, bool | None] = {"none": None, "up": True, "down": False}


def bcm(pin: int, mode: Literal["BCM", "BOARD"]) -> int:
    """The BCM number of a pin; `driver.params` for a place of the header that is no pin."""
    if mode == "BCM":
        return pin
    if pin not in BOARD:
        raise DriverError("driver.params", f"pin: {pin} of the header carries power, not a signal")
    return BOARD[pin]


@contextlib.contextmanager
def hardware(what: str) -> Iterator[None]:
    """Whatever gpiozero, or a pin library beneath it, raises becomes `driver.unavailable`."""
    try:
        yield
    except Exception as exc:
        raise DriverError("driver.unavailable", f"{what}: {exc}") from exc


@dataclass(slots=True)
class Use:
    """What a pin is: its gpiozero device, how it was opened, and for which dispatch."""

    kind: Kind
    device: Any
    owner: str
    opened: tuple[str, dict[str, Any]] = field(default=("", {}))

    @property
    def pull(self) -> Pull:
        return next(n for n, up in _PULLS.items() if up is self.opened[1].get("pull_up"))


class Pins:
    """All pins of a node; `world` is what mock pins are wired to.

    What changes a pin takes `lock` by itself; whoever does several things in a row holds it meanwhile.
    """

    def __init__(self, rules: PinRules | None, world: World) -> None:
        self._rules = rules
        self._world = world
        self._factory: Any = None
        self._uses: dict[int, Use] = {}
        self.lock = threading.RLock()

    @property
    def rules(self) -> PinRules:
        """`policy.pin` when the policy has none."""
        if self._rules is None:
            raise DriverDenied("policy.pin", "pin: the policy of this node has no [pins]")
        return self._rules

    @property
    def factory(self) -> Any:
        """gpiozero's pin factory; `driver.missing` or `driver.unavailable` when there is none."""
        with self.lock:
            if self._factory is None:
                self._factory = _pin_factory(self.rules.factory, self._world, self.lock)
                import gpiozero

                # its software SPI asks for the default factory, whatever it is given
                gpiozero.Device.pin_factory = self._factory
            return self._factory

    def check(self, pin: int) -> None:
        """`policy.pin` unless the policy allows it."""
        if pin not in self.rules.allow:
            text = f"pin: pin {pin} is not in [pins] allow of the policy"
            raise DriverDenied("policy.pin", text)

    def use_of(self, pin: int, kind: Kind | None = None) -> Use | None:
        """What an allowed pin is now, if it is of `kind` (or of any)."""
        self.check(pin)
        use = self._uses.get(pin)
        return use if kind is None or (use and use.kind == kind) else None

    def take(self, pin: int, kind: Kind, owner: str, device: str, **options: Any) -> Use:
        """Open a gpiozero device on a pin that is free; `driver.busy` names who keeps it.

        When that fails the pin becomes what it was.
        """
        with self.lock:
            before = self.free(pin)
            level = None
            if before is not None:
                with hardware(f"pin: gpio:{pin}"):
                    level = before.device.pin.state
                    before.device.close()
                del self._uses[pin]
            try:
                opened = self.open(device, pin, **options)
            except DriverError:
                if before is not None:
                    self._put_back(pin, before, level)
                raise
            use = self._uses[pin] = Use(kind, opened, owner, (device, options))
            return use

    def free(self, pin: int) -> Use | None:
        """What a pin is that may be taken; `driver.busy` when somebody keeps it."""
        use = self.use_of(pin)
        if use is not None and use.kind not in _FREE:
            raise DriverError("driver.busy", f"pin: gpio:{pin} is held by {use.owner} ({use.kind})")
        return use

    def read(self, pin: int, owner: str) -> int:
        """The level of an input, an output or a watched pin; a pin not used yet becomes an input."""
        with self.lock:
            use = self.use_of(pin, "edges") or self.free(pin)
            if use is None:
                use = self.make_input(pin, self.own_pull(pin), owner)
            with hardware(f"pin: gpio:{pin}"):
                level: int = round(use.device.pin.state)
            return level

    def write(self, pin: int, level: int, owner: str) -> int:
        """Make a pin an output of this level; gives the level that it had before."""
        with self.lock:
            before = self.free(pin)
            previous = self.read(pin, owner)
            if before is not None and before.kind == "output":
                with hardware(f"pin: gpio:{pin}"):
                    before.device.value = level
                before.owner = owner
            else:
                self.take(pin, "output", owner, "OutputDevice", initial_value=bool(level))
            return previous

    def own_pull(self, pin: int) -> Pull:
        """The pull that a pin cannot lose: those of I2C have resistors on the board."""
        factory = self.factory
        with hardware(f"pin: gpio:{pin}"):
            pull: Pull = factory.pin(pin).info.pull or "none"
        return pull

    def make_input(self, pin: int, pull: Pull, owner: str) -> Use:
        """An input; with a pull its level is still 1 for high."""
        up = _PULLS[pull]
        active = {"active_state": True} if up is None else {}
        return self.take(pin, "input", owner, "InputDevice", pull_up=up, **active)

    def release(self, pin: int) -> bool:
        """Let go of a pin: to its safe level, else an input. Whether it was in use."""
        with self.lock:
            use = self.use_of(pin)
            level = self.rules.safe.get(pin)
            if use is not None and (level is None or use.kind != "output"):
                use.device.close()
                del self._uses[pin]
            if level is not None:
                self.write(pin, level, "policy.toml")
            return use is not None

    def used(self) -> list[int]:
        return sorted(self._uses)

    def safe(self) -> None:
        """Bring every pin that has a safe level to it; what moves (PWM, servos) stops.

        One that fails keeps no other from being set; the first error is raised at the end.
        """
        if self._rules is None:
            return
        failed: list[DriverError] = []
        with self.lock:
            moving = {pin for pin, use in self._uses.items() if use.kind in ("pwm", "servo")}
            for pin in sorted(moving | self._rules.safe.keys()):
                try:
                    self.release(pin)
                except DriverError as exc:
                    failed.append(exc)
        if failed:
            raise failed[0]

    def check_unused(self, pins: Iterable[int]) -> None:
        """`driver.busy` when one of several pins is anything at all."""
        for pin in pins:
            if (use := self.use_of(pin)) is not None:
                text = f"pin: gpio:{pin} is held by {use.owner} ({use.kind}); cleanup lets go of it"
                raise DriverError("driver.busy", text)

    def _put_back(self, pin: int, before: Use, level: Any) -> None:
        device, options = before.opened
        if before.kind == "output":
            options = {"initial_value": bool(level)}
        self._uses[pin] = Use(
            before.kind, self.open(device, pin, **options), before.owner, before.opened
        )

    def open(self, kind: str, pin: int | None = None, **options: Any) -> Any:
        """A gpiozero device that nobody here remembers."""
        factory = self.factory
        import gpiozero

        place = () if pin is None else (pin,)
        with hardware("pin" if pin is None else f"pin: gpio:{pin}"):
            return getattr(gpiozero, kind)(*place, pin_factory=factory, **options)


def _pin_factory(kind: Factory, world: World, lock: threading.RLock) -> Any:
    with library("pin", "gpio"):
        if kind == "mock":
            from imlmesh_drivers.iot.twins.pins import TwinFactory

            return TwinFactory(world, lock)
        from gpiozero.pins.lgpio import LGPIOFactory
    try:
        return LGPIOFactory()
    except Exception as exc:  # lgpio raises a class of its own that is no OSError
        raise DriverError("driver.unavailable", f"pin: no GPIO chip can be opened: {exc}") from exc
