"""Tokens, and nodes that wait for a person, as the API tells them.

The one rule: nothing here helps to get in. Looks at the core's state, so it runs on the event loop.
"""

from typing import Any

from imlmesh_orchestrator.core.joining_state import EnrolledRecord, JoinRecord, TokenRecord
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.core.tokens import why_not


def token_view(record: TokenRecord, at_ms: int) -> dict[str, Any]:
    """A token; `state` is open, expired, used, revoked or burnt."""
    return {
        "token": record.token,
        "state": why_not(record, at_ms).removeprefix("token.") or "open",
        "uses": record.uses,
        "spent": record.spent,
        "wrong_proofs": record.wrong,
        "profile": record.profile,
        "groups": list(record.groups),
        "by": record.by,
        "at_ms": record.at_ms,
        "expires_at_ms": record.expires_at_ms,
    }


def join_view(record: JoinRecord) -> dict[str, Any]:
    """A node that waits; `code` is null for one that has a token."""
    return {
        "node": record.node,
        "code": record.code or None,
        "profile": record.profile,
        "groups": list(record.groups),
        "address": record.address,
        "at_ms": record.at_ms,
        "expires_at_ms": record.expires_at_ms,
    }


def enrolled_view(record: EnrolledRecord) -> dict[str, Any]:
    """A node that was let in, whether it was ever here or not."""
    return {
        "node": record.node,
        "alias": record.alias,
        "profile": record.profile,
        "by": record.by,
        "at_ms": record.at_ms,
    }


def door_view(state: State, at_ms: int) -> dict[str, Any]:
    """Until when who asks is let in without a look, and by whom; null while nobody is."""
    is_open = state.open_until_ms > at_ms
    return {
        "open_until_ms": state.open_until_ms if is_open else None,
        "opened_by": state.opened_by if is_open else None,
    }
