"""Who is let in: ids and the keys behind them.

The one rule: an id is never used again, whatever became of its node; the same identity may come
again, since the answer to its first question may have been lost. Deliberately absent: proofs of who
asks, which are checked before an event is made.
"""

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core.commands import Refuse, Reply
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.core.turn import Turn
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import Admission


def enrol(turn: Turn, event: e.EnrolAsked) -> None:
    """Let a node in, or hand a new certificate to the one that is in."""
    is_known = turn.state.identities.get(event.identity) == event.node
    fault = None
    if turn.state.admission_of(event.node) is Admission.REVOKED:
        fault = Fault("node.revoked", f"{event.node} was removed from this mesh")
    elif not is_known:
        fault = fault_of(turn.state, event.node, event.alias, event.identity)
    if fault is not None:
        turn.command(Refuse(event.cause, fault))
        return
    if not is_known:
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


def grant(turn: Turn, event: e.GrantAsked) -> None:
    """Raise or lower what a node may do at most; its policy stays the ceiling."""
    record = turn.state.enrolled.get(event.node)
    if record is None or turn.state.admission_of(event.node) is Admission.REVOKED:
        turn.command(Refuse(event.cause, Fault("node.not_found", f"no node {event.node}")))
        return
    if record.profile != event.profile:
        granted = (event.node, event.profile, event.by)
        turn.change(j.ProfileGranted(turn.at_ms, turn.cause, *granted))
    turn.command(Reply(event.cause, event.profile))


def fault_of(state: State, node: str, alias: str, identity: bytes) -> Fault | None:
    """Why a new node cannot be `node`, called `alias`: ids, aliases and keys are one node's alone."""
    if node in state.enrolled or node in state.nodes:
        return Fault("node.exists", f"the id {node!r} was used before in this mesh")
    for name in (node, alias):
        if state.find_id(name) is not None:
            return Fault("node.exists", f"{name!r} is what a node of this mesh is called")
    if identity in state.identities:
        return Fault("node.exists", f"this key is the node {state.identities[identity]}")
    if len(state.enrolled) >= limits.ENROLLED_NODES:
        return Fault("node.too_many", f"{limits.ENROLLED_NODES} nodes are enrolled")
    return None
