"""The drivers: code that serves one IML module each, and the base that third parties build on.

The one rule: importing this package loads no driver and no hardware library.
"""

from imlmesh_drivers.base import (
    Argv,
    Call,
    CommandRule,
    Driver,
    Guard,
    Pin,
    PinRules,
    ReadPath,
    Site,
    WritePath,
    action,
)
from imlmesh_drivers.buses import BusRules, I2cRules
from imlmesh_protocol.manifest import Undo

__all__ = [
    "Argv",
    "BusRules",
    "Call",
    "CommandRule",
    "Driver",
    "Guard",
    "I2cRules",
    "Pin",
    "PinRules",
    "ReadPath",
    "Site",
    "Undo",
    "WritePath",
    "action",
]
