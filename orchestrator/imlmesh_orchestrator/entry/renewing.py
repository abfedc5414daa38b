"""A new certificate for a node that is in: `POST /v1/renew` of the join endpoint.

The one rule: the identity key proves who asks, whatever became of the last certificate, so a node
that was away for a year comes back; one that was removed does not. Deliberately absent: HTTP, and
where nonces come from.
"""

from collections.abc import Callable, Mapping
from typing import Any

from nacl.exceptions import CryptoError

from imlmesh_orchestrator.answering import Newcomer
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.core.joining_state import EnrolledRecord
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.entry.nonces import Allowance
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.errors import ProtocolError, TrustError
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire.renewal import RenewalAsked, renewal_input
from imlmesh_runtime.trust import public_key

#: takes a nonce that was given out, once; raises ProtocolError for another
TakeNonce = Callable[[bytes], object]


class Renewing:
    """`lifetime_s` is that of certificates."""

    def __init__(
        self, authority: Authority, shell: Shell, take_nonce: TakeNonce, lifetime_s: int
    ) -> None:
        self._authority = authority
        self._shell = shell
        self._take_nonce = take_nonce
        self._lifetime_s = lifetime_s
        self._allowance = Allowance()

    async def answer(self, body: Any, _address: str) -> Mapping[str, Any]:
        """The endpoint's handler: `renew` for a body of whatever kind."""
        if type(body) is not dict:
            raise ProtocolError("message.invalid", "a renewal is a map")
        return await self.renew(body)

    async def renew(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """{certificate: PEM} for a body of `RenewalAsked`, once it is stored.

        ProtocolError `message.invalid`, `join.nonce`; TrustError `signature.unknown_key`,
        `signature.invalid`, `node.revoked`; LinkError `join.busy`.
        """
        asked = RenewalAsked.of(body)
        self._take_nonce(asked.nonce)
        mesh = self._authority.mesh
        known = _entitled(self._shell.state, asked.node)
        signed = renewal_input(mesh, asked.node, asked.request, asked.nonce)
        try:
            public_key(known.identity).verify(signed, asked.proof)
        except CryptoError:
            raise TrustError("signature.invalid", f"{asked.node} did not sign this") from None
        # each is a row in the store, an entry of the ledger and, once the node is removed, a number on
        # the revocation list
        self._allowance.take(known.node, self._shell.clock.now_ms())
        issued = self._authority.certify(asked.request, asked.node, self._lifetime_s)
        same = Newcomer(known.node, known.alias, known.identity, known.profile)
        await self._shell.enrol(same, issued, known.node)
        return {"certificate": issued.pem}


def _entitled(state: State, node: str) -> EnrolledRecord:
    """Of a node that is in and was not removed."""
    known = state.enrolled.get(node)
    if known is None:
        raise TrustError("signature.unknown_key", f"{node} is not in this mesh")
    if state.admission_of(node) is Admission.REVOKED:
        raise TrustError("node.revoked", f"{node} was removed from this mesh")
    return known
