"""Tells systemd how this process does; does nothing where no systemd asked.

The one rule: never fail because of it. Deliberately absent: everything but one datagram.
"""

import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


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
    """How often to send WATCHDOG: half of what systemd waits; None when it does not watch."""
    wait_us = os.environ.get("WATCHDOG_USEC", "")
    return int(wait_us) / 2_000_000 if wait_us.isdigit() else None
