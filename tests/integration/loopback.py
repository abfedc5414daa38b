"""Ports of loopback that tests use side by side, also with the tests of another checkout."""

import contextlib
import socket
from collections.abc import Iterator

ADDRESS = "127.0.0.1"


def own_port() -> int:
    """One that nobody else asks for."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """One at which nobody listens, nor can begin to."""
    with socket.socket() as held:
        held.bind((ADDRESS, 0))
        yield int(held.getsockname()[1])


@contextlib.contextmanager
def taken(port: int) -> Iterator[None]:
    """Somebody listens at a port: we, or whoever was faster."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            held.enter_context(socket.create_server((ADDRESS, port)))
        yield
