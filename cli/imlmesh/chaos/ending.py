"""How chaos is ended from outside: by SIGTERM or Ctrl-C, once.

The one rule: what cleans up is not disturbed by a second one. Deliberately absent: what is cleaned up.
"""

import asyncio
import signal
from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_at_a_signal(cancel: Callable[[], object]) -> None:
    """The first of them is answered with `cancel`, in the running loop; no later one is heard."""

    def end() -> None:
        hear_no_more()
        cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, end)


def hear_no_more() -> None:
    """From now on they end nothing here. Not SIG_IGN: programs that are started would inherit it."""
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, lambda: None)
