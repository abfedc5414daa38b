"""Tells systemd how this process does; does nothing where no systemd asked.

The one rule: never fail because of it. Deliberately absent: everything but one datagram, and when
the watchdog is fed; `process` knows that.
"""

import os
import re
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"
_NUMBER = re.compile(r"[0-9]{1,18}")


def notify(state: str) -> bool:
    """Send `state` to $NOTIFY_SOCKET (a leading @ is an abstract name); False when not sent."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), address)
        except OSError:
            return False
    return True


def watchdog_s() -> float | None:
    """How often to send WATCHDOG: half of what systemd waits; None when it does not watch us."""
    wait_us = os.environ.get("WATCHDOG_USEC", "")
    meant = os.environ.get("WATCHDOG_PID", "")
    if not _NUMBER.fullmatch(wait_us) or int(wait_us) == 0 or meant not in ("", str(os.getpid())):
        return None
    return int(wait_us) / 2_000_000


def is_service() -> bool:
    """Whether systemd started this process, or a parent of it, and no person watches.

    A desktop's terminal is a unit of systemd too and hands its INVOCATION_ID on.
    """
    return "INVOCATION_ID" in os.environ and not os.isatty(0)
