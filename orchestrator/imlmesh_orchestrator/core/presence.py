"""What is known of who is there, all of it volatile: empty after a restart, outside the replay."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Presence:
    """Volatile: when a node was last heard, and what it said of itself."""

    last_heard_ms: int
    health: Mapping[str, Any] = field(default_factory=dict)
    #: nonce of the inventory under way, and the dispatches that it must account for
    asked: str = ""
    expects: tuple[str, ...] = ()
    #: late results of forgotten runs that were kept for it
    evidence: int = 0
    #: whether the deadline heap holds an entry for this node
    watched: bool = False
    #: the longest that its beats came late of late, fading; see `silence`
    jitter_ms: int = 0
    #: whether its silence is explained: the broker or a person said that it is gone
    explained: bool = False
    #: the permits that it told of, and how often each has run
    permits: Mapping[str, int] = field(default_factory=dict)
    #: when it was lost by silence that nobody explained; 0 when not
    lost_at_ms: int = 0


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
