"""The one event that both cores share: time has passed.

The one rule: an engine sends it when the deadline that its core named has come, and never earlier.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Tick:
    """`at_ms` is the time now; nothing caused it but time."""

    at_ms: int
    cause: str = "time"
