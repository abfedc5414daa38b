"""A real network with a cable that can be pulled: two network namespaces and a virtual wire between them.

The one rule: the network of this machine itself is not touched; the broker's end is a socket that was
opened in a namespace and is served from here. Deliberately absent: what is pulled when.
"""

import asyncio
import contextlib
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

_HERE, _THERE = "10.78.0.1", "10.78.0.2"
_WIDE_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_CLONE_NEWNET = 0x40000000
_BACKLOG = 64
_libc = ctypes.CDLL(None, use_errno=True)


class Cable:
    """A wire from `address`, where `listener` is open, to the namespace in which `within` runs a command."""

    def __init__(self) -> None:
        name = f"imlc{secrets.token_hex(3)}"
        self.address = _HERE
        self._here, self._there = f"{name}-a", f"{name}-b"
        self.within = (_ip(), "netns", "exec", self._there)

    def lay(self) -> None:
        """Make it; CalledProcessError or OSError where that is not allowed."""
        for namespace in (self._here, self._there):
            _run("netns", "add", namespace)
        peer = ("peer", "name", "eth0", "netns", self._there)
        _run("-n", self._here, "link", "add", "eth0", "type", "veth", *peer)
        for namespace, address in ((self._here, _HERE), (self._there, _THERE)):
            _run("-n", namespace, "address", "add", f"{address}/24", "dev", "eth0")
            _run("-n", namespace, "link", "set", "lo", "up")
            _run("-n", namespace, "link", "set", "eth0", "up")

    async def listener(self) -> socket.socket:
        """A listening socket at its near end."""
        return await asyncio.to_thread(self._listen)

    def pull(self) -> None:
        _run("-n", self._here, "link", "set", "eth0", "down")

    def plug_in(self) -> None:
        _run("-n", self._here, "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Both namespaces go, and the wire with them."""
        for namespace in (self._here, self._there):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run("netns", "delete", namespace)

    def _listen(self) -> socket.socket:
        # the namespace is this thread's alone, as long as it is in it
        with _entered(Path("/run/netns") / self._here):
            return socket.create_server((_HERE, 0), backlog=_BACKLOG)


@contextlib.contextmanager
def laid_cable() -> Iterator[Cable | str]:
    """A cable; or why there is none here."""
    if shutil.which("ip", path=_WIDE_PATH) is None:
        yield "ip is not installed (apt-get install iproute2)"
        return
    cable = Cable()
    try:
        try:
            cable.lay()
        except subprocess.CalledProcessError as exc:
            yield f"network namespaces are not allowed: {exc.stderr.strip()}"
            return
        yield cable
    finally:
        cable.remove()


@contextlib.contextmanager
def _entered(namespace: Path) -> Iterator[None]:
    with namespace.open() as there, Path("/proc/thread-self/ns/net").open() as own:
        _set(there.fileno())
        try:
            yield
        finally:
            _set(own.fileno())


def _set(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip() -> str:
    return shutil.which("ip", path=_WIDE_PATH) or "ip"


def _run(*words: str) -> None:
    subprocess.run([_ip(), *words], check=True, capture_output=True, text=True)
