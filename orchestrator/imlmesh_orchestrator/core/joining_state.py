"""What the orchestrator remembers of nodes that were let in, and of the ways in."""

from dataclasses import dataclass, field

from imlmesh_protocol import limits


@dataclass(slots=True)
class EnrolledRecord:
    """A node that was let in. `certificates` maps serial to its end in ms of wall time."""

    node: str
    alias: str
    identity: bytes
    profile: str
    by: str
    at_ms: int
    certificates: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class TokenRecord:
    """A join token. `spent` of its `uses` are gone, `wrong` proofs were sent for it."""

    token: str
    key: bytes
    uses: int
    profile: str
    groups: tuple[str, ...]
    at_ms: int
    expires_at_ms: int
    by: str
    spent: int = 0
    wrong: int = 0
    revoked: bool = False

    def forgotten(self, at_ms: int) -> bool:
        """Whether it ended so long ago that the next token takes its place."""
        return self.expires_at_ms + limits.TOKEN_KEPT_MS < at_ms


@dataclass(slots=True)
class JoinRecord:
    """A node that waits for a person; see `joining_changes.JoinHeld`."""

    identity: bytes
    node: str
    profile: str
    code: str
    groups: tuple[str, ...]
    address: str
    at_ms: int
    expires_at_ms: int
