"""What travels in a world: a message without its bytes, signature and keys; those have own tests.

The one rule: age and order are judged as the real envelope does it, by mesh time.
"""

from dataclasses import dataclass
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.wire.topics import Kind


@dataclass(frozen=True, slots=True)
class Letter:
    """`term` is the sender's epoch or boot; `iat` 0 is a will's, which has no age."""

    kind: Kind
    term: int
    session: int
    seq: int
    iat: int
    fields: dict[str, Any]


def is_late(letter: Letter, now_ms: int) -> bool:
    """Too old, or from ahead of this clock."""
    if not letter.iat:
        return False
    return letter.iat + limits.MESSAGE_EXPIRY_MS < now_ms or is_ahead(letter, now_ms)


def is_ahead(letter: Letter, now_ms: int) -> bool:
    return letter.iat > now_ms + limits.CLOCK_TOLERANCE_MS
