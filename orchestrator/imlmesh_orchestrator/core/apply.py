"""Changes become state: the only place where the durable state is written.

The one rule: `apply` decides nothing and cannot fail on a change that was once decided, so a
replay of the stored changes gives the same state. A transition that the tables of
`protocol/states.py` do not list is a bug and stops the engine (`internal.invariant`).
"""

from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import apply_joins, apply_members, apply_permits, apply_runs
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core.joining_state import EnrolledRecord
from imlmesh_orchestrator.core.state import AdmissionRecord, ApprovalRecord, NodeRecord, State
from imlmesh_protocol import limits, states
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.states import ActionState, Admission, ApprovalState, move


def apply(state: State, change: c.Change) -> None:
    """Write one change into `state`."""
    APPLY[type(change)](state, change)


def _epoch_raised(state: State, change: c.EpochRaised) -> None:
    state.epoch = change.epoch


def _node_enrolled(state: State, change: c.NodeEnrolled) -> None:
    state.enrolled[change.node] = EnrolledRecord(
        change.node, change.alias, change.identity, change.profile, change.by, change.at_ms
    )
    state.identities[change.identity] = change.node
    state.aliases[change.alias] = change.node
    state.joins.pop(change.identity, None)


def _certificate_issued(state: State, change: c.CertificateIssued) -> None:
    held = state.enrolled[change.node].certificates
    for serial in [serial for serial, end_ms in held.items() if end_ms < change.at_ms]:
        del held[serial]
    held[change.serial] = change.not_after_ms


def _node_described(state: State, change: c.NodeDescribed) -> None:
    record = state.nodes.get(change.node)
    if record is None:
        record = state.nodes[change.node] = NodeRecord(
            change.node,
            change.alias,
            change.boot,
            change.session,
            change.manifest,
            change.facts,
            change.profile,
            change.heartbeat_ms,
            change.lost_ms,
        )
    else:
        _count_risky(state, record.manifest, -1)
    _count_risky(state, change.manifest, 1)
    call(state, change.node, change.alias)
    record.boot, record.session = change.boot, change.session
    record.manifest, record.facts = change.manifest, change.facts
    record.profile = change.profile
    record.heartbeat_ms, record.lost_ms = change.heartbeat_ms, change.lost_ms
    record.described += 1
    _touch(state, change.node)


def call(state: State, node: str, alias: str) -> None:
    """From now on `alias` means the node, and what it was called before means nothing."""
    for record in (state.nodes.get(node), state.enrolled.get(node)):
        if record is not None:
            if state.aliases.get(record.alias) == node:
                del state.aliases[record.alias]
            record.alias = alias
    state.aliases[alias] = node


def _node_aliased(state: State, change: j.NodeAliased) -> None:
    call(state, change.node, change.alias)
    if change.node in state.nodes:
        _touch(state, change.node)


def _count_risky(state: State, manifest: Manifest, by: int) -> None:
    for module, offered in manifest.modules.items():
        for action, spec in offered.actions.items():
            if spec.impact > limits.IMPACT_WITHOUT_APPROVAL:
                place = (module, action)
                state.risky[place] = state.risky.get(place, 0) + by
                if not state.risky[place]:
                    del state.risky[place]


def _touch(state: State, node: str) -> None:
    state.generation += 1
    state.touched.pop(node, None)
    state.touched[node] = state.generation


def _node_returned(state: State, change: c.NodeReturned) -> None:
    record = state.nodes[change.node]
    record.boot, record.session = change.boot, change.session


def _liveness_changed(state: State, change: c.LivenessChanged) -> None:
    record = state.nodes[change.node]
    record.liveness = move(states.LIVENESS, change.node, record.liveness, change.liveness)
    _touch(state, change.node)


def _node_escalated(state: State, change: c.NodeEscalated) -> None:
    record = state.nodes[change.node]
    record.escalation, record.escalated_ms = change.fault, change.at_ms


def _admission_changed(state: State, change: a.AdmissionChanged) -> None:
    node = change.node
    new = move(states.ADMISSION, node, state.admission_of(node), change.admission)
    if new is Admission.OPEN:
        del state.admissions[node]
    else:
        state.admissions[node] = AdmissionRecord(
            node, new, change.reason, change.by, change.at_ms, change.until_ms
        )
    if node in state.nodes:
        _touch(state, node)


