"""The drivers: code that serves one IML module each, and the base that third parties build on.

The one rule: importing this package loads no driver and no hardware library.
"""

from annotated_types import Interval

from imlmesh_drivers.base import (
    Argv,
    CommandRule,
    Driver,
    Guard,
    Pin,
    PinRules,
    Program,
    ReadPath,
    Site,
    WritePath,
    action,
)
from imlmesh_drivers.buses import BusRules, I2cRules
from imlmesh_drivers.call import Call
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.manifest import Undo

__all__ = [
    "Argv",
    "BusRules",
    "Call",
    "CommandRule",
    "Driver",
    "DriverError",
    "Guard",
    "I2cRules",
    "Interval",
    "Pin",
    "PinRules",
    "Program",
    "ReadPath",
    "Site",
    "Undo",
    "WritePath",
    "action",
]
