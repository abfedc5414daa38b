"""`node run --simulate`: a node whose pins and buses are those of the simulated greenhouse.

The one rule: nothing of the machine is touched, and nothing becomes allowed that moves anything: profile,
modules, files, commands and brokers stay as the policy says, all buses become twins. Beside what the
policy lists, the greenhouse's own wiring is there.
"""

from dataclasses import replace

from imlmesh_drivers.base import PinRules
from imlmesh_drivers.buses import BusRules, I2cRules
from imlmesh_node.config import Policy

#: probes, valve, a DHT22, the four pins of a converter (docs/iot.md draws it)
_PINS = (4, 5, 17, 22, 8, 9, 10, 11)
_SAFE = {17: 0}
_I2C_BUS, _I2C_ADDRESSES = 1, (0x48, 0x76)
_SERIAL = "/dev/ttyS0"


def simulated(policy: Policy) -> Policy:
    """The same policy over the greenhouse."""
    site = policy.site
    pins, buses = site.pins or PinRules("mock"), site.buses
    i2c = {bus: I2cRules("mock", rules.allow) for bus, rules in buses.i2c.items()}
    wired = i2c.get(_I2C_BUS, I2cRules("mock")).allow
    i2c[_I2C_BUS] = I2cRules("mock", tuple(sorted({*wired, *_I2C_ADDRESSES})))
    return replace(
        policy,
        site=replace(
            site,
            pins=PinRules("mock", tuple(sorted({*pins.allow, *_PINS})), {**_SAFE, **pins.safe}),
            buses=BusRules(
                i2c=i2c,
                serial=dict.fromkeys((*buses.serial, _SERIAL), "mock"),
                onewire="mock",
                brokers=buses.brokers,
                simulate=True,
            ),
        ),
    )
