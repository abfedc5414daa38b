"""A process of a moment: `python -m imlmesh_node.renewing FOLDER ENDPOINT...` brings trust and the
certificate of a node up to date at the join endpoint of its mesh.

The one rule: trust comes first, believed because the root key signed it, whoever serves it; only a
server that trust vouches for is asked for a certificate. Deliberately absent: when. The agent starts
this as a child, since the libraries for certificates and HTTP would stay with it for ever.
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from imlmesh_node.config import load_config
from imlmesh_node.exchange import exchange
from imlmesh_protocol.errors import LinkError, MeshError, ProtocolError, TrustError
from imlmesh_protocol.wire.renewal import RenewalAsked, renewal_input
from imlmesh_runtime.link.address import address_of
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.link.endings import without_clock
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.pairs import validity_of, write_pair
from imlmesh_runtime.process import logged
from imlmesh_runtime.trust import (
    HeldTrust,
    join_name,
    load_signer,
    new_tls_key,
    server_check,
    unverified_context,
)

log = logging.getLogger(__name__)


class Endpoint:
    """One join endpoint; `at_ms` is mesh time, None when nobody told it yet."""

    def __init__(self, address: Address, held: HeldTrust, mesh: str, at_ms: int | None) -> None:
        self._address = address
        self._held = held
        self._mesh = mesh
        self._at_ms = at_ms

    async def take_trust(self) -> bool:
        """Take what it has, if that is newer; TrustError `trust.rollback`, `signature.invalid`."""
        told = await exchange(self._address, unverified_context(), "/v1/trust")
        return self._held.take(_blob(told, "trust"))

    async def renew(self, folder: Path, node: str) -> None:
        """Exchange the TLS key and certificate of `folder` for new ones."""
        signer = load_signer(folder / "keys" / "identity.key")
        key, request = new_tls_key(node)
        cas = self._held.trust.control_cas
        context = without_clock(server_check(cas, join_name(self._mesh)))
        nonce = _blob(await exchange(self._address, context, "/v1/nonce"), "nonce")

        def asked(shown: bytes) -> dict[str, Any]:
            self._judge(shown)
            proof = signer.sign(renewal_input(self._mesh, node, request, nonce))
            return RenewalAsked(node, request, nonce, proof).body()

        told = await exchange(self._address, context, "/v1/renew", asked)
        certificate = _blob(told, "certificate")
        _check(certificate, key, node, self._held.trust.node_cas)
        write_pair(folder / "keys" / "node.pem", key, certificate)

    def _judge(self, shown: bytes) -> None:
        """The server's certificate by mesh time, which the clock of this machine need not know."""
        validity = validity_of(shown)
        if self._at_ms is not None and not validity.begins_ms <= self._at_ms <= validity.ends_ms:
            raise TrustError("join.pin", "the certificate of the join endpoint is out of date")


def _blob(told: Any, name: str) -> bytes:
    value = told.get(name) if type(told) is dict else None
    if type(value) is not bytes:
        raise ProtocolError("message.invalid", f"the join endpoint told no {name}")
    return value


def _check(certificate: bytes, key: bytes, node: str, cas: Sequence[bytes]) -> None:
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


async def bring_up_to_date(
    folder: Path, endpoints: Sequence[Address], *, certificate: bool, at_ms: int | None
) -> None:
    """Take newer trust, and with `certificate` a new pair, from the first endpoint that gives them.

    Raises what the first one of our mesh failed with; when there was none, what the last one did.
    """
    config = load_config(folder)
    held = HeldTrust(folder / "keys", config.mesh)
    failure: MeshError = LinkError("link.down", "no join endpoint is known")
    refusal: MeshError | None = None
    for address in endpoints:
        endpoint = Endpoint(address, held, config.mesh, at_ms)
        is_ours = False
        try:
            if await endpoint.take_trust():
                log.info("trust is of version %d now", held.trust.version)
            is_ours = True
            if certificate:
                await endpoint.renew(folder, config.id)
                log.info("the certificate was renewed")
        except MeshError as exc:
            failure = exc
            if is_ours and refusal is None:
                refusal = exc
        else:
            return
    # at a guessed address another mesh may sit, and what that says helps nobody
    raise refusal or failure


def main(argv: Sequence[str]) -> int:
    """The command line; 0, or what `bring_up_to_date` raises."""
    parser = argparse.ArgumentParser(prog="imlmesh_node.renewing", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("endpoints", nargs="+", metavar="ADDRESS:PORT")
    parser.add_argument("--certificate", action="store_true")
    parser.add_argument("--at-ms", type=int, help="mesh time, when it is known")
    given = parser.parse_args(argv)
    set_up_logs()
    endpoints = [address_of(each) for each in given.endpoints]
    work = bring_up_to_date(
        given.folder, endpoints, certificate=given.certificate, at_ms=given.at_ms
    )
    asyncio.run(work)
    return 0


if __name__ == "__main__":
    sys.exit(logged(lambda: main(sys.argv[1:])))
