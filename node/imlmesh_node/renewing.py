"""A process of a moment: `python -m imlmesh_node.renewing FOLDER ENDPOINT...` brings trust and the
certificate of a node up to date at the join endpoint of its mesh.

The one rule: trust comes first, believed because the root key signed it, whoever serves it; only a
server that trust vouches for is asked for a certificate. Deliberately absent: when. The agent starts
this as a child, since the libraries for certificates and HTTP would stay with it for ever.
"""

import argparse
import http.client
import logging
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from imlmesh_node.config import load_config
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CODES, LinkError, MeshError, ProtocolError, TrustError
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.renewal import RenewalAsked, renewal_input
from imlmesh_runtime.link.address import address_of
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.link.endings import is_valid_at, without_clock
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.pairs import write_pair
from imlmesh_runtime.process import logged
from imlmesh_runtime.trust import (
    HeldTrust,
    join_name,
    load_signer,
    new_tls_key,
    server_check,
)

log = logging.getLogger(__name__)

#: what a body of the endpoint is
CONTENT_TYPE = "application/msgpack"


class Endpoint:
    """One join endpoint; `at_ms` is mesh time, None when nobody told it yet."""

    def __init__(self, address: Address, held: HeldTrust, mesh: str, at_ms: int | None) -> None:
        self._address = address
        self._held = held
        self._mesh = mesh
        self._at_ms = at_ms

    def take_trust(self) -> bool:
        """Take what it has, if that is newer; TrustError `trust.rollback`, `signature.invalid`."""
        anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anybody.minimum_version = ssl.TLSVersion.TLSv1_3
        anybody.check_hostname = False
        anybody.verify_mode = ssl.CERT_NONE
        with self._open(anybody) as way:
            document = _answer(way, "GET", "/v1/trust")["trust"]
        if type(document) is not bytes:
            raise ProtocolError("message.invalid", "the join endpoint told no trust")
        return self._held.take(document)

    def renew(self, folder: Path, node: str) -> None:
        """Exchange the TLS key and certificate of `folder` for new ones."""
        signer = load_signer(folder / "keys" / "identity.key")
        key, request = new_tls_key(node)
        ours = without_clock(server_check(self._held.trust.control_cas, join_name(self._mesh)))
        with self._open(ours) as way:
            nonce = _answer(way, "GET", "/v1/nonce")["nonce"]
            signed = renewal_input(self._mesh, node, request, nonce)
            asked = RenewalAsked(node, request, nonce, signer.sign(signed))
            certificate = _answer(way, "POST", "/v1/renew", asked.body())["certificate"]
        _check(certificate, key, node, self._held.trust.node_cas)
        write_pair(folder / "keys" / "node.pem", key, certificate)

    def _open(self, context: ssl.SSLContext) -> "_Way":
        return _Way(self._address, context, self._at_ms)


class _Way:
    """A connection to an endpoint, closed at the end."""

    def __init__(self, address: Address, context: ssl.SSLContext, at_ms: int | None) -> None:
        seconds = limits.LINK_CONNECT_MS / 1_000
        self.to = http.client.HTTPSConnection(*address, timeout=seconds, context=context)
        self._name = f"{address[0]}:{address[1]}"
        self._at_ms = at_ms
        self._judged = context.verify_mode is ssl.CERT_REQUIRED

    def __enter__(self) -> http.client.HTTPSConnection:
        try:
            self.to.connect()
        except ssl.SSLCertVerificationError as exc:
            raise LinkError("link.tls", f"{self._name}: {exc.verify_message}") from exc
        except OSError as exc:
            raise LinkError("link.down", f"{self._name}: {exc}") from exc
        if self._judged and self._at_ms is not None:
            self._judge(self._at_ms)
        return self.to

    def _judge(self, at_ms: int) -> None:
        if not is_valid_at(self.to.sock.getpeercert() or {}, at_ms):
            raise LinkError("link.tls", f"{self._name}: its certificate is out of date")

    def __exit__(self, *_: object) -> None:
        self.to.close()


def _answer(
    way: http.client.HTTPSConnection, method: str, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The body of an answer; the coded error that it is, else LinkError `link.down`."""
    data = None if body is None else pack(dict(body))
    try:
        way.request(method, path, data, {"Content-Type": CONTENT_TYPE} if data else {})
        answer = way.getresponse()
        told = answer.read(limits.RENEWAL_ANSWER_BYTES)
    except (OSError, http.client.HTTPException) as exc:
        raise LinkError("link.down", f"{path}: {exc!r}") from exc
    try:
        found = unpack(told)
    except ProtocolError:
        found = None
    if type(found) is not dict:
        raise LinkError("link.down", f"{path}: status {answer.status} and no answer of ours")
    if answer.status >= 400:
        code, text = str(found.get("code")), str(found.get("message"))[: limits.FAULT_CHARS]
        raise TrustError(code if code in CODES else "link.refused", f"{path}: {text}")
    return found


def _check(certificate: Any, key: bytes, node: str, cas: Sequence[bytes]) -> None:
    """TrustError unless the certificate is ours, for our key, by a CA that trust names."""
    try:
        made = x509.load_pem_x509_certificate(certificate)
        private = load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as exc:
        raise TrustError("trust.file", f"the join endpoint told no certificate: {exc}") from exc
    (name,) = made.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME) or (None,)
    if made.public_key() != private.public_key() or name is None or name.value != node:
        raise TrustError("trust.file", "the join endpoint told the certificate of another")
    if not any(_vouches(x509.load_der_x509_certificate(ca), made) for ca in cas):
        raise TrustError("trust.file", "a certificate of a CA that trust does not name")


def _vouches(ca: x509.Certificate, made: x509.Certificate) -> bool:
    try:
        made.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def bring_up_to_date(
    folder: Path, endpoints: Sequence[Address], *, certificate: bool, at_ms: int | None
) -> None:
    """Take newer trust, and with `certificate` a new pair, from the first endpoint that gives them.

    Raises what the last one failed with.
    """
    config = load_config(folder)
    held = HeldTrust(folder / "keys", config.mesh)
    failure: MeshError = LinkError("link.down", "no join endpoint is known")
    for address in endpoints:
        endpoint = Endpoint(address, held, config.mesh, at_ms)
        try:
            if endpoint.take_trust():
                log.info("trust is of version %d now", held.trust.version)
            if certificate:
                endpoint.renew(folder, config.id)
                log.info("the certificate was renewed")
        except MeshError as exc:
            failure = exc
        else:
            return
    raise failure


def main(argv: Sequence[str]) -> int:
    """The command line; 0, or what `bring_up_to_date` raises."""
    parser = argparse.ArgumentParser(prog="imlmesh_node.renewing", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("endpoints", nargs="+", metavar="ADDRESS:PORT")
    parser.add_argument("--certificate", action="store_true")
    parser.add_argument("--at-ms", type=int, help="mesh time, when it is known")
    given = parser.parse_args(argv)
    set_up_logs()
    bring_up_to_date(
        given.folder,
        [address_of(each) for each in given.endpoints],
        certificate=given.certificate,
        at_ms=given.at_ms,
    )
    return 0


if __name__ == "__main__":
    sys.exit(logged(lambda: main(sys.argv[1:])))