def _evidence_kept(state: State, change: a.EvidenceKept) -> None:
    """Rows for people; what is counted is volatile."""


def _labels_changed(state: State, change: c.LabelsChanged) -> None:
    state.nodes[change.node].labels = change.labels
    _touch(state, change.node)


def _group_changed(state: State, change: c.GroupChanged) -> None:
    if change.nodes:
        state.groups[change.group] = change.nodes
    else:
        state.groups.pop(change.group, None)
    state.generation += 1


def _memory_written(state: State, change: c.MemoryWritten) -> None:
    place = (change.session, change.key)
    _take_out(state, place)
    state.memory[place], state.memory_sizes[place] = change.value, change.size
    state.memory_bytes += change.size


def _memory_dropped(state: State, change: c.MemoryDropped) -> None:
    _take_out(state, (change.session, change.key))


def _take_out(state: State, place: tuple[str, str]) -> None:
    if place in state.memory:
        del state.memory[place]
        state.memory_bytes -= state.memory_sizes.pop(place)


def _nonce_used(state: State, change: c.NonceUsed) -> None:
    state.nonces[change.nonce] = (change.of, change.digest)
    if len(state.nonces) > limits.NONCES:
        del state.nonces[next(iter(state.nonces))]


def _doubt_raised(state: State, change: c.DoubtRaised) -> None:
    state.doubts[change.size, change.root] = change.witness


def _doubts_acknowledged(state: State, change: c.DoubtsAcknowledged) -> None:
    state.acknowledged |= dict.fromkeys(state.doubts)
    state.doubts.clear()


def _approval_asked(state: State, change: c.ApprovalAsked) -> None:
    state.approvals[change.approval] = ApprovalRecord(
        change.approval,
        change.kind,
        change.run,
        change.action,
        change.dispatch,
        change.options,
        change.on_expiry,
        change.expires_at_ms,
        change.digest,
    )
    state.runs[change.run].questions[change.action] = change.approval
    state.approval_counter = change.counter
    if change.kind != "lost_effect":
        record = state.runs[change.run].units[change.action]
        new = ActionState.AWAITING_APPROVAL
        record.state, record.dispatch = move(states.ACTION, record.key, record.state, new), ""


def _approval_closed(state: State, change: c.ApprovalClosed) -> None:
    record = state.approvals.pop(change.approval)
    del state.runs[change.run].questions[record.action]
    record.state = move(states.APPROVAL, change.approval, record.state, change.state)
    if record.kind == "gate" and change.state is ApprovalState.APPROVED:
        state.runs[change.run].units[record.action].approved = record.digest


def _verdicts(state: State, change: c.VerdictsFrozen | c.VerdictsResumed) -> None:
    """Rows for people; a freeze itself does not outlive the process."""


APPLY: dict[type[c.Change], Callable[[State, Any], None]] = {
    c.EpochRaised: _epoch_raised,
    c.NodeEnrolled: _node_enrolled,
    c.CertificateIssued: _certificate_issued,
    j.NodeAliased: _node_aliased,
    c.NodeDescribed: _node_described,
    c.NodeReturned: _node_returned,
    c.LivenessChanged: _liveness_changed,
    c.NodeEscalated: _node_escalated,
    a.AdmissionChanged: _admission_changed,
    a.EvidenceKept: _evidence_kept,
    c.VerdictsFrozen: _verdicts,
    c.VerdictsResumed: _verdicts,
    c.LabelsChanged: _labels_changed,
    c.GroupChanged: _group_changed,
    c.MemoryWritten: _memory_written,
    c.MemoryDropped: _memory_dropped,
    c.NonceUsed: _nonce_used,
    c.DoubtRaised: _doubt_raised,
    c.DoubtsAcknowledged: _doubts_acknowledged,
    c.ApprovalAsked: _approval_asked,
    c.ApprovalClosed: _approval_closed,
    **apply_runs.APPLY,
    **apply_members.APPLY,
    **apply_joins.APPLY,
    **apply_permits.APPLY,
}
