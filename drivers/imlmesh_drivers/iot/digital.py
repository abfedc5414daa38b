"""Digital pins: read, write, mode, and letting go.

The one rule: 1 is high and 0 is low, whatever pulls the pin.
"""

from typing import Annotated, Literal, TypedDict

from annotated_types import Interval

from imlmesh_drivers.base import Guard, Pin, action
from imlmesh_drivers.buses import Factory
from imlmesh_drivers.call import Call
from imlmesh_drivers.iot.board import Board
from imlmesh_drivers.iot.pins import Pull, bcm
from imlmesh_protocol.manifest import Undo

#: a BCM number, or a place on the 40-pin header: the driver checks it, not the guard
HeaderPin = Annotated[int, Interval(ge=1, le=40)]
Numbering = Literal["BCM", "BOARD"]
#: the claim of a pin by its number in `mode`
BY_NUMBERING = "gpio:{mode}{pin}"
BcmPin = Annotated[int, Interval(ge=0, le=53)]
_WORDS: tuple[Literal["LOW"], Literal["HIGH"]] = ("LOW", "HIGH")


class PinValue(TypedDict):
    """A pin and its level."""

    pin: int
    value: int
    factory: Factory


class PinSet(PinValue):
    """A pin, its level now, and the level that it had before."""

    previous: int


class PinState(TypedDict):
    """A pin by its number in `mode`, and its level in words."""

    pin: int
    mode: Numbering
    state: Literal["HIGH", "LOW"]
    factory: Factory


class PinStateSet(PinState):
    """The same, with the level that it had before."""

    previous: Literal["HIGH", "LOW"]


class PinMode(TypedDict):
    """What a pin is now."""

    pin: int
    mode: Literal["input", "output"]
    pull: Pull
    factory: Factory


class Cleaned(TypedDict):
    """The pins that were let go of; `cleaned` says whether there were any."""

    pins: list[int]
    cleaned: bool


class PinActions(Board):
    """Actions on levels and modes of pins."""

    @action(effect="pure", impact=0.1, permission="readonly", claims="gpio:{pin}")
    def digital_read(self, call: Call, pin: Pin) -> PinValue:
        """Read the level of a pin: 0 or 1; of an output, the level that was set."""
        value = self.pins.read(pin, call.dispatch)
        return {"pin": pin, "value": value, "factory": self.pins.rules.factory}

    @action(
        effect="physical",
        impact=0.5,
        permission="local_worker",
        claims="gpio:{pin}",
        undo=Undo("digital_write", {"pin": "{{params.pin}}", "value": "{{result.previous}}"}),
    )
    def digital_write(self, call: Call, pin: Pin, value: Literal[0, 1]) -> PinSet:
        """Make a pin an output and set its level; `previous` is the level that it had.

        The undo sets that level again; a pin that was an input stays an output.
        """
        previous = self.pins.write(pin, value, call.dispatch)
        return {
            "pin": pin,
            "value": value,
            "factory": self.pins.rules.factory,
            "previous": previous,
        }

    @action(effect="pure", impact=0.1, permission="readonly", claims=BY_NUMBERING)
    def get_gpio_pin(self, call: Call, pin: HeaderPin, mode: Numbering = "BCM") -> PinState:
        """Read the level of a pin as HIGH or LOW, by BCM number or place on the header."""
        level = self.pins.read(bcm(pin, mode), call.dispatch)
        return {
            "pin": pin,
            "mode": mode,
            "state": _WORDS[level],
            "factory": self.pins.rules.factory,
        }

    @action(
        effect="physical",
        impact=0.5,
        permission="local_worker",
        claims=BY_NUMBERING,
        undo=Undo(
            "set_gpio_pin",
            {
                "pin": "{{params.pin}}",
                "state": "{{result.previous}}",
                "mode": "{{result.mode}}",
            },
        ),
    )
    def set_gpio_pin(
        self, call: Call, pin: HeaderPin, state: Literal["HIGH", "LOW"], mode: Numbering = "BCM"
    ) -> PinStateSet:
        """Make a pin an output and set it HIGH or LOW, by BCM number or place on the header."""
        level = _WORDS.index(state)
        previous = self.pins.write(bcm(pin, mode), level, call.dispatch)
        return {
            "pin": pin,
            "mode": mode,
            "state": state,
            "factory": self.pins.rules.factory,
            "previous": _WORDS[previous],
        }

    @action(effect="physical", impact=0.5, permission="local_worker", claims="gpio:{pin}")
    def set_pin_mode(
        self, call: Call, pin: Pin, mode: Literal["input", "output"], pull: Pull | None = "none"
    ) -> PinMode:
        """Make a pin an input, with a pull resistor or without, or an output of its present level.

        An output has no pull: `pull` of the result is "none" then.
        """
        factory = self.pins.rules.factory
        with self.pins.lock:
            if mode == "input":
                use = self.pins.make_input(pin, pull or "none", call.dispatch)
                return {"pin": pin, "mode": mode, "pull": use.pull, "factory": factory}
            level = self.pins.read(pin, call.dispatch)
            self.pins.write(pin, level, call.dispatch)
        return {"pin": pin, "mode": mode, "pull": "none", "factory": factory}

    @action(effect="physical", impact=0.5, permission="local_worker", claims="gpio:{pins}")
    def cleanup(self, pins: Annotated[list[BcmPin] | None, Guard("pins")] = None) -> Cleaned:
        """Let go of pins, or of all: safe level where the policy has one, else input; PWM stops.

        Edges of them are not watched any more. All are claimed then: what another action holds is
        waited for.
        """
        with self.pins.lock:
            wanted = self.pins.used() if pins is None else sorted(set(pins))
            for pin in wanted:
                # all of them, before the first is let go of
                self.pins.check(pin)
            for pin in wanted:
                self.stop_watching(pin)
            cleaned = [pin for pin in wanted if self.pins.release(pin)]
        return {"pins": cleaned, "cleaned": bool(cleaned)}

    def stop_watching(self, pin: int) -> bool:
        """Forget the edges of a pin; the pin stays as it is. Whether they were watched."""
        return False
