"""Join tokens: made, listed, revoked, spent; whether one is good for another node.

The one rule: a proof is checked outside and counted here; a token that met too many wrong ones is
burnt. Deliberately absent: secrets, which nobody keeps.
"""

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.joining_state import TokenRecord
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault


def create(turn: Turn, event: e.TokenAsked) -> None:
    """Keep a token whose secret was made elsewhere."""
    state = turn.state
    ended = [each for each in state.tokens.values() if each.forgotten(turn.at_ms)]
    if len(state.tokens) - len(ended) >= limits.TOKENS:
        fault = Fault("token.too_many", f"{limits.TOKENS} tokens are kept")
        turn.command(Refuse(event.cause, fault))
        return
    turn.change(
        j.TokenCreated(
            turn.at_ms,
            turn.cause,
            event.token,
            event.key,
            event.uses,
            event.profile,
            event.groups,
            turn.at_ms + event.ttl_ms,
            event.by,
        )
    )
    turn.command(Reply(event.cause, event.token))


def revoke(turn: Turn, event: e.TokenRevokeAsked) -> None:
    """It lets nobody in from now on; again changes nothing."""
    record = turn.state.tokens.get(event.token)
    if record is None:
        fault = Fault("token.not_found", f"no token {event.token!r}")
        turn.command(Refuse(event.cause, fault))
        return
    if not record.revoked:
        turn.change(j.TokenRevoked(turn.at_ms, turn.cause, event.token, event.by))
    turn.command(Reply(event.cause, event.token))


def check(turn: Turn, event: e.JoinAsked) -> Fault | None:
    """Why the token of a question is good for nothing; a wrong proof is counted."""
    record = turn.state.tokens.get(event.token)
    if record is None:
        return Fault("token.unknown", f"this mesh has no token {event.token!r}")
    if not event.proven:
        if not why_not(record, turn.at_ms):
            turn.change(
                j.TokenProofFailed(turn.at_ms, turn.cause, event.token, event.node, event.address)
            )
        return Fault("token.proof", f"the secret of token {event.token} is another one")
    code = why_not(record, turn.at_ms)
    return Fault(code, _WHY[code].format(record.token)) if code else None


def why_not(record: TokenRecord, at_ms: int) -> str:
    """The error code that tells why nobody is let in by this token; empty when somebody is."""
    if record.revoked:
        return "token.revoked"
    if record.wrong >= limits.TOKEN_WRONG_PROOFS:
        return "token.burnt"
    if record.spent >= record.uses:
        return "token.used"
    return "token.expired" if record.expires_at_ms <= at_ms else ""


_WHY = {
    "token.revoked": "token {} was revoked; nothing was changed on this machine",
    "token.burnt": "token {} met too many wrong secrets; nothing was changed on this machine",
    "token.used": "token {} was used as often as it may be; nothing was changed on this machine",
    "token.expired": "token {} is over; nothing was changed on this machine",
}
