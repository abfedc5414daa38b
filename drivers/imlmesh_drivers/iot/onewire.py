"""DS18B20 sensors as files of the kernel's one-wire bus, or of a folder of the same shape.

The one rule: a temperature counts when the checksum of its nine bytes is right and the value is neither
out of range nor what a chip says that was not ready. Deliberately absent: the wire; the kernel has it.
"""

from pathlib import Path

from imlmesh_protocol.errors import DriverError

#: where Linux shows the devices of the bus (w1-gpio, w1-therm)
SYSTEM = Path("/sys/bus/w1/devices")
#: the data sheet's range, degrees Celsius
LOW_C, HIGH_C = -55.0, 125.0
#: sixteenths of a degree that a chip holds before its first measurement: 85 degrees exactly
_POWER_ON = 0x0550
_BYTES = 9


def crc8(data: bytes) -> int:
    """The checksum of one-wire devices: x^8 + x^5 + x^4 + 1, the lowest bit first."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x8C if value & 1 else 0)
    return value


def sensors(folder: Path) -> list[str]:
    """The ids of the thermometers on the bus, sorted; `driver.unavailable` when there is no bus."""
    if not folder.is_dir():
        text = f"sensor_type: no one-wire bus: {folder} is missing (dtoverlay=w1-gpio)"
        raise DriverError("driver.unavailable", text)
    return sorted(path.name for path in folder.glob("28-*"))


def read_celsius(folder: Path, sensor: str) -> float:
    """The temperature of one sensor; `driver.unavailable`, or `driver.reading` for nonsense."""
    try:
        text = (folder / sensor / "w1_slave").read_text(encoding="ascii", errors="replace")
    except OSError as exc:
        why = f"sensor_type: {sensor} does not answer: {exc.strerror}"
        raise DriverError("driver.unavailable", why) from exc
    return _parse(sensor, text)


def _parse(sensor: str, text: str) -> float:
    """The file's first nine numbers are the chip's scratchpad, its ninth the checksum."""
    try:
        scratchpad = bytes(int(word, 16) for word in text.split()[:_BYTES])
    except ValueError:
        scratchpad = b""
    # nine zeros have a right checksum, and come from a line that is held low
    if len(scratchpad) < _BYTES or not any(scratchpad) or crc8(scratchpad):
        raise DriverError("driver.reading", f"sensor_type: the checksum of {sensor} is wrong")
    raw = int.from_bytes(scratchpad[:2], "little", signed=True)
    if raw == _POWER_ON:
        raise DriverError("driver.reading", f"sensor_type: {sensor} was not ready (85 degrees)")
    celsius = raw / 16
    if not LOW_C <= celsius <= HIGH_C:
        text = f"sensor_type: {sensor} says {celsius} degrees; it measures {LOW_C} to {HIGH_C}"
        raise DriverError("driver.reading", text)
    return celsius
