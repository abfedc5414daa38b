"""Which buses of the machine a policy opens, each to real hardware or to its shipped twin.

The one rule: what is not listed does not exist, and native or mock is said for every bus. Pins have
rules of their own (`base.PinRules`). Deliberately absent: opening anything.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Factory = Literal["native", "mock"]
FACTORIES: tuple[Factory, ...] = ("native", "mock")


@dataclass(frozen=True, slots=True)
class I2cRules:
    """One I2C bus: /dev/i2c-N or its twin, and the addresses (0 to 127) that may be spoken to."""

    factory: Factory
    allow: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BusRules:
    """All buses of a node."""

    #: by bus number
    i2c: Mapping[int, I2cRules] = field(default_factory=dict)
    #: serial ports by path, such as /dev/ttyS0
    serial: Mapping[str, Factory] = field(default_factory=dict)
    #: the one-wire bus of the kernel, if it may be read
    onewire: Factory | None = None
    #: the user's own MQTT brokers, as "address:port"
    brokers: tuple[str, ...] = ()
    #: twins follow the model of a greenhouse instead of standing still
    simulate: bool = False

    def to_wire(self) -> dict[str, Any]:
        """Plain values; bus numbers become text keys."""
        return {**asdict(self), "i2c": {str(n): asdict(rules) for n, rules in self.i2c.items()}}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> "BusRules":
        """The twin of `to_wire`."""
        return cls(
            i2c={
                int(number): I2cRules(rules["factory"], tuple(rules["allow"]))
                for number, rules in wire["i2c"].items()
            },
            serial=dict(wire["serial"]),
            onewire=wire["onewire"],
            brokers=tuple(wire["brokers"]),
            simulate=wire["simulate"],
        )
