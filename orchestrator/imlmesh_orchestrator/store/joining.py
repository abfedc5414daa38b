"""The rows of changes about joining; see `projections`.

The one rule: a table holds the changes that a replay needs, and lets go of what the core forgets, by
the same rule and at the same change.
"""

from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_protocol import limits

Row = tuple[str, tuple[Any, ...]]

_OLD_TOKENS = "DELETE FROM tokens WHERE expires_at_ms < ?"
_CREATED = "INSERT INTO tokens (seq, token, expires_at_ms) VALUES (?,?,?)"
_LATER = """INSERT INTO tokens (seq, token, expires_at_ms)
    SELECT ?, token, expires_at_ms FROM tokens WHERE token = ? LIMIT 1"""
_OLD_JOINS = "DELETE FROM joins WHERE identity = ? OR until_ms <= ?"
_JOIN = "INSERT INTO joins (seq, identity, until_ms) VALUES (?,?,?)"
_WINDOW = "INSERT OR REPLACE INTO join_window (one, seq) VALUES (1, ?)"
_GRANT = "INSERT OR REPLACE INTO grants (node, seq) VALUES (?,?)"
_ALIAS = "INSERT OR REPLACE INTO aliases (node, seq) VALUES (?,?)"


def _token_created(seq: int, change: j.TokenCreated) -> list[Row]:
    over = (_OLD_TOKENS, (change.at_ms - limits.TOKEN_KEPT_MS,))
    return [over, (_CREATED, (seq, change.token, change.expires_at_ms))]


def _of_token(seq: int, change: j.TokenRevoked | j.TokenSpent | j.TokenProofFailed) -> list[Row]:
    return [(_LATER, (seq, change.token))]


def _join_held(seq: int, change: j.JoinHeld) -> list[Row]:
    return _join(seq, change.identity, change.at_ms, change.expires_at_ms)


def _join_ignored(seq: int, change: j.JoinIgnored) -> list[Row]:
    return _join(seq, change.identity, change.at_ms, change.until_ms)


def _join(seq: int, identity: bytes, at_ms: int, until_ms: int) -> list[Row]:
    return [(_OLD_JOINS, (identity, at_ms)), (_JOIN, (seq, identity, until_ms))]


def _join_window_set(seq: int, change: j.JoinWindowSet) -> list[Row]:
    return [(_WINDOW, (seq,))]


def _profile_granted(seq: int, change: j.ProfileGranted) -> list[Row]:
    return [(_GRANT, (change.node, seq))]


def _node_aliased(seq: int, change: j.NodeAliased) -> list[Row]:
    return [(_ALIAS, (change.node, seq))]


JOINED: dict[type[c.Change], Callable[[int, Any], list[Row]]] = {
    j.TokenCreated: _token_created,
    j.TokenRevoked: _of_token,
    j.TokenSpent: _of_token,
    j.TokenProofFailed: _of_token,
    j.JoinHeld: _join_held,
    j.JoinIgnored: _join_ignored,
    j.JoinWindowSet: _join_window_set,
    j.NodeAliased: _node_aliased,
    j.ProfileGranted: _profile_granted,
}
