"""The states of actions, runs, dispatches, nodes and approvals, and which change into which.

The one rule: a transition that these tables do not list never happens; cores check every change
against them. Right of the bar in DESIGN's words means terminal: no way out, but for the two
exceptions written beside their rows.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from imlmesh_protocol.errors import InvariantError

S = TypeVar("S", bound=StrEnum)


class _State(StrEnum):
    """A state is its word; hashing it as text is ten times faster than Enum's own way."""

    __hash__ = str.__hash__


class ActionState(_State):
    PENDING = "pending"
    WAITING = "waiting"
    AWAITING_APPROVAL = "awaiting_approval"
    RUNNING = "running"
    UNKNOWN = "unknown"
    COMPLETED = "completed"
    FAILED = "failed"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"
    ROLLED_BACK = "rolled_back"


class RunState(_State):
    PENDING = "pending"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DispatchState(_State):
    PLANNED = "planned"
    # not stored: a planned dispatch is sent as soon as its commit ends, and another commit would
    # only say that
    SENT = "sent"
    ACCEPTED = "accepted"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    SUPERSEDED = "superseded"


class Liveness(_State):
    ONLINE = "online"
    SUSPECT = "suspect"
    LOST = "lost"
    OFFLINE = "offline"


class Admission(_State):
    """Whether a node may get work; a person decides, or evidence that it signed itself."""

    OPEN = "open"
    # gets nothing new
    CORDONED = "cordoned"
    # gets nothing new and ends what it has: somebody wants to take it away
    DRAINING = "draining"
    # gets nothing new, its leases are over, and its word does not count
    QUARANTINED = "quarantined"
    # does not belong to the mesh any more
    REVOKED = "revoked"


class ApprovalState(_State):
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"


class Effect(_State):
    """How careful one must be with doing it again; later is more careful."""

    PURE = "pure"
    IDEMPOTENT = "idempotent"
    ONCE = "once"
    PHYSICAL = "physical"

    @property
    def repeatable(self) -> bool:
        """Whether doing it twice is harmless."""
        return self in _REPEATABLE


_REPEATABLE = frozenset({Effect.PURE, Effect.IDEMPOTENT})
EFFECT_CARE = {Effect.PURE: 0, Effect.IDEMPOTENT: 1, Effect.ONCE: 2, Effect.PHYSICAL: 3}

A, R, D, N, P = ActionState, RunState, DispatchState, Liveness, ApprovalState
M = Admission

ACTION: dict[ActionState, frozenset[ActionState]] = {
    # completed at once: kept from the run that this one retries
    A.PENDING: frozenset(
        {A.WAITING, A.AWAITING_APPROVAL, A.RUNNING, A.COMPLETED, A.FAILED, A.SKIPPED, A.CANCELLED}
    ),
    A.WAITING: frozenset(
        {A.AWAITING_APPROVAL, A.RUNNING, A.COMPLETED, A.FAILED, A.SKIPPED, A.CANCELLED}
    ),
    # a person may say that a compensation which could not run is done
    A.AWAITING_APPROVAL: frozenset({A.WAITING, A.COMPLETED, A.FAILED, A.SKIPPED, A.CANCELLED}),
    # awaiting approval: a compensation that failed asks what now
    A.RUNNING: frozenset(
        {
            A.WAITING,
            A.AWAITING_APPROVAL,
            A.UNKNOWN,
            A.COMPLETED,
            A.FAILED,
            A.SKIPPED,
            A.CANCELLED,
        }
    ),
    A.UNKNOWN: frozenset({A.WAITING, A.RUNNING, A.COMPLETED, A.FAILED, A.SKIPPED, A.CANCELLED}),
    A.COMPLETED: frozenset({A.ROLLED_BACK}),  # its compensation completed
    A.FAILED: frozenset({A.ROLLED_BACK}),  # likewise
    A.SKIPPED: frozenset(),
    A.CANCELLED: frozenset(),
    A.ROLLED_BACK: frozenset(),
}

