"""What is known of who is there, all of it volatile: empty after a restart, outside the replay."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imlmesh_protocol import limits


@dataclass(slots=True)
class Presence:
    """Volatile: when a node was last heard, and what it said of itself."""

    #: a beat that only comes again moves nothing
    last_heard_ms: int
    health: Mapping[str, Any] = field(default_factory=dict)
    #: nonce of the inventory under way, and the dispatches that it must account for
    asked: str = ""
    expects: tuple[str, ...] = ()
    #: late results of forgotten runs that were kept for it
    evidence: int = 0
    #: when the next look at it is due; 0 when none is
    look_ms: int = 0
    #: number of its last beat, and whether that came again: then it hears none of our answers
    beat: int = 0
    deaf: bool = False
    #: beats with new numbers since its liveness changed
    beats: int = 0
    #: the longest that its beats came late of late, fading; see `silence`
    jitter_ms: int = 0
    #: whether it was gone or quiet and is not back yet, and since when it was the last time (0: never);
    #: when it came back of late, and until when it is held down for that
    away: bool = False
    away_ms: int = 0
    returns_ms: deque[int] = field(default_factory=lambda: deque(maxlen=limits.RETURNS_KEPT))
    held_until_ms: int = 0
    #: how much longer it may be silent since our connection was away: it may wait before it tries again
    grace_ms: int = 0
    #: whether its silence is explained: the broker or a person said that it is gone
    explained: bool = False
    #: the permits that it told of, and how often each has run
    permits: Mapping[str, int] = field(default_factory=dict)
    #: the dispatches that it holds, by its last beat; None before the first one of its session
    held: tuple[str, ...] | None = None
    #: when it was lost by silence that nobody explained; 0 when not
    lost_at_ms: int = 0

    def goes(self, at_ms: int) -> None:
        """It is away from now on, unless it is already."""
        if not self.away:
            self.away, self.away_ms = True, at_ms

    @property
    def quiet(self) -> str:
        """What it is when nothing new comes of it."""
        return "deaf" if self.deaf else "silent"


@dataclass(slots=True)
class Freeze:
    """Volatile: so many nodes fell silent together that no verdict is made; see `silence`."""

    #: nodes whose silence nobody has explained yet, and how many nodes were looked at
    silent: set[str]
    of: int


@dataclass(slots=True)
class Sightings:
    """Volatile: what was seen against one node of late, as (kind, mark) to when."""

    marks: dict[tuple[str, str], int] = field(default_factory=dict)
    #: when rows of it were kept
    kept_ms: deque[int] = field(default_factory=deque)
