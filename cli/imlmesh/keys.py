"""Single keys of a terminal, while a run is shown live.

The one rule: the terminal is left as it was found, and only a program in the foreground reads it.
Ctrl-C stays what it is. Deliberately absent: what a key means.
"""

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator


def has_keys() -> bool:
    """Whether stdin is a terminal whose keys are for this process."""
    if not sys.stdin.isatty():
        return False
    # Setting up the terminal of somebody else would stop a program in the background.
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:
        return False  # one that controls no process of this session


@contextlib.contextmanager
def pressed(take: Callable[[str], None]) -> Iterator[None]:
    """Call `take` with each key, on the running loop; only where there are keys (`has_keys`)."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            keys = os.read(terminal, 64).decode(errors="ignore")
        except OSError:
            keys = ""
        if not keys:
            loop.remove_reader(terminal)
        for key in keys:
            take(key)

    tty.setcbreak(terminal, termios.TCSADRAIN)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
