"""What a policy's regular expressions say of words that a plan brings, for a bounded time.

The one rule: an expression that tries one way after the other, such as `([a-z]+ ?)+`, must not hold
the node up, whose loop stands still meanwhile. It is counted in processor time, so that a machine
that is busy elsewhere refuses nothing. Deliberately absent: threads, in which Python has no such
alarm; there, as in `LocalClient`, the words of a plan are those of the same program.
"""

import signal
import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from imlmesh_protocol.limits import ARGUMENTS_MATCH_MS

Answer = TypeVar("Answer")


def within_bounds(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns; TimeoutError when it takes longer than ARGUMENTS_MATCH_MS."""
    if threading.current_thread() is not threading.main_thread():
        return ask()
    earlier = signal.signal(signal.SIGVTALRM, _too_long)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, ARGUMENTS_MATCH_MS / 1000)
        try:
            return ask()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    finally:
        signal.signal(signal.SIGVTALRM, earlier)


def _too_long(*_: Any) -> NoReturn:
    raise TimeoutError(f"more than {ARGUMENTS_MATCH_MS} ms")
