"""What a node holds and has not finished: the queue, the slots, the claims.

The one rule: oldest first, and nobody overtakes one who waits for the same claim. What ends at
once takes no slot. Deliberately absent: what becomes of a dispatch afterwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from imlmesh_node.core.claims import Claims
from imlmesh_node.core.commands import KillReason
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import COUNT_MAX, START_MS, stop_ms
from imlmesh_protocol.wire.dispatches import Dispatch

NEVER_MS = COUNT_MAX
CUT_OFF = Fault("action.lease_lost", "the node was cut off before it started")


@dataclass(slots=True)
class HeldRecord:
    """A dispatch that is not finished: waiting, or running since `started_ms`. Its session began
    with the birth that was sent at `born_ms`."""

    dispatch: Dispatch
    instant: bool
    arrived_ms: int
    born_ms: int
    started_ms: int = 0
    killing: KillReason | None = None

    def lease_end_ms(self, answered_ms: int) -> int:
        """When a cut-off node gives it up; `answered_ms` is the sending of the last answered beat.

        A tenth of the lease is kept back, so that it ends here before anybody else may begin.
        """
        if self.dispatch.when_cut_off != "stop":
            return NEVER_MS
        return max(answered_ms, self.born_ms) + stop_ms(self.dispatch.lease_ms)


class Slots:
    """Dispatches by id: `waiting` in the order they came, `running` in the order they started."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.waiting: dict[str, HeldRecord] = {}
        self.running: dict[str, HeldRecord] = {}
        self.claims = Claims()
        #: when whatever runs is stopped, since the agent was told to end
        self.finish_by_ms = NEVER_MS

    @property
    def stopping(self) -> bool:
        """Whether the agent was told to end: nothing more is taken or started."""
        return self.finish_by_ms < NEVER_MS

    def __len__(self) -> int:
        """How many dispatches are taken and not finished."""
        return len(self.waiting) + len(self.running)

    def wait(self, held: HeldRecord) -> None:
        self.waiting[held.dispatch.id] = held

    def start(self, at_ms: int) -> list[HeldRecord]:
        """Start all that may; returns them in order."""
        started: list[HeldRecord] = []
        wanted: set[str] = set()
        for held in self.waiting.values():
            claims = held.dispatch.claims
            if (not held.instant and not self.free) or (
                claims and not (wanted.isdisjoint(claims) and self.claims.holder(claims) is None)
            ):
                wanted.update(claims)
                continue
            held.started_ms = at_ms
            if not held.instant:
                self.free -= 1
            self.claims.take(claims, held.dispatch.id)
            started.append(held)
        for held in started:
            del self.waiting[held.dispatch.id]
            self.running[held.dispatch.id] = held
        return started

    def end(self, id: str) -> HeldRecord | None:
        """A running dispatch ended: its slot and claims are free."""
        held = self.running.pop(id, None)
        if held is not None:
            if not held.instant:
                self.free += 1
            self.claims.free(held.dispatch.claims)
        return held

    def holder(self, held: HeldRecord) -> str | None:
        """Who has, or waited earlier for, a claim of the waiting `held`."""
        wanted = set(held.dispatch.claims)
        holder = self.claims.holder(held.dispatch.claims)
        if holder is not None or not wanted:
            return holder
        for id, other in self.waiting.items():
            if other is held:
                break
            if not wanted.isdisjoint(other.dispatch.claims):
                return id
        return None

    def limits_ms(self, answered_ms: int) -> Iterator[int]:
        """When each of them has to start, to end, or to be given up."""
        for held in self.waiting.values():
            yield min(held.arrived_ms + START_MS, held.lease_end_ms(answered_ms))
        for held in self.running.values():
            if not held.instant and held.killing is None:
                end_ms = min(held.started_ms + held.dispatch.timeout_ms, self.finish_by_ms)
                yield min(end_ms, held.lease_end_ms(answered_ms))

    def late(self, at_ms: int, answered_ms: int) -> list[tuple[HeldRecord, Fault | KillReason]]:
        """What did not start in time, with the fault, and what has to be ended, with the reason."""
        found: list[tuple[HeldRecord, Fault | KillReason]] = []
        for held in self.waiting.values():
            if at_ms >= held.lease_end_ms(answered_ms):
                found.append((held, CUT_OFF))
            elif self.stopping:
                text = "the node was shut down before it started"
                found.append((held, Fault("action.not_started", text)))
            elif at_ms >= held.arrived_ms + START_MS:
                text = f"no slot or claim was free for {START_MS} ms"
                found.append((held, Fault("action.not_started", text)))
        for held in self.running.values():
            if at_ms >= held.lease_end_ms(answered_ms):
                found.append((held, KillReason.LEASE))
            elif at_ms >= held.started_ms + held.dispatch.timeout_ms:
                found.append((held, KillReason.TIMEOUT))
            elif at_ms >= self.finish_by_ms:
                found.append((held, KillReason.SHUTDOWN))
        return found

    def ids(self) -> tuple[str, ...]:
        return (*self.running, *self.waiting)
