"""Changes about joining: tokens, nodes that wait for a person, the open door, names that move on.

The one rule: as of `changes`, of which these are a part: plain values, one row each. A secret is
never among them; a token's `key` proves nothing but that somebody knows the secret.
"""

from dataclasses import dataclass

from imlmesh_orchestrator.core.changes import Change


@dataclass(slots=True)
class TokenCreated(Change):
    """Whoever proves to know the secret behind `key` is let in, `uses` times, with at most
    `profile`, and belongs to `groups`."""

    token: str
    key: bytes
    uses: int
    profile: str
    groups: tuple[str, ...]
    expires_at_ms: int
    by: str


@dataclass(slots=True)
class TokenRevoked(Change):
    token: str
    by: str


@dataclass(slots=True)
class TokenSpent(Change):
    """One use of the token is gone: `node` is in by it, or waits for a person."""

    token: str
    node: str


@dataclass(slots=True)
class TokenProofFailed(Change):
    """Somebody at `address` named the token and does not know its secret."""

    token: str
    node: str
    address: str


@dataclass(slots=True)
class JoinHeld(Change):
    """A node waits for a person. `code` is what both sides show; without one it has proved a token,
    whose `groups` it will belong to."""

    identity: bytes
    node: str
    profile: str
    code: str
    groups: tuple[str, ...]
    address: str
    expires_at_ms: int


@dataclass(slots=True)
class JoinIgnored(Change):
    """A person does not want to see this node's wish to join until then."""

    identity: bytes
    node: str
    by: str
    until_ms: int


@dataclass(slots=True)
class JoinWindowSet(Change):
    """Until then whoever asks for no more than local_worker is let in without a look."""

    until_ms: int
    by: str


@dataclass(slots=True)
class NodeAliased(Change):
    """From now on people call the node so."""

    node: str
    alias: str


@dataclass(slots=True)
class ProfileGranted(Change):
    """From now on the node may do at most that, whatever its own policy allows."""

    node: str
    profile: str
    by: str
