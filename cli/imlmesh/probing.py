"""The probe of a broker with everything that it needs: identities of minutes, and their end.

The one rule: what it makes is revoked when it is done, and its keys lie in a folder that is gone before
the first question. Deliberately absent: the questions (`imlmesh_broker.probe`).
"""

import asyncio
import ssl
import tempfile
from collections.abc import Sequence
from pathlib import Path

from imlmesh.mesh import Mesh
from imlmesh_broker.child import USUAL_CONTROL_PORT
from imlmesh_broker.probe import Cast, Finding, Probe
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.ca.certificates import Issued, Issuer, new_root
from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_protocol.wire import topics
from imlmesh_runtime.link.address import address_of
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.trust import (
    ControlKeys,
    broker_name,
    client_context,
    new_tls_key,
    server_check,
)


class Identities:
    """Two nodes and a stranger, whose certificates end after limits.PROBE_S.

    TrustError `trust.file`, `trust.mode` when the keys of the mesh cannot be used.
    """

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self._keys = ControlKeys.load(authority.folder, authority.mesh)
        self._serials: list[int] = []

    def cast(self) -> Cast:
        """Everybody who takes part."""
        mesh = self._authority.mesh
        stranger = Issuer(*new_root(mesh, "node"))
        uri = f"imlmesh://{mesh}/node/{topics.PROBES[0]}"
        known = [self._certified(name) for name in topics.PROBES]
        key, request = new_tls_key(topics.PROBES[0])
        return Cast(
            anonymous=server_check(self._keys.held.trust.control_cas, broker_name(mesh)),
            stranger=self._context(key, stranger.issue_client(request, topics.PROBES[0], uri)),
            control=self._keys.context(),
            node=(topics.PROBES[0], known[0]),
            other=(topics.PROBES[1], known[1]),
            revoke=self.revoke,
        )

    async def revoke(self) -> None:
        """End those that are not ended yet."""
        serials, self._serials = self._serials, []
        if serials:
            await asyncio.to_thread(self._authority.revoke_too, serials)

    def _certified(self, name: str) -> ssl.SSLContext:
        key, request = new_tls_key(name)
        issued = self._authority.certify(request, name, limits.PROBE_S)
        self._serials.append(issued.serial)
        return self._context(key, issued)

    def _context(self, key: bytes, issued: Issued) -> ssl.SSLContext:
        cas, name = self._keys.held.trust.control_cas, broker_name(self._authority.mesh)
        # a context takes its certificate from files alone
        with tempfile.TemporaryDirectory(prefix="imlmesh-probe-") as folder:
            place = Path(folder)
            (place / "node.pem").write_bytes(issued.pem)
            (place / "node.key").write_bytes(key)
            return client_context(cas, place / "node.pem", place / "node.key", name)


async def probe_broker(authority: Authority, nodes: Address, control: Address) -> list[Finding]:
    """Ask the broker that listens for nodes and for control at these addresses."""
    identities = Identities(authority)
    cast = await asyncio.to_thread(identities.cast)
    try:
        return await Probe(authority.mesh, nodes, control, cast).run()
    finally:
        # also when it was ended before its last question
        await identities.revoke()


def places_of(mesh: Mesh, address: str | None, control: str | None) -> tuple[Address, Address]:
    """Where nodes and control come in: as given, else those of the mesh.

    Of control nothing but where nodes come in may be known: then the port that is usual there.
    InputError `config.invalid`, and `home.missing` before the first start.
    """
    nodes = address_of(address or mesh.broker_address)
    if control is not None:
        return nodes, address_of(control)
    if address is None:
        return nodes, address_of(mesh.control_address)
    return nodes, (nodes[0], mesh.control_port or USUAL_CONTROL_PORT)


def unsafe(findings: Sequence[Finding]) -> TrustError | None:
    """The error `broker.unsafe` that names the first finding against the broker, or None."""
    failed = [one for one in findings if not one.passed]
    if not failed:
        return None
    more = f", and {len(failed) - 1} more" if len(failed) > 1 else ""
    return TrustError("broker.unsafe", f"{failed[0].name}: no; {failed[0].seen}{more}")
