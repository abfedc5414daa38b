"""The broker as it listens: TLS 1.3 with certificates on both sides.

The one rule: nobody without a certificate of the mesh's CA reaches a line of the rest. Deliberately
absent: starting and restarting; `child` does that from outside.
"""

import asyncio
import logging
import ssl
from functools import partial
from pathlib import Path

from imlmesh_broker.embedded.connection import Connection
from imlmesh_broker.embedded.hub import Hub
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, TrustError

logger = logging.getLogger(__name__)


class _Handshake(ssl.SSLObject):
    """asyncio drops the alert that tells a client why it is refused; a wait lets it leave first."""

    _failed = False

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as exc:
            if self._failed:
                raise
            self._failed = True
            logger.warning("a stranger: %s", exc.reason, extra={"code": "link.refused"})
            raise ssl.SSLWantReadError from exc


async def serve(mesh: str, context: ssl.SSLContext, address: str, port: int) -> asyncio.Server:
    """Listen for clients of `mesh`, on every address when it is empty.

    LinkError `broker.failed` when the port cannot be had.
    """
    try:
        return await asyncio.get_running_loop().create_server(
            partial(Connection, Hub(mesh)),
            address or None,
            port,
            ssl=context,
            backlog=limits.BROKER_BACKLOG,
            ssl_handshake_timeout=limits.LINK_CONNECT_MS / 1000,
            ssl_shutdown_timeout=limits.LINK_CLOSE_MS / 1000,
        )
    except OSError as exc:
        raise LinkError("broker.failed", f"{address}:{port}: {exc.strerror}") from exc


def tls_context(folder: Path, ca_pem: Path) -> ssl.SSLContext:
    """From `folder`/broker.pem and broker.key; TrustError `trust.file` when they cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sslobject_class = _Handshake
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    # Nobody resumes: each connection proves its certificate, and tickets cost every handshake.
    context.num_tickets = 0
    try:
        context.load_verify_locations(ca_pem)
        context.load_cert_chain(folder / "broker.pem", folder / "broker.key")
    except OSError as exc:
        raise TrustError("trust.file", f"{ca_pem} or keys in {folder}: {exc}") from exc
    return context
