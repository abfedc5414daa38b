"""Changes about joining become state; see `apply`.

The one rule: what ended long ago goes when the next of its kind comes, here and in the store alike.
"""

from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core.joining_state import JoinRecord, TokenRecord
from imlmesh_orchestrator.core.state import State


def _token_created(state: State, change: j.TokenCreated) -> None:
    for old in [each for each in state.tokens.values() if each.forgotten(change.at_ms)]:
        del state.tokens[old.token]
    state.tokens[change.token] = TokenRecord(
        change.token,
        change.key,
        change.uses,
        change.profile,
        change.groups,
        change.at_ms,
        change.expires_at_ms,
        change.by,
    )


def _token_revoked(state: State, change: j.TokenRevoked) -> None:
    state.tokens[change.token].revoked = True


def _token_spent(state: State, change: j.TokenSpent) -> None:
    state.tokens[change.token].spent += 1


def _token_proof_failed(state: State, change: j.TokenProofFailed) -> None:
    state.tokens[change.token].wrong += 1


def _join_held(state: State, change: j.JoinHeld) -> None:
    _forget(state, change.identity, change.at_ms)
    state.joins[change.identity] = JoinRecord(
        change.identity,
        change.node,
        change.profile,
        change.code,
        change.groups,
        change.address,
        change.at_ms,
        change.expires_at_ms,
    )


def _join_ignored(state: State, change: j.JoinIgnored) -> None:
    _forget(state, change.identity, change.at_ms)
    state.ignored[change.identity] = change.until_ms


def _forget(state: State, identity: bytes, at_ms: int) -> None:
    """What is known of this one, and what is over."""
    state.joins = {
        key: each
        for key, each in state.joins.items()
        if each.expires_at_ms > at_ms and key != identity
    }
    state.ignored = {
        key: until_ms
        for key, until_ms in state.ignored.items()
        if until_ms > at_ms and key != identity
    }


def _join_window_set(state: State, change: j.JoinWindowSet) -> None:
    state.open_until_ms, state.opened_by = change.until_ms, change.by


def _profile_granted(state: State, change: j.ProfileGranted) -> None:
    state.enrolled[change.node].profile = change.profile


APPLY: dict[type[c.Change], Callable[[State, Any], None]] = {
    j.TokenCreated: _token_created,
    j.TokenRevoked: _token_revoked,
    j.TokenSpent: _token_spent,
    j.TokenProofFailed: _token_proof_failed,
    j.JoinHeld: _join_held,
    j.JoinIgnored: _join_ignored,
    j.JoinWindowSet: _join_window_set,
    j.ProfileGranted: _profile_granted,
}
