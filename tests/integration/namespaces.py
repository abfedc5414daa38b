"""A local network in this machine: computers as network namespaces, joined by a bridge.

The one rule: what was made is gone at the end, whatever happened; the network of this machine itself
is never touched. Whoever may not make namespaces is told why.
"""

import os
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass


def why_not() -> str:
    """Why this machine cannot make such a network; empty when it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    for program, package in (("ip", "iproute2"), ("nft", "nftables")):
        if shutil.which(program, path=path) is None:
            return f"{program} is not installed (apt-get install {package})"
    lan = Lan()
    try:
        lan.computer("probe").drop_mdns("input")
    except subprocess.CalledProcessError as exc:
        return f"network namespaces are not allowed here: {exc.stderr.strip()}"
    finally:
        lan.close()
    return ""


@dataclass(frozen=True)
class Computer:
    """One namespace with loopback and, unless it is lonely, an address on the bridge."""

    namespace: str
    address: str

    @property
    def within(self) -> list[str]:
        """What stands before a command that shall run there."""
        return [_program("ip"), "netns", "exec", self.namespace]

    def drop_mdns(self, *hooks: str) -> None:
        """Its firewall drops UDP 5353 on the way in (input), out (output), or both."""
        rules = [
            f"add chain inet test {hook} {{ type filter hook {hook} priority 0; }}\n"
            f"add rule inet test {hook} udp dport 5353 drop\n"
            for hook in hooks
        ]
        _run(*self.within, _program("nft"), "".join(["add table inet test\n", *rules]))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """`command` there, to its end."""
        return subprocess.run(
            [*self.within, *command], capture_output=True, text=True, check=False, timeout=20
        )


class Lan:
    """A bridge in a namespace of its own, and the computers at it."""

    def __init__(self) -> None:
        self._name = f"iml{secrets.token_hex(3)}"
        self._count = 0
        self._made: list[str] = []

    def computer(self, name: str, *, lonely: bool = False) -> Computer:
        """Another computer; `lonely` has loopback alone."""
        if not self._made:
            self._namespace(self._name)
            self._ip(self._name, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
            self._ip(self._name, "link", "set", "br0", "up")
        self._count += 1
        namespace, address = f"{self._name}-{name}", f"10.77.0.{self._count}"
        self._namespace(namespace)
        if not lonely:
            port = f"v{self._count}"
            peer = ("peer", "name", port, "netns", self._name)
            self._ip(namespace, "link", "add", "eth0", "type", "veth", *peer)
            self._ip(self._name, "link", "set", port, "master", "br0", "up")
            self._ip(namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            self._ip(namespace, "link", "set", "eth0", "up")
        return Computer(namespace, address)

    def close(self) -> None:
        """End what still runs in the namespaces, and remove them."""
        for namespace in reversed(self._made):
            pids = _run(_program("ip"), "netns", "pids", namespace, check=False).split()
            for pid in map(int, pids):
                os.kill(pid, signal.SIGKILL)
            _run(_program("ip"), "netns", "del", namespace, check=False)
        self._made.clear()

    def _namespace(self, name: str) -> None:
        _run(_program("ip"), "netns", "add", name)
        self._made.append(name)
        self._ip(name, "link", "set", "lo", "up")

    def _ip(self, namespace: str, *words: str) -> None:
        _run(_program("ip"), "-n", namespace, *words)


def _program(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or name


def _run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=check, timeout=20)
    return done.stdout
