"""A folder that looks like the kernel's one-wire bus with one thermometer on it.

The one rule: what is written is what the kernel shows: nine bytes, their checksum, the value.
"""

import tempfile
from pathlib import Path

from imlmesh_drivers.iot.onewire import crc8
from imlmesh_drivers.iot.twins.world import World

SENSOR = "28-00000a11ce01"
#: alarm limits, configuration (12 bits), and three reserved bytes, as chips leave the factory
_REST = bytes.fromhex("4b467fff0c10")


class OneWireTwin:
    """`folder` holds the bus, until `close`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._kept = tempfile.TemporaryDirectory(prefix="imlmesh-onewire-")
        self.folder = Path(self._kept.name)
        (self.folder / SENSOR).mkdir()

    def measure(self) -> None:
        """Do what a chip does when it is read."""
        celsius = self._world.readings().temperature_c
        text = scratchpad_text(round(celsius * 16))
        (self.folder / SENSOR / "w1_slave").write_text(text, encoding="ascii")

    def close(self) -> None:
        self._kept.cleanup()


def scratchpad_text(sixteenths: int) -> str:
    """The file of a sensor that measured so many sixteenths of a degree."""
    data = sixteenths.to_bytes(2, "little", signed=True) + _REST
    checksum = crc8(data)
    words = " ".join(f"{byte:02x}" for byte in (*data, checksum))
    return f"{words} : crc={checksum:02x} YES\n{words} t={sixteenths * 1000 // 16}\n"
