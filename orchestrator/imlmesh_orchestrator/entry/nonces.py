"""What keeps strangers in bounds: nonces, each good once and for a short while, and a pace.

The one rule: whoever answers to a nonce was here after it was made. Deliberately absent: surviving a
restart; whoever held one asks for another.
"""

import secrets
from collections import OrderedDict, deque

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, ProtocolError
from imlmesh_protocol.wire.joining import NONCE_BYTES


class Allowance:
    """How often somebody may make us write: JOIN_WRITES times within JOIN_PACE_MS."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, deque[int]] = OrderedDict()

    def take(self, who: str, now_ms: int) -> None:
        """Once more; LinkError `join.busy` when that is too often."""
        times = self._seen.setdefault(who, deque(maxlen=limits.JOIN_WRITES))
        self._seen.move_to_end(who)
        if len(self._seen) > limits.JOIN_PACED:
            self._seen.popitem(last=False)
        if len(times) == limits.JOIN_WRITES and times[0] > now_ms - limits.JOIN_PACE_MS:
            raise LinkError("join.busy", f"{who} asks too often")
        times.append(now_ms)


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
