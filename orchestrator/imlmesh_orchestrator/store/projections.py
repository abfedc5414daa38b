"""From the changes of one commit to the rows of all tables, merged per table and key.

The one rule: a projection holds nothing that the changes do not say; it exists so that people's
questions need not fold. A row that one commit touches several times is written once.
Deliberately absent: reading; that is `views`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.store.codec import encode, plan_document
from imlmesh_orchestrator.store.permits import RARE
from imlmesh_orchestrator.store.recent import ChangeRow, OutflowRow
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import ActionState, Admission, DispatchState, RunState
from imlmesh_runtime.rows import Many

Statement = tuple[str | Many, Sequence[Sequence[Any]]]

_CHANGE = Many("INSERT INTO changes (seq, run, at_ms, cause, kind, version, body) VALUES")
_OUTFLOW = Many("INSERT INTO outflow (seq, file, id, body) VALUES")
_ACTION = Many(
    """INSERT OR REPLACE INTO actions
    (run, action, seq, state, at_ms, code, message, reasons, retry_at_ms) VALUES"""
)
_DISPATCH = Many(
    "INSERT INTO dispatches (dispatch, unit, effect, planned_seq, planned_at_ms, state) VALUES"
)
_DISPATCH_HELD = Many(
    "WITH held (new, name) AS (VALUES",
    ") UPDATE dispatches SET state = held.new FROM held WHERE dispatch = held.name",
    one="UPDATE dispatches SET state = ? WHERE dispatch = ?",
)
_DISPATCH_ENDED = Many(
    "WITH ended (new, unit_state, ms, took_ms, fault, text, result, name) AS (VALUES",
    """) UPDATE dispatches SET state = ended.new, action_state = ended.unit_state,
    ended_at_ms = ended.ms, duration_ms = ended.took_ms, code = ended.fault,
    message = ended.text, result_seq = ended.result FROM ended WHERE dispatch = ended.name""",
    one="""UPDATE dispatches SET state = ?, action_state = ?, ended_at_ms = ?,
    duration_ms = ?, code = ?, message = ?, result_seq = ? WHERE dispatch = ?""",
)
_RUN = """INSERT INTO runs (counter, run, digest, plan_id, description, actions, asked_by, priority,
    starts_at_ms, file, places, submitted_at_ms, expires_at_ms)
    VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)"""
_RUN_RETRIED = "UPDATE runs SET retry_of = ?, retried_seq = ? WHERE run = ?"
_RUN_STATE = "UPDATE runs SET state = ? WHERE run = ?"
_RUN_ENDED = """UPDATE runs SET state = ?, code = ?, message = ?, unconfirmed = ?,
    compensation_pending = ?, ended_at_ms = ? WHERE run = ?"""
_PLAN = "INSERT OR IGNORE INTO plans (digest, plan_id, document, at_ms) VALUES (?,?,?,?)"
_EPOCH = "INSERT INTO epochs (epoch, seq, at_ms) VALUES (?,?,?)"
_NODE = """INSERT INTO nodes (node, alias, profile, described_seq) VALUES (?,?,?,?)
    ON CONFLICT (node) DO UPDATE SET alias = excluded.alias, profile = excluded.profile,
    described_seq = excluded.described_seq"""
_ESCALATED = "INSERT OR REPLACE INTO escalations (node, seq) VALUES (?,?)"
_ENROLLED = "INSERT INTO enrolled (node, alias, profile, seq) VALUES (?,?,?,?)"
_CERTIFICATE = "INSERT INTO certificates (serial, node, not_after_ms, seq) VALUES (?,?,?,?)"
_OLD_CERTIFICATES = "DELETE FROM certificates WHERE node = ? AND not_after_ms < ?"
_LIVENESS = """INSERT INTO nodes (node, liveness, reason, since_ms, liveness_seq)
    VALUES (?,?,?,?,?) ON CONFLICT (node) DO UPDATE SET liveness = excluded.liveness,
    reason = excluded.reason, since_ms = excluded.since_ms, liveness_seq = excluded.liveness_seq"""
_ADMISSION = """INSERT INTO admissions
    (node, admission, reason, decided_by, since_ms, until_ms, seq) VALUES (?,?,?,?,?,?,?)
    ON CONFLICT (node) DO UPDATE SET reason = excluded.reason, decided_by = excluded.decided_by,
    since_ms = iif(admission = excluded.admission, since_ms, excluded.since_ms),
    until_ms = excluded.until_ms, seq = excluded.seq, admission = excluded.admission"""
_EVIDENCE = "INSERT INTO evidence (seq, node, at_ms, kind, text, verdict) VALUES (?,?,?,?,?,?)"
_LABELS = "INSERT OR REPLACE INTO labels (node, labels, seq) VALUES (?,?,?)"
_GROUP = "INSERT OR REPLACE INTO groups (name, nodes, seq) VALUES (?,?,?)"
_APPROVAL = """INSERT INTO approvals (counter, approval, kind, run, action, dispatch, message,
    options, on_expiry, asked_at_ms, expires_at_ms, risk, digest, state)
    VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,'pending')"""
_APPROVAL_CLOSED = """UPDATE approvals SET state = ?, option = ?, answered_by = ?, closed_at_ms = ?
    WHERE approval = ?"""
_MEMORY = """INSERT OR REPLACE INTO memory (session, key, seq, at_ms, size, written_by)
    VALUES (?,?,?,?,?,?)"""
_NONCE = "INSERT INTO nonces (seq, nonce) VALUES (?,?)"
_OLD_NONCES = """DELETE FROM nonces WHERE seq IN
    (SELECT seq FROM nonces ORDER BY seq DESC LIMIT -1 OFFSET ?)"""

_PLANNED = str(DispatchState.PLANNED)
_ACCEPTED = str(DispatchState.ACCEPTED)
_RUNNING = str(DispatchState.RUNNING)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a submitted plan was written: its file, and line and column of each action."""

    file: str | None
    places: Mapping[str, tuple[int, int]]


