"""Each change as one sentence for people, and as the small fields that watchers get.

The one rule: a sentence says what happened, to what, where, and why; codes stand in it whole, so
that they can be looked up. Deliberately absent: results, dispatch bytes, plans, manifests.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_orchestrator.store.codec import kind_of
from imlmesh_orchestrator.views.units import Alias, split_unit, unit_text
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.ids import split_dispatch
from imlmesh_protocol.permits import split_permit_run
from imlmesh_protocol.states import ActionState, Admission, ApprovalState

#: fields that stand elsewhere, and values, which may be large
_LEFT_OUT = frozenset({"at_ms", "cause", "run", "result", "value"})
_NAMES = 5


def event_data(seq: int, change: c.Change, alias: Alias) -> dict[str, Any]:
    """What the stream sends of a change."""
    data: dict[str, Any] = {
        "seq": seq,
        "at_ms": change.at_ms,
        "run": getattr(change, "run", None),
        "kind": kind_of(change),
        "cause": change.cause,
        "text": sentence(change, alias),
        "unit": None,
        "action": None,
        "node": None,
        "dispatch": None,
        "state": None,
        "code": None,
    }
    for field in fields(change):
        value = getattr(change, field.name)
        if isinstance(value, Fault):
            data["code"], data["message"] = value.code, value.message
        elif field.name == "kind":
            data["approval_kind"] = value
        elif field.name not in _LEFT_OUT and _is_small(value):
            data[field.name] = list(value) if isinstance(value, tuple) else value
    if isinstance(change, c.LivenessChanged):
        data["state"] = str(change.liveness)
    elif isinstance(change, a.AdmissionChanged):
        data["state"] = str(change.admission)
    elif isinstance(change, c.CompensationsPlanned):
        data["compensations"] = [key for key, *_ in change.compensations]
    if data["action"]:
        data["unit"] = data["action"]
        data["action"], _, data["node"] = split_unit(data["unit"])
    if data["dispatch"]:
        _, data["action"], data["node"], _ = split_dispatch(data["dispatch"])
    return data


def story_entry(seq: int, change: c.Change, alias: Alias) -> dict[str, Any]:
    """One entry of a run's story."""
    data = event_data(seq, change, alias)
    names = ("seq", "at_ms", "kind", "cause", "text", "unit", "action", "node", "dispatch")
    return {name: data[name] for name in names}


def sentence(change: c.Change, alias: Alias) -> str:
    """The change in words."""
    return _TELL[type(change)](change, alias)


def why(fault: Fault | None) -> str:
    """`: code: message`, or nothing."""
    return f": {fault.code}: {fault.message}" if fault else ""


def _word(state: str) -> str:
    """A state for people: `rolled back`."""
    return state.replace("_", " ")


def _is_small(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | tuple)


def _attempt(dispatch: str, alias: Alias) -> str:
    _, action, node, number = split_dispatch(dispatch)
    again = f" (attempt {number})" if number > 1 else ""
    return f"{action} on {alias(node)}{again}"


def _names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more


def _described(change: c.NodeDescribed, alias: Alias) -> str:
    modules = ", ".join(sorted(change.manifest.modules)) or "nothing"
    return f"{change.alias} introduced itself: profile {change.profile}, offers {modules}"


def _admission(change: a.AdmissionChanged, alias: Alias) -> str:
    until = f", until {utc(change.until_ms)}" if change.until_ms else ""
    node = alias(change.node)
    if change.admission is Admission.OPEN:
        return f"{change.by} released {node}: {change.reason}"
    return f"{node} is {change.admission} by {change.by}{until}: {change.reason}"


def _evidence(change: a.EvidenceKept, alias: Alias) -> str:
    return f"{alias(change.node)}: {change.detail} ({change.evidence}: {change.verdict})"


def _labels(change: c.LabelsChanged, alias: Alias) -> str:
    labels = ", ".join(f"{name}={value}" for name, value in sorted(change.labels.items()))
    return f"{alias(change.node)} has the labels {labels or '(none)'}"


