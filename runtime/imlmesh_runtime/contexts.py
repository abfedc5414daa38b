"""TLS as our clients use it: 1.3 alone, the strictest checks, one server name whatever was dialled.

The one rule: whom to believe comes from signed trust, never from the computer's own store.
Deliberately absent: servers, and files other than those of our own certificate.
"""

import ssl
from collections.abc import Iterable
from pathlib import Path

from imlmesh_protocol.errors import TrustError


class NamedContext(ssl.SSLContext):
    """A client context that always asks for one server name, whatever address was dialled."""

    server_name: str

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name, session)


def client_context(cas: Iterable[bytes], cert: Path, key: Path, server_name: str) -> ssl.SSLContext:
    """TLS 1.3 with our certificate, to a server that one of `cas` (DER) calls `server_name`.

    `cert` and `key` are PEM files; TrustError `trust.file` when something cannot be used.
    """
    context = server_check(cas, server_name)
    try:
        context.load_cert_chain(cert, key)
    except OSError as exc:
        raise TrustError("trust.file", f"{cert} or {key}: {exc}") from exc
    return context


def server_check(cas: Iterable[bytes], server_name: str) -> ssl.SSLContext:
    """As `client_context`, without a certificate of our own."""
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Python 3.13 asks for this by default; asking everywhere keeps our certificates honest.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        for der in cas:
            # as PEM: for DER, ssl takes any older error of this thread, such as the alert of a
            # connection that broke meanwhile, for one of its own
            context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(der))
    except (OSError, ValueError) as exc:
        raise TrustError("trust.file", f"not the certificate of a CA: {exc}") from exc
    return context


def unverified_context() -> ssl.SSLContext:
    """TLS 1.3 to whoever answers: for what is public, and judged by other means than the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
