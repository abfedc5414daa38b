"""Whether a reported failure is tried again, and when."""

import builtins

from reading import Reading, retry_of
from story import Unit

#: the builtin error behind each code that the cases report
BUILTIN = {
    "driver.failed": RuntimeError,
    "driver.busy": RuntimeError,
    "driver.timeout": TimeoutError,
    "driver.not_found": FileNotFoundError,
    "driver.unavailable": OSError,
    "link.down": ConnectionError,
    "node.interrupted": ValueError,
}
HOUR_MS = 3_600_000


def retry_delay_ms(read: Reading, unit: Unit, code: str, dice: float) -> int | None:
    """Milliseconds until the next try after `unit.reports` reported failures; None for no more."""
    action = unit.action
    if action.get("on_error") != "retry":
        return None
    # doing it again may do harm: only who writes a retry has thought of that
    if not read.repeatable(action) and not action.get("retry"):
        return None
    retry = retry_of(action)
    if unit.reports >= retry["max_attempts"]:
        return None
    named = [getattr(builtins, name) for name in retry["retry_on"]]
    if named and not issubclass(BUILTIN[code], tuple(named)):
        return None
    seconds = retry["delay_seconds"] * retry["backoff_factor"] ** (unit.reports - 1)
    return min(int(1_000 * seconds * (0.75 + 0.5 * dice)), HOUR_MS)
