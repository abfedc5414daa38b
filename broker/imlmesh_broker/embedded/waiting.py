"""Those who have connected and have not yet said who they are: how many of them there may be.

The one rule: each address has a share and all together a bound, and who takes long makes room for who
comes; so nobody holds the door shut. Deliberately absent: sockets, and what it takes to come in.
"""

import asyncio
from collections import defaultdict

from imlmesh_protocol import limits

_PATIENCE_S = limits.BROKER_WAITING_MS / 1000
Entering = asyncio.Task[None]


class Waiting:
    """The tasks that let somebody in, oldest first, each with its address and when it began."""

    def __init__(self) -> None:
        self._all: dict[Entering, tuple[str, float]] = {}
        self._near: defaultdict[str, dict[Entering, float]] = defaultdict(dict)

    def has_room(self, address: str, now_s: float) -> bool:
        """Whether one more of `address` may come; one that takes long is cancelled for it."""
        near = self._near.get(address, {})
        if len(near) >= limits.BROKER_WAITING_OF_ADDRESS:
            oldest, since_s = next(iter(near.items()))
        elif len(self._all) >= limits.BROKER_WAITING:
            oldest, (_, since_s) = next(iter(self._all.items()))
        else:
            return True
        if now_s - since_s < _PATIENCE_S:
            return False
        self.leave(oldest)
        oldest.cancel()
        return True

    def enter(self, entering: Entering, address: str, now_s: float) -> None:
        """`entering` waits until it is done."""
        self._all[entering] = address, now_s
        self._near[address][entering] = now_s
        entering.add_done_callback(self.leave)

    def leave(self, entering: Entering) -> None:
        """It waits no more; for one that left before this means nothing."""
        address, _ = self._all.pop(entering, ("", 0.0))
        near = self._near.get(address)
        if near is not None:
            del near[entering]
            if not near:
                del self._near[address]
