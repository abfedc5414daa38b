"""Lengths of time and points in time as people type them: `90`, `5m`, `1h30m`; `14:05`, RFC 3339.

The one rule: a number without a unit means seconds. Deliberately absent: printing them, which
`render.duration` does.
"""

import re
from datetime import datetime, timedelta
from typing import Annotated

import typer

from imlmesh_protocol.errors import InputError

Timeout = Annotated[
    str | None,
    typer.Option(
        "--timeout", metavar="TIME", help="Stop waiting after 90s, 5m, 1h; the run goes on."
    ),
]

_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")


def seconds_of(text: str | None) -> float | None:
    """`1h30m` as 5400.0, None for None; InputError `usage`."""
    if text is None:
        return None
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InputError("usage", f"{text!r} is not a time", hint="for example 90s, 5m or 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def at_ms_of(text: str, now_ms: int) -> int:
    """What `text` means before `now_ms`: a length of time ago, a time of this day, or RFC 3339.

    InputError `usage`, also for what lies before 1970.
    """
    if not {":", "-"} & set(text):
        ago_ms = (seconds_of(text) or 0.0) * 1_000
        if ago_ms > now_ms:
            raise _too_early(text)
        return now_ms - round(ago_ms)
    now = datetime.fromtimestamp(now_ms / 1_000).astimezone()
    try:
        found = datetime.fromisoformat(text if "-" in text else f"{now.date()}T{text}").astimezone()
    except (ValueError, OverflowError) as exc:
        hint = "for example 5m (ago), 14:05 or 2026-03-01T14:05:00"
        raise InputError("usage", f"{text!r} is not a time", hint=hint) from exc
    if found > now and "-" not in text:
        found -= timedelta(days=1)
    if found.timestamp() < 0:
        raise _too_early(text)
    return round(found.timestamp() * 1_000)


def _too_early(text: str) -> InputError:
    return InputError("usage", f"{text!r} reaches back before 1970", hint="for example 5m or 3d")
