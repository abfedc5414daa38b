"""Who is let in: ids and the keys behind them.

The one rule: an id is never used again, whatever became of its node; the same identity may come
again, since the answer to its first question may have been lost. Deliberately absent: proofs of who
asks, which are checked before an event is made.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import Admission


def enrol(turn: Turn, event: e.EnrolAsked) -> None:
    """Let a node in, or hand a new certificate to the one that is in."""
    enrolled = turn.state.enrolled
    known = enrolled.get(event.node)
    if known is not None and known.identity != event.identity:
        fault = Fault("node.exists", f"the id {event.node!r} was used before in this mesh")
        turn.command(Refuse(event.cause, fault))
        return
    if turn.state.admission_of(event.node) is Admission.REVOKED:
        fault = Fault("node.revoked", f"{event.node} was removed from this mesh")
        turn.command(Refuse(event.cause, fault))
        return
    if known is None:
        if len(enrolled) >= limits.ENROLLED_NODES:
            fault = Fault("node.too_many", f"{limits.ENROLLED_NODES} nodes are enrolled")
            turn.command(Refuse(event.cause, fault))
            return
        turn.change(
            c.NodeEnrolled(
                turn.at_ms,
                turn.cause,
                event.node,
                event.alias,
                event.identity,
                event.profile,
                event.by,
            )
        )
    turn.change(
        c.CertificateIssued(turn.at_ms, turn.cause, event.node, event.serial, event.not_after_ms)
    )
    turn.command(Reply(event.cause, event.node))
