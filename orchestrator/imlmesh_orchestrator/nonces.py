"""Nonces: each is good once, for a short while, and only for what was committed to when it was given.

The one rule: whoever answers to one was here after it was made. Deliberately absent: surviving a
restart; whoever held one asks for another.
"""

import secrets
from collections import OrderedDict

from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.wire.joining import NONCE_BYTES


class Nonces:
    """Times are ms of mesh time, which never goes back."""

    def __init__(self) -> None:
        self._given: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()

    def give(self, now_ms: int, commitment: bytes = b"") -> bytes:
        """A fresh one, bound to `commitment`; of too many the oldest ends."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._given[nonce] = (now_ms + limits.JOIN_NONCE_MS, commitment)
        if len(self._given) > limits.JOIN_NONCES:
            self._given.popitem(last=False)
        return nonce

    def take(self, nonce: bytes, now_ms: int) -> bytes:
        """What it was bound to; ProtocolError `join.nonce` when it is not good, or not any more."""
        until_ms, commitment = self._given.pop(nonce, (0, b""))
        if until_ms <= now_ms:
            raise ProtocolError("join.nonce", "this nonce was not given, used, or is over")
        return commitment