RUN: dict[RunState, frozenset[RunState]] = {
    R.PENDING: frozenset({R.RUNNING, R.PAUSED, R.CANCELLING, R.COMPLETED, R.FAILED, R.CANCELLED}),
    R.RUNNING: frozenset({R.PAUSED, R.CANCELLING, R.COMPLETED, R.FAILED, R.CANCELLED}),
    # a paused run ends when nothing is left to do
    R.PAUSED: frozenset({R.RUNNING, R.CANCELLING, R.COMPLETED, R.FAILED, R.CANCELLED}),
    R.CANCELLING: frozenset({R.CANCELLED, R.COMPLETED, R.FAILED}),
    R.COMPLETED: frozenset(),
    R.FAILED: frozenset(),
    R.CANCELLED: frozenset(),
}

_ENDS = {D.COMPLETED, D.FAILED, D.TIMED_OUT, D.CANCELLED, D.REJECTED, D.UNKNOWN, D.SUPERSEDED}
DISPATCH: dict[DispatchState, frozenset[DispatchState]] = {
    D.PLANNED: frozenset({D.SENT, D.ACCEPTED, D.RUNNING, *_ENDS}),
    D.SENT: frozenset({D.ACCEPTED, D.RUNNING, *_ENDS}),
    D.ACCEPTED: frozenset({D.RUNNING, *_ENDS}),
    D.RUNNING: frozenset(_ENDS),
    D.COMPLETED: frozenset(),
    D.FAILED: frozenset(),
    D.TIMED_OUT: frozenset(),
    D.CANCELLED: frozenset(),
    D.REJECTED: frozenset(),
    # a late true result replaces what nobody knew
    D.UNKNOWN: frozenset({D.COMPLETED, D.FAILED, D.TIMED_OUT, D.CANCELLED, D.SUPERSEDED}),
    D.SUPERSEDED: frozenset(),
}

LIVENESS: dict[Liveness, frozenset[Liveness]] = {
    N.ONLINE: frozenset({N.SUSPECT, N.LOST, N.OFFLINE}),
    N.SUSPECT: frozenset({N.ONLINE, N.LOST, N.OFFLINE}),
    # back, and suspect, since it comes and goes
    N.LOST: frozenset({N.ONLINE, N.SUSPECT, N.OFFLINE}),
    N.OFFLINE: frozenset({N.ONLINE, N.SUSPECT}),
}

ADMISSION: dict[Admission, frozenset[Admission]] = {
    M.OPEN: frozenset({M.CORDONED, M.DRAINING, M.QUARANTINED, M.REVOKED}),
    # itself again: for another reason, or another time
    M.CORDONED: frozenset({M.OPEN, M.CORDONED, M.DRAINING, M.QUARANTINED, M.REVOKED}),
    M.DRAINING: frozenset({M.OPEN, M.CORDONED, M.DRAINING, M.QUARANTINED, M.REVOKED}),
    # no mere cordon: that would give its word back
    M.QUARANTINED: frozenset({M.OPEN, M.QUARANTINED, M.REVOKED}),
    M.REVOKED: frozenset(),
}

APPROVAL: dict[ApprovalState, frozenset[ApprovalState]] = {
    P.PENDING: frozenset({P.APPROVED, P.DENIED, P.EXPIRED, P.SUPERSEDED}),
    P.APPROVED: frozenset(),
    P.DENIED: frozenset(),
    P.EXPIRED: frozenset(),
    P.SUPERSEDED: frozenset(),
}

ACTION_ENDED = frozenset({A.COMPLETED, A.FAILED, A.SKIPPED, A.CANCELLED, A.ROLLED_BACK})
RUN_ENDED = frozenset({R.COMPLETED, R.FAILED, R.CANCELLED})
DISPATCH_LIVE = frozenset({D.PLANNED, D.SENT, D.ACCEPTED, D.RUNNING})
#: the word of such a node does not count, and none of its leases goes on
NOT_BELIEVED = frozenset({M.QUARANTINED, M.REVOKED})
#: such a node is somewhere: it has said neither goodbye nor nothing for a whole window
PRESENT = frozenset({N.ONLINE, N.SUSPECT})

del A, R, D, N, P, M


def move(table: Mapping[S, frozenset[S]], what: str, old: S, new: S) -> S:
    """`new`, when the table lets `old` become it; else a bug of ours (`internal.invariant`)."""
    if new not in table[old]:
        raise InvariantError("internal.invariant", f"{what}: {old} cannot become {new}")
    return new
