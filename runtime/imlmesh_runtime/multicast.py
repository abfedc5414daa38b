"""The local networks of this computer, and whether mDNS can work on them.

The one rule: a network counts as open when a question of our own comes back to us by multicast; a
socket that could be opened proves nothing. IPv4 alone: where the other machines are cannot be told
from here. Deliberately absent: services; `discovery` has them.
"""

import asyncio
import contextlib
import ipaddress
import secrets
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from imlmesh_protocol import limits

GROUP, PORT = "224.0.0.251", 5353  # RFC 6762 section 3
_DOCUMENTATION = ("192.0.2.1", 9)  # RFC 5737; the way there is the default route


@dataclass(frozen=True, slots=True)
class Network:
    """One network that this computer is in: its own address there, as text, and the mask."""

    address: str
    mask: str
    multicast: bool

    def holds(self, address: str) -> bool:
        """Whether `address` is in this network, too."""
        network = ipaddress.ip_network(f"{self.address}/{self.mask}", strict=False)
        return ipaddress.ip_address(address) in network


def networks() -> tuple[Network, ...]:
    """Those that are up, loopback left out; the one of the default route stands first."""
    states = psutil.net_if_stats()
    found = []
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        if state is None or not state.isup:
            continue
        flags = state.flags.split(",")
        found += [
            Network(each.address, each.netmask or "255.255.255.255", "multicast" in flags)
            for each in addresses
            if each.family is socket.AF_INET and not is_loopback(each.address)
        ]
    usual = _usual_address()
    return tuple(sorted(found, key=lambda network: network.address != usual))


def is_loopback(address: str) -> bool:
    """Whether an address or a name means this very computer."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def nearest_first(addresses: Sequence[str], here: Sequence[Network]) -> list[str]:
    """Those in a network of ours before those that need a router, or are another's inner ones."""
    return sorted(addresses, key=lambda each: not any(network.holds(each) for network in here))


async def trouble(here: Sequence[Network]) -> str:
    """Why mDNS cannot work on any of these networks, in words; empty when it can on one."""
    able = [network.address for network in here if network.multicast]
    if not here:
        return "this computer is in no network"
    if not able:
        return "no network of this computer takes multicast"
    answers = await asyncio.gather(*map(_hears_itself, able), return_exceptions=True)
    if True in answers:
        return ""
    for answer in answers:
        if isinstance(answer, OSError):
            return f"UDP port {PORT} cannot be had: {answer.strerror}"
    return f"UDP port {PORT} is dropped on this computer ({', '.join(able)}), by its firewall"


class _Listener(asyncio.DatagramProtocol):
    """Waits for one datagram."""

    def __init__(self, wanted: bytes) -> None:
        self._wanted = wanted
        self.heard = asyncio.Event()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data == self._wanted:
            self.heard.set()


async def _hears_itself(address: str) -> bool:
    """Whether a question that leaves by the network of `address` is heard there."""
    question = _question()
    transport, listener = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Listener(question), sock=_listening(address)
    )
    try:
        async with asyncio.timeout(limits.DISCOVERY_ECHO_MS / 1000):
            while not listener.heard.is_set():
                _send(address, question)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(limits.DISCOVERY_ECHO_MS / 4000):
                        await listener.heard.wait()
    except TimeoutError:
        return False
    finally:
        transport.close()
    return True


def _listening(address: str) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        listening.setblocking(False)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((GROUP, PORT))
        member = socket.inet_aton(GROUP) + socket.inet_aton(address)
        listening.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    except OSError:
        listening.close()
        raise
    return listening


def _send(address: str, question: bytes) -> None:
    """From a port of its own, so that answers meant for others never come here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
        out = socket.inet_aton(address)
        # A firewall may say no at once; then nothing is heard.
        with contextlib.suppress(OSError):
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, out)
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            sending.sendto(question, (GROUP, PORT))


def _question() -> bytes:
    """A question about a name that nobody has (RFC 1035 section 4.1): PTR, IN."""
    labels = (secrets.token_hex(8), "imlmesh-echo", "local")
    name = b"".join(bytes([len(label)]) + label.encode() for label in labels)
    return struct.pack("!6H", 0, 0, 1, 0, 0, 0) + name + b"\0" + struct.pack("!2H", 12, 1)


def _usual_address() -> str:
    """Our address on the way out, or nothing without a default route; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(_DOCUMENTATION)
        return str(probe.getsockname()[0])
    return ""
