"""A TCP connection to an address, before anything is said on it.

The one rule: a machine that is not there is given up soon, whatever patience one that is there deserves.
Deliberately absent: TLS, and what a connection is for.
"""

import asyncio
import contextlib
import socket

from imlmesh_protocol import limits


async def dialled(host: str, port: int) -> socket.socket:
    """A connected socket; OSError, TimeoutError after limits.LINK_CONNECT_MS."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(limits.LINK_CONNECT_MS / 1_000):
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        error: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, address in found:
            with contextlib.ExitStack() as unless_connected:
                made = unless_connected.enter_context(socket.socket(family, kind, protocol))
                made.setblocking(False)
                try:
                    await loop.sock_connect(made, address)
                except OSError as exc:
                    error = exc
                    continue
                unless_connected.pop_all()
                return made
        raise error