def _enrolled(change: c.NodeEnrolled, alias: Alias) -> str:
    return f"{change.by} let {change.alias} in as {change.profile}"


def _certificate(change: c.CertificateIssued, alias: Alias) -> str:
    return f"{alias(change.node)} got the certificate {change.serial}"


def _token(change: j.TokenCreated, alias: Alias) -> str:
    uses = f"{change.uses} node{'s' * (change.uses != 1)}"
    groups = f", groups {_names(change.groups)}" if change.groups else ""
    until = utc(change.expires_at_ms)
    return f"{change.by} made token {change.token} for {uses} as {change.profile}{groups}, until {until}"


def _held(change: j.JoinHeld, alias: Alias) -> str:
    shown = f"shows {change.code}" if change.code else "has a token"
    return f"{change.node} at {change.address} waits to join as {change.profile} and {shown}"


def _window(change: j.JoinWindowSet, alias: Alias) -> str:
    if change.until_ms:
        return f"{change.by} lets in who asks until {utc(change.until_ms)}"
    return f"{change.by} lets nobody in unasked any more"


def _group(change: c.GroupChanged, alias: Alias) -> str:
    if not change.nodes:
        return f"group {change.group} was removed"
    return f"group {change.group} is {_names(tuple(map(alias, change.nodes)))}"


def _created(change: c.RunCreated, alias: Alias) -> str:
    if split_permit_run(change.run) is not None:
        return f"permit {change.by} let its node run {change.plan.plan_id} by itself"
    count = len(change.plan.actions)
    more = f", priority {change.priority}" if change.priority else ""
    if change.starts_at_ms > change.at_ms:
        more += f", to start at {utc(change.starts_at_ms)}"
    return f"{change.by} submitted {change.plan.plan_id}: {count} action{'s' * (count != 1)}{more}"


def _permit(change: p.PermitGranted, alias: Alias) -> str:
    times = f"{change.budget} time{'s' * (change.budget != 1)}"
    what = f"{alias(change.node)} run {change.plan.plan_id} by itself {times} until"
    return f"{change.by} lets {what} {utc(change.to_ms)}: {change.permit}"


def _retried(change: c.RunRetried, alias: Alias) -> str:
    parts = [f"it retries {change.of}", f"keeps {len(change.kept)} results"]
    if change.again:
        parts.append(f"asks before it repeats {_names(tuple(change.again))}")
    if change.left:
        parts.append(f"leaves alone {_names(change.left)}")
    return ", ".join(parts)


def _members(change: c.MembersFixed, alias: Alias) -> str:
    nodes = _names(tuple(map(alias, change.nodes))) or "nobody"
    return f"{change.action} is done by {nodes}"


def _retry(change: c.RetryPlanned, alias: Alias) -> str:
    unit, wait_s = unit_text(change.action, alias), (change.retry_at_ms - change.at_ms) / 1_000
    times = f"{change.failures} time{'s' * (change.failures != 1)}"
    return f"{unit} failed {times}, is tried again in {max(0, wait_s):.1f} s{why(change.fault)}"


def _compensations(change: c.CompensationsPlanned, alias: Alias) -> str:
    order = _names(tuple(unit_text(undone, alias) for _, undone, *_ in change.compensations))
    return f"what is undone, in this order: {order or 'nothing'}"