class Batch:
    """The rows of one commit. `add` every change in order, then take `statements`.

    `known_plans` are digests of plans that are stored; those of this commit are added to them.
    """

    def __init__(self, known_plans: set[str]) -> None:
        self._known_plans = known_plans
        self.changes: list[ChangeRow] = []
        self.outflow: list[OutflowRow] = []
        self._planned: list[tuple[Any, ...]] = []
        #: state by dispatch, of those that go on; and the rows of those that end
        self._held: dict[str, str] = {}
        self._ended: dict[str, tuple[Any, ...]] = {}
        self._actions: dict[tuple[str, str], tuple[Any, ...]] = {}
        #: rows of everything rare, in the order of the changes
        self._others: list[Statement] = []

    def add(self, seq: int, change: c.Change, sources: dict[str, Source]) -> None:
        """Append the change's row and what it means for the projections."""
        row = encode(change)
        self.changes.append((seq, *row))
        project = _PROJECT.get(type(change))
        if project is not None:
            project(self, seq, change)
        elif type(change) is c.RunCreated:
            self._run_created(seq, change, sources.pop(change.cause, None))
        elif type(change) in RARE:
            for sql, values in RARE[type(change)](seq, change):
                self._other(sql, *values)

    def statements(self) -> list[Statement]:
        """What to execute, in this order, in one transaction."""
        ordered: list[Statement] = [
            (_CHANGE, self.changes),
            *self._others,
            (_DISPATCH, self._planned),
            (_DISPATCH_HELD, [(state, dispatch) for dispatch, state in self._held.items()]),
            (_DISPATCH_ENDED, list(self._ended.values())),
            (_ACTION, list(self._actions.values())),
            (_OUTFLOW, self.outflow),
        ]
        return [(sql, rows) for sql, rows in ordered if rows]

    def _other(self, sql: str, *row: Any) -> None:
        self._others.append((sql, (row,)))

    def _action(
        self,
        seq: int,
        change: c.RunChange,
        action: str,
        state: ActionState,
        fault: Fault | None,
        reasons: bytes | None = None,
        retry_at_ms: int | None = None,
    ) -> None:
        code, message = (fault.code, fault.message) if fault else (None, None)
        told = (str(state), change.at_ms, code, message, reasons, retry_at_ms)
        self._actions[change.run, action] = (change.run, action, seq, *told)

    def _dispatch_planned(self, seq: int, change: c.DispatchPlanned) -> None:
        effect, key = str(change.effect), change.action
        unit = key if "@" in key or "~" in key else None
        self._planned.append((change.dispatch, unit, effect, seq, change.at_ms, _PLANNED))

    def _dispatch_accepted(self, seq: int, change: c.DispatchAccepted) -> None:
        self._held[change.dispatch] = _ACCEPTED

    def _dispatch_started(self, seq: int, change: c.DispatchStarted) -> None:
        self._held[change.dispatch] = _RUNNING

    def _dispatch_ended(self, seq: int, change: c.DispatchEnded) -> None:
        code, message = (change.fault.code, change.fault.message) if change.fault else (None, None)
        row = (str(change.state), None, change.at_ms, None, code, message, None, change.dispatch)
        self._ended[change.dispatch] = row

    def _result_taken(self, seq: int, change: c.ResultTaken) -> None:
        code, message = (change.fault.code, change.fault.message) if change.fault else (None, None)
        unit_state = change.action_state and str(change.action_state)
        told = (change.at_ms, change.duration_ms, code, message, seq, change.dispatch)
        self._ended[change.dispatch] = (str(change.state), unit_state, *told)
        self.outflow.append((seq, "output", change.dispatch, None))

    def _result_kept(self, seq: int, change: c.ResultKept) -> None:
        # its own id: evidence never takes the place of the result that counted
        self.outflow.append((seq, "output", f"{change.dispatch}@{seq}", None))

    def _action_waiting(self, seq: int, change: c.ActionWaiting) -> None:
        reasons = msgpack.packb(dict(change.reasons))
        self._action(seq, change, change.action, ActionState.WAITING, None, reasons)

    def _action_ended(self, seq: int, change: c.ActionEnded) -> None:
        self._action(seq, change, change.action, change.state, change.fault)

    def _actions_ended(self, seq: int, change: c.ActionsEnded) -> None:
        for action in change.actions:
            self._action(seq, change, action, change.state, change.fault)

    def _action_unknown(self, seq: int, change: c.ActionUnknown) -> None:
        self._action(seq, change, change.action, ActionState.UNKNOWN, change.fault)

    def _retry_planned(self, seq: int, change: c.RetryPlanned) -> None:
        fault, at_ms = change.fault, change.retry_at_ms
        self._action(seq, change, change.action, ActionState.WAITING, fault, retry_at_ms=at_ms)

    def _members_fixed(self, seq: int, change: c.MembersFixed) -> None:
        for node in change.nodes:
            key = f"{change.action}@{node}"
            self._action(seq, change, key, ActionState.PENDING, None)

    def _compensations_planned(self, seq: int, change: c.CompensationsPlanned) -> None:
        for key, *_ in change.compensations:
            self._action(seq, change, key, ActionState.PENDING, None)

    def _run_created(self, seq: int, change: c.RunCreated, source: Source | None) -> None:
        plan = change.plan
        if change.digest not in self._known_plans:
            self._known_plans.add(change.digest)
            document = plan_document(plan)
            self._other(_PLAN, change.digest, plan.plan_id, document, change.at_ms)
            self.outflow.append((seq, "input", change.digest, document))
        self._other(
            _RUN,
            change.counter,
            change.run,
            change.digest,
            plan.plan_id,
            plan.description,
            len(plan.actions),
            change.by,
            change.priority,
            change.starts_at_ms,
            source and source.file,
            source and msgpack.packb(dict(source.places)),
            change.at_ms,
            change.expires_at_ms,
        )

    def _run_retried(self, seq: int, change: c.RunRetried) -> None:
        self._other(_RUN_RETRIED, change.of, seq, change.run)
        for key in change.kept:
            if "@" not in key:  # members have rows once their action's nodes are fixed
                self._action(seq, change, key, ActionState.COMPLETED, None)
        fault = Fault("action.not_needed", f"left alone by the retry of {change.of}")
        for action in change.left:
            self._action(seq, change, action, ActionState.SKIPPED, fault)

    def _run_paused(self, seq: int, change: c.RunPaused) -> None:
        self._other(_RUN_STATE, str(RunState.PAUSED), change.run)

    def _run_resumed(self, seq: int, change: c.RunResumed) -> None:
        self._other(_RUN_STATE, str(RunState.RUNNING), change.run)

    def _run_cancelling(self, seq: int, change: c.RunCancelling) -> None:
        self._other(_RUN_STATE, str(RunState.CANCELLING), change.run)

    def _run_aborting(self, seq: int, change: c.RunAborting) -> None:
        self._other(
            "UPDATE runs SET code = ?, message = ? WHERE run = ?",
            change.fault.code,
            change.fault.message,
            change.run,
        )

    def _run_ended(self, seq: int, change: c.RunEnded) -> None:
        fault = change.fault
        self._other(
            _RUN_ENDED,
            str(change.state),
            fault and fault.code,
            fault and fault.message,
            change.unconfirmed,
            change.compensation_pending,
            change.at_ms,
            change.run,
        )

    def _epoch_raised(self, seq: int, change: c.EpochRaised) -> None:
        self._other(_EPOCH, change.epoch, seq, change.at_ms)

    def _node_enrolled(self, seq: int, change: c.NodeEnrolled) -> None:
        self._other(_ENROLLED, change.node, change.alias, change.profile, seq)
        self._other("DELETE FROM joins WHERE identity = ?", change.identity)

    def _certificate_issued(self, seq: int, change: c.CertificateIssued) -> None:
        self._other(_OLD_CERTIFICATES, change.node, change.at_ms)
        self._other(_CERTIFICATE, change.serial, change.node, change.not_after_ms, seq)

    def _node_described(self, seq: int, change: c.NodeDescribed) -> None:
        self._other(_NODE, change.node, change.alias, change.profile, seq)

    def _liveness_changed(self, seq: int, change: c.LivenessChanged) -> None:
        self._other(_LIVENESS, change.node, str(change.liveness), change.reason, change.at_ms, seq)

    def _node_escalated(self, seq: int, change: c.NodeEscalated) -> None:
        self._other(_ESCALATED, change.node, seq)

    def _admission_changed(self, seq: int, change: a.AdmissionChanged) -> None:
        if change.admission is Admission.OPEN:
            self._other("DELETE FROM admissions WHERE node = ?", change.node)
            return
        told = (change.reason, change.by, change.at_ms, change.until_ms)
        self._other(_ADMISSION, change.node, str(change.admission), *told, seq)

    def _evidence_kept(self, seq: int, change: a.EvidenceKept) -> None:
        row = (change.node, change.at_ms, change.evidence, change.detail, change.verdict)
        self._other(_EVIDENCE, seq, *row)

    def _labels_changed(self, seq: int, change: c.LabelsChanged) -> None:
        self._other(_LABELS, change.node, json.dumps(dict(change.labels)), seq)

    def _group_changed(self, seq: int, change: c.GroupChanged) -> None:
        self._other(_GROUP, change.group, json.dumps(change.nodes), seq)

    def _memory_written(self, seq: int, change: c.MemoryWritten) -> None:
        row = (change.session, change.key, seq, change.at_ms, change.size, change.by)
        self._other(_MEMORY, *row)

    def _memory_dropped(self, seq: int, change: c.MemoryDropped) -> None:
        self._other("DELETE FROM memory WHERE session = ? AND key = ?", change.session, change.key)

    def _nonce_used(self, seq: int, change: c.NonceUsed) -> None:
        self._other(_NONCE, seq, change.nonce)
        self._other(_OLD_NONCES, limits.NONCES)

    def _doubt(self, seq: int, change: c.DoubtRaised | c.DoubtsAcknowledged) -> None:
        self._other("INSERT INTO doubts (seq) VALUES (?)", seq)

    def _approval_asked(self, seq: int, change: c.ApprovalAsked) -> None:
        if change.kind != "lost_effect":
            self._action(seq, change, change.action, ActionState.AWAITING_APPROVAL, None)
        self._other(
            _APPROVAL,
            change.counter,
            change.approval,
            change.kind,
            change.run,
            change.action,
            change.dispatch,
            change.message,
            json.dumps(change.options),
            change.on_expiry,
            change.at_ms,
            change.expires_at_ms,
            change.risk,
            change.digest,
        )

    def _approval_closed(self, seq: int, change: c.ApprovalClosed) -> None:
        self._other(
            _APPROVAL_CLOSED,
            str(change.state),
            change.option,
            change.by,
            change.at_ms,
            change.approval,
        )


