"""Which changes the ledger tells of, and what it tells: one line for each class of change.

The one rule: a new kind of entry is one line of `LEDGERED`. Changes of one kind, cause, actor and
subject that follow each other are one entry, so that a message with a hundred results costs one.
Deliberately absent: what is too large; it stands in the ledger as its hash.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import msgpack

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_orchestrator.store.codec import FORMS
from imlmesh_protocol import limits

#: who decided what nobody else did
ORCHESTRATOR = "orchestrator"

#: seq, run, at_ms, cause, kind, body
ChangeRow = tuple[int, str | None, int, str, str, bytes]
#: a field of a change, and what is made of its value
Actor = tuple[str, Callable[[Any], str]]
When = tuple[str, Callable[[Any], bool]]

_DISPATCH_SLASHES = 3

_by: Actor = ("by", str)
_node: Actor = ("dispatch", lambda dispatch: str(dispatch.split("/")[2]))
_of_node: Actor = ("node", str)
_by_person: When = ("by", lambda by: str(by).count("/") != _DISPATCH_SLASHES)
_is_lost: When = ("liveness", lambda liveness: bool(liveness == "lost"))


@dataclass(frozen=True, slots=True)
class Told:
    """What an entry says of a change: the field that is its subject, who did it (none named: the
    orchestrator), the fields that it tells (none named: all), and when at all."""

    subject: str
    actor: Actor | None = None
    names: str = ""
    when: When | None = None


LEDGERED: dict[type[c.Change], Told] = {
    c.EpochRaised: Told("epoch"),
    c.NodeEnrolled: Told("node", _by),
    c.CertificateIssued: Told("node"),
    j.TokenCreated: Told("token", _by, "uses profile groups expires_at_ms by"),
    j.TokenRevoked: Told("token", _by),
    j.TokenSpent: Told("token"),
    j.TokenProofFailed: Told("token"),
    j.JoinHeld: Told("node"),
    j.JoinIgnored: Told("node", _by),
    j.JoinWindowSet: Told("by", _by),
    j.NodeAliased: Told("node"),
    j.ProfileGranted: Told("node", _by),
    c.NodeDescribed: Told("node"),
    c.NodeEscalated: Told("node"),
    c.LivenessChanged: Told("node", when=_is_lost),
    a.AdmissionChanged: Told("node", _by),
    a.EvidenceKept: Told("node"),
    c.VerdictsFrozen: Told("of"),
    c.VerdictsResumed: Told("by", _by),
    c.LabelsChanged: Told("node"),
    c.GroupChanged: Told("group"),
    c.MemoryWritten: Told("session", _by, "key value by", _by_person),
    c.MemoryDropped: Told("session", _by, "key by", _by_person),
    c.RunCreated: Told("run", _by, "counter digest by priority starts_at_ms expires_at_ms"),
    c.RunRetried: Told("run"),
    c.RunPaused: Told("run", _by),
    c.RunResumed: Told("run", _by),
    c.RunCancelling: Told("run", _by),
    c.RunEnded: Told("run"),
    c.DispatchPlanned: Told("run", None, "dispatch hash effect"),
    c.DispatchEnded: Told("run"),
    c.ResultTaken: Told("run", _node, "dispatch state result fault"),
    c.ResultKept: Told("run", _node, "dispatch outcome result fault"),
    c.ActionUnknown: Told("run"),
    c.CompensationsPlanned: Told("run"),
    c.ApprovalAsked: Told("approval", None, "run kind action message options digest"),
    c.ApprovalClosed: Told("approval", _by, "run state option by"),
    p.PermitGranted: Told("permit", _by, "node digest body budget to_ms by"),
    p.PermitEnded: Told("permit", _by),
    p.PermitRunReported: Told("permit", _of_node),
    c.DoubtRaised: Told("witness"),
    c.DoubtsAcknowledged: Told("by", _by),
}


@dataclass(slots=True)
class Draft:
    """An entry before it has a number; `payload` as it is stored."""

    at_ms: int
    actor: str
    kind: str
    subject: str
    payload: bytes


class _Form:
    """Where in a body, with the run behind it, an entry finds what it says of a class of changes."""

    def __init__(self, made_by: type[c.Change], told: Told) -> None:
        names = [f.name for f in fields(made_by) if f.name not in ("at_ms", "cause", "run")]
        self.tells = told.names.split() or names
        at = {name: place for place, name in enumerate([*names, "run"])}
        self.subject = at[told.subject]
        self.actor = told.actor and (at[told.actor[0]], told.actor[1])
        self.when = told.when and (at[told.when[0]], told.when[1])
        self.places = [at[name] for name in self.tells]


_FORMS = {FORMS[made_by].kind: _Form(made_by, told) for made_by, told in LEDGERED.items()}
#: the kinds of changes that the mover looks for
KINDS = dict.fromkeys(sorted(_FORMS))


def drafts_of(rows: Iterable[ChangeRow]) -> Iterator[Draft]:
    """The entries that these changes become, in order."""
    head: tuple[Any, ...] = ()
    telling: list[list[Any]] = []
    seqs = [0, 0]
    for seq, run, at_ms, cause, kind, body in rows:
        form = _FORMS[kind]
        values = msgpack.unpackb(body)
        values.append(run)
        if form.when is not None and not form.when[1](values[form.when[0]]):
            continue
        actor = ORCHESTRATOR if form.actor is None else form.actor[1](values[form.actor[0]])
        found = (at_ms, actor, kind, str(values[form.subject]), cause)
        if found != head or len(telling) == limits.LEDGER_ROWS:
            if telling:
                yield _draft(head, seqs, telling)
            head, telling, seqs = found, [], [seq, seq]
        seqs[1] = seq
        telling.append([short(values[place]) for place in form.places])
    if telling:
        yield _draft(head, seqs, telling)


def _draft(head: tuple[Any, ...], seqs: list[int], rows: list[list[Any]]) -> Draft:
    at_ms, actor, kind, subject, cause = head
    told = {"cause": cause, "seq": seqs, "names": _FORMS[kind].tells, "rows": rows}
    return Draft(at_ms, actor, kind, subject, msgpack.packb(told))


# however its characters are written, it is not too large
_SHORT_TEXT = limits.LEDGER_VALUE_BYTES // 4


def short(value: Any) -> Any:
    """A value as the ledger tells it: itself, or {sha256, bytes} when it is too large."""
    kind = type(value)
    if kind is str:
        if len(value) <= _SHORT_TEXT:
            return value
        data = value.encode()
    elif kind is bytes:
        data = value
    elif kind is dict or kind is list:
        data = msgpack.packb(value)
    else:
        return value
    if len(data) <= limits.LEDGER_VALUE_BYTES:
        return value
    return {"sha256": hashlib.sha256(data).digest(), "bytes": len(data)}


def readable(value: Any) -> Any:
    """A value as it stands in JSON: bytes in hex."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: readable(item) for name, item in value.items()}
    if isinstance(value, list):
        return [readable(item) for item in value]
    return value


def told_of(payload: bytes) -> list[dict[str, Any]]:
    """The changes that a payload tells of, each as {name: value}."""
    told = msgpack.unpackb(payload)
    return [dict(zip(told["names"], row, strict=True)) for row in told["rows"]]
