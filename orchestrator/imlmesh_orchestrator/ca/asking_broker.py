"""What the broker does now, found out by asking it: which certificate it shows, which CA it takes.

The one rule: nodes are told to rely on nothing that the broker was not seen to do. A broker that is
not there reads its files when it starts, so it is no hindrance. Deliberately absent: making it read.
"""

import contextlib
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from imlmesh_orchestrator.ca.authority import CONTROL
from imlmesh_orchestrator.ca.certificates import Issuer
from imlmesh_protocol import limits
from imlmesh_runtime.files import write_private
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.pairs import is_issued_by
from imlmesh_runtime.trust import new_tls_key, unverified_context

_POLL_S = 0.1
# in TLS 1.3 a server judges a certificate after the client's handshake: an alert comes at once
_ALERT_S = 0.5
_NAME = "probe"


class AskedBroker:
    """The broker with its listener for each role of `ca/authority`, as far as somebody knows them."""

    def __init__(self, listeners: Mapping[str, Address]) -> None:
        self._listeners = listeners

    def shows(self, ca: bytes) -> bool:
        """Whether its certificate is of `ca` (DER), by limits.BROKER_FOLLOWS_S."""

        def look() -> bool:
            with self._connected(unverified_context(), CONTROL) as way:
                return is_issued_by(way.getpeercert(binary_form=True) or b"", ca)

        return self._soon(look, CONTROL)

    def takes(self, issuer: Issuer, mesh: str, role: str) -> bool:
        """Whether clients of a role with certificates of `issuer` get in, by
        limits.BROKER_FOLLOWS_S."""
        key, request = new_tls_key(_NAME)
        uri = f"imlmesh://{mesh}/{role}/{_NAME}"
        issued = issuer.issue_client(request, _NAME, uri, limits.CERTIFICATE_LEAST_S * 20)
        context = unverified_context()
        with tempfile.TemporaryDirectory() as folder:
            pair = Path(folder) / "pair.pem"
            write_private(pair, issued.pem + key)
            context.load_cert_chain(pair)

        def look() -> bool:
            with self._connected(context, role) as way:
                way.settimeout(_ALERT_S)
                # silence: it waits for what an MQTT client says first
                with contextlib.suppress(TimeoutError):
                    return bool(way.recv(1))
                return True

        return self._soon(look, role)

    def _connected(self, context: ssl.SSLContext, role: str) -> ssl.SSLSocket:
        plain = socket.create_connection(self._listeners[role], limits.LINK_CONNECT_MS / 1_000)
        return context.wrap_socket(plain)

    def _soon(self, look: Callable[[], bool], role: str) -> bool:
        if role not in self._listeners:
            return True
        until_s = time.monotonic() + limits.BROKER_FOLLOWS_S
        while True:
            try:
                if look():
                    return True
            except ConnectionRefusedError:
                return True
            except OSError:
                pass  # it turned us away
            if time.monotonic() >= until_s:
                return False
            time.sleep(_POLL_S)
