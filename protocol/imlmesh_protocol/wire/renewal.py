"""How a node that is in asks for a new certificate: what is signed, and what travels.

The one rule: the identity key speaks for the node, over the request, the mesh and a nonce of the
server, so an answer or a question that was overheard is worth nothing. Deliberately absent: HTTP.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.ids import NAME

_DOMAIN = b"renew1"
NONCE_BYTES = 16
_PROOF_BYTES = 64


def renewal_input(mesh: str, node: str, request: bytes, nonce: bytes) -> bytes:
    """What the identity key signs: "renew1" ‖ u8 len(mesh) ‖ mesh ‖ u8 len(id) ‖ id ‖
    SHA-256(request) ‖ nonce."""
    names = b"".join(bytes((len(name),)) + name.encode() for name in (mesh, node))
    return b"".join((_DOMAIN, names, hashlib.sha256(request).digest(), nonce))


@dataclass(frozen=True, slots=True)
class RenewalAsked:
    """The body of POST /v1/renew: `request` is the PEM of a certificate request for a new key."""

    node: str
    request: bytes
    nonce: bytes
    proof: bytes

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Self:
        """From what was sent; ProtocolError `message.invalid`."""
        if body.keys() != set(cls.__slots__):
            raise ProtocolError("message.invalid", f"a renewal has {', '.join(cls.__slots__)}")
        node, request, nonce, proof = (body[name] for name in cls.__slots__)
        if (
            type(node) is not str
            or not NAME.fullmatch(node)
            or any(type(blob) is not bytes for blob in (request, nonce, proof))
            or len(nonce) != NONCE_BYTES
            or len(proof) != _PROOF_BYTES
        ):
            raise ProtocolError("message.invalid", "a renewal with wrong values")
        return cls(node, request, nonce, proof)

    def body(self) -> dict[str, Any]:
        """As it travels."""
        return {name: getattr(self, name) for name in self.__slots__}