def utc(at_ms: int) -> str:
    """A moment for people, to the second."""
    return datetime.fromtimestamp(at_ms / 1_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _frozen(change: c.GroupFrozen, alias: Alias) -> str:
    nodes = _names(tuple(map(alias, change.nodes))) or "nobody"
    return f"group {change.group} stands for {nodes} in this run"


def _waiting(change: c.ActionWaiting, alias: Alias) -> str:
    reasons = waiting_text(change.reasons, alias)
    unit = unit_text(change.action, alias)
    return f"{unit} waits for a node" + (f": {reasons}" if reasons else "")


def waiting_text(reasons: Mapping[str, str], alias: Alias) -> str:
    """Why each node was left out, in a few words."""
    return _names(tuple(f"{alias(node)} {code}" for node, code in sorted(reasons.items())))


def _planned(change: c.DispatchPlanned, alias: Alias) -> str:
    again = f" (attempt {change.attempt})" if change.attempt > 1 else ""
    action, sign, _ = split_unit(change.action)
    if sign == "~":
        return f"undoing {action} goes to {alias(change.node)}{again}"
    return f"{action} goes to {alias(change.node)}{again}"


def _ended(change: c.DispatchEnded, alias: Alias) -> str:
    return f"{_attempt(change.dispatch, alias)} is {_word(change.state)}{why(change.fault)}"


def _result(change: c.ResultTaken, alias: Alias) -> str:
    took = f" after {change.duration_ms} ms"
    undone, sign, _ = split_unit(change.action)
    # a driver's own undo has the dispatch ids of the action that it undoes
    name = f"undoing {undone}: " if sign == "~" else ""
    return (
        f"{name}{_attempt(change.dispatch, alias)} {_word(change.state)}{took}{why(change.fault)}"
    )


def _kept(change: c.ResultKept, alias: Alias) -> str:
    return (
        f"a result of {_attempt(change.dispatch, alias)} does not count and is kept as evidence: "
        f"{_word(change.outcome)}"
    )


def _unknown(change: c.ActionUnknown, alias: Alias) -> str:
    return f"nobody knows whether {unit_text(change.action, alias)} happened{why(change.fault)}"


def _asked(change: c.ApprovalAsked, alias: Alias) -> str:
    return f"{change.approval} asks: {change.message} ({', '.join(change.options)})"


def _closed(change: c.ApprovalClosed, alias: Alias) -> str:
    return closed_text(change.approval, change.state, change.option, change.by)


def closed_text(approval: str, state: str, option: str | None, by: str) -> str:
    """How a question to a person ended: by whose answer, or without one."""
    if state == ApprovalState.SUPERSEDED:
        return f"{approval} is superseded: what it asked about ended or changed before anybody answered"
    if state == ApprovalState.EXPIRED:
        return f"{approval} is expired: nobody answered in time, which means {option}"
    return f"{approval} is {state}: {by} chose {option}"


def _memory_dropped(change: c.MemoryDropped, alias: Alias) -> str:
    what = f"memory {change.key} of session {change.session}"
    if "/" in change.by:  # an action of a run, not a person
        return f"{what} is gone: what {change.by} gave takes too much room"
    return f"{change.by} removed {what}"


def _ended_unit(change: c.ActionEnded, alias: Alias) -> str:
    unit = unit_text(change.action, alias)
    if "@" in change.action and change.state is ActionState.COMPLETED and change.fault is None:
        # without a result here and a person's word it was done in the run that this one retries
        return f"{unit} is kept"
    return f"{unit} {_word(change.state)}{why(change.fault)}"


def _ended_units(change: c.ActionsEnded, alias: Alias) -> str:
    units = _names(tuple(unit_text(key, alias) for key in change.actions))
    return f"{units} {_word(change.state)}{why(change.fault)}"


def _run_ended(change: c.RunEnded, alias: Alias) -> str:
    flags = ", unconfirmed by a node" if change.unconfirmed else ""
    if change.compensation_pending:
        flags += ", not all was undone"
    return f"the run {change.state}{flags}{why(change.fault)}"


_TELL: dict[type[c.Change], Callable[[Any, Alias], str]] = {
    c.EpochRaised: lambda change, alias: f"the orchestrator started, epoch {change.epoch}",
    c.NodeDescribed: _described,
    c.NodeReturned: lambda change, alias: f"{alias(change.node)} opened session {change.session}",
    c.LivenessChanged: lambda change, alias: (
        f"{alias(change.node)} is {change.liveness} ({change.reason})"
    ),
    c.VerdictsFrozen: lambda change, alias: (
        f"alarm: {len(change.silent)} of {change.of} nodes fell silent together, none is called lost: "
        + ", ".join(map(alias, change.silent[: limits.WAITING_REASONS]))
    ),
    c.VerdictsResumed: lambda change, alias: (
        f"silence is judged again ({change.by}: {change.reason})"
    ),
    c.NodeEscalated: lambda change, alias: (
        f"{alias(change.node)} asks for a person{why(change.fault)}"
    ),
    a.AdmissionChanged: _admission,
    a.EvidenceKept: _evidence,
    c.LabelsChanged: _labels,
    c.NodeEnrolled: _enrolled,
    c.CertificateIssued: _certificate,
    j.TokenCreated: _token,
    j.TokenRevoked: lambda change, alias: f"{change.by} revoked token {change.token}",
    j.TokenSpent: lambda change, alias: f"{alias(change.node)} used token {change.token}",
    j.TokenProofFailed: lambda change, alias: (
        f"{change.address} knows token {change.token} without its secret, as {change.node}"
    ),
    j.JoinHeld: _held,
    j.JoinIgnored: lambda change, alias: f"{change.by} ignores {change.node}",
    j.JoinWindowSet: _window,
    j.ProfileGranted: lambda change, alias: (
        f"{change.by} lets {alias(change.node)} be {change.profile}"
    ),
    j.NodeAliased: lambda change, alias: f"{change.node} is called {change.alias}",
    p.PermitGranted: _permit,
    p.PermitEnded: lambda change, alias: (
        f"permit {change.permit} of {alias(change.node)} holds no more: {change.why} ({change.by})"
    ),
    p.PermitRunReported: lambda change, alias: (
        f"{alias(change.node)} ran {change.permit} by itself, number {change.number}: {change.of}"
    ),
    c.GroupChanged: _group,
    c.MemoryWritten: lambda change, alias: (
        f"{change.by} wrote memory {change.key} of session {change.session}: {change.size} bytes"
    ),
    c.MemoryDropped: _memory_dropped,
    c.DoubtRaised: lambda change, alias: (
        f"{alias(change.witness)} holds a seal of {change.size} entries that the ledger denies"
    ),
    c.DoubtsAcknowledged: lambda change, alias: (
        f"{change.by} goes on without what the ledger lost: {change.reason}"
    ),
    c.NonceUsed: lambda change, alias: f"nonce {change.nonce} names {change.of}",
    c.RunCreated: _created,
    c.RunRetried: _retried,
    c.RunPaused: lambda change, alias: f"{change.by} paused the run",
    c.RunResumed: lambda change, alias: f"{change.by} resumed the run",
    c.MembersFixed: _members,
    c.GroupFrozen: _frozen,
    c.ActionWaiting: _waiting,
    c.DispatchPlanned: _planned,
    c.DispatchAccepted: lambda change, alias: f"accepted: {_attempt(change.dispatch, alias)}",
    c.DispatchStarted: lambda change, alias: f"started: {_attempt(change.dispatch, alias)}",
    c.DispatchEnded: _ended,
    c.ResultTaken: _result,
    c.RetryPlanned: _retry,
    c.ResultKept: _kept,
    c.ActionEnded: _ended_unit,
    c.ActionsEnded: _ended_units,
    c.ActionUnknown: _unknown,
    c.ApprovalAsked: _asked,
    c.ApprovalClosed: _closed,
    c.RunCancelling: lambda change, alias: f"{change.by} cancels the run",
    c.RunAborting: lambda change, alias: (
        f"{change.action or 'the run'} failed: nothing new starts{why(change.fault)}"
    ),
    c.RollbackDue: lambda change, alias: f"{change.action} and what led to it will be undone",
    c.CompensationsPlanned: _compensations,
    c.RunEnded: _run_ended,
}
