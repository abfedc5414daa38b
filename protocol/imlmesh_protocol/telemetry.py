"""What a reading may be: the name of its metric, its value, its unit.

The one rule: drivers, nodes and the orchestrator ask here, so that what one of them sends no other
refuses. Deliberately absent: how many readings and metrics there may be (limits.py), and storing.
"""

import re
from typing import Any

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.limits import METRIC_CHARS, TELEMETRY_VALUE, UNIT_CHARS

_METRIC = re.compile(r"[a-z0-9][a-z0-9_.-]*")
# begins with a letter or a sign of measure: a table program must not take a unit for a formula
_UNIT = re.compile(r"(?:[A-Za-z%°µμΩ][A-Za-z0-9%°µμΩ/^·²³]*)?")

#: metrics that the orchestrator makes of every heartbeat's health, with their units
HEALTH = {
    "cpu_percent": "%",
    "memory_percent": "%",
    "disk_percent": "%",
    "temperature_c": "°C",
    "load": "",
}
HEALTH_NAME = "health"
#: what a message is about that holds readings of several modules
MIXED = "readings"


def is_metric(name: str) -> bool:
    """Whether a metric may have this name."""
    return len(name) <= METRIC_CHARS and _METRIC.fullmatch(name) is not None


def is_unit(unit: str) -> bool:
    """Whether a unit may be written like this; "" is none."""
    return len(unit) <= UNIT_CHARS and _UNIT.fullmatch(unit) is not None


def is_value(value: Any) -> bool:
    """Whether this is a number that can be summed up with others and stays finite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # of NaN no comparison is true
    return number and abs(value) <= TELEMETRY_VALUE


def check_reading(name: str, value: Any, unit: str) -> None:
    """Raise `telemetry.invalid` when one of the three is not what it must be."""
    if not isinstance(name, str) or not is_metric(name):
        text = f"metric {str(name)[:80]!r} must be at most {METRIC_CHARS} of a-z, 0-9, _, . and -"
        raise ProtocolError("telemetry.invalid", text)
    if not is_value(value):
        raise ProtocolError("telemetry.invalid", f"{name}: {str(value)[:80]!r} is no finite number")
    if not isinstance(unit, str) or not is_unit(unit):
        raise ProtocolError("telemetry.invalid", f"{name}: {str(unit)[:80]!r} is no unit")