_PROJECT: dict[type[c.Change], Callable[[Batch, int, Any], None]] = {
    c.DispatchPlanned: Batch._dispatch_planned,
    c.DispatchAccepted: Batch._dispatch_accepted,
    c.DispatchStarted: Batch._dispatch_started,
    c.DispatchEnded: Batch._dispatch_ended,
    c.ResultTaken: Batch._result_taken,
    c.ResultKept: Batch._result_kept,
    c.MembersFixed: Batch._members_fixed,
    c.CompensationsPlanned: Batch._compensations_planned,
    c.ActionWaiting: Batch._action_waiting,
    c.RetryPlanned: Batch._retry_planned,
    c.ActionEnded: Batch._action_ended,
    c.ActionsEnded: Batch._actions_ended,
    c.ActionUnknown: Batch._action_unknown,
    c.RunRetried: Batch._run_retried,
    c.RunPaused: Batch._run_paused,
    c.RunResumed: Batch._run_resumed,
    c.RunCancelling: Batch._run_cancelling,
    c.RunAborting: Batch._run_aborting,
    c.RunEnded: Batch._run_ended,
    c.EpochRaised: Batch._epoch_raised,
    c.NodeEnrolled: Batch._node_enrolled,
    c.CertificateIssued: Batch._certificate_issued,
    c.NodeDescribed: Batch._node_described,
    c.LivenessChanged: Batch._liveness_changed,
    c.NodeEscalated: Batch._node_escalated,
    a.AdmissionChanged: Batch._admission_changed,
    a.EvidenceKept: Batch._evidence_kept,
    c.LabelsChanged: Batch._labels_changed,
    c.GroupChanged: Batch._group_changed,
    c.MemoryWritten: Batch._memory_written,
    c.MemoryDropped: Batch._memory_dropped,
    c.NonceUsed: Batch._nonce_used,
    c.DoubtRaised: Batch._doubt,
    c.DoubtsAcknowledged: Batch._doubt,
    c.ApprovalAsked: Batch._approval_asked,
    c.ApprovalClosed: Batch._approval_closed,
}
