"""The drivers: code that serves one IML module each, and the base that third parties build on.

The one rule: importing this package loads no driver and no hardware library.
"""

from annotated_types import Interval

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
from imlmesh_protocol.errors import DriverError
from imlmesh_protocol.manifest import Undo

__all__ = [
    "Argv",
    "Call",
    "CommandRule",
    "Driver",
    "DriverError",
    "Guard",
    "Interval",
    "Pin",
    "PinRules",
    "ReadPath",
    "Site",
    "Undo",
    "WritePath",
    "action",
]
