"""What a node does by itself: when a run of a permit begins, and how it goes on.

The one rule: a run begins only while the node is cut off, and one run of the budget is gone, durably,
before anything of it is done. What has begun goes on whoever comes back, through slots, claims and
journal as any dispatch. Deliberately absent: policy; the guard is asked about each dispatch.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Any

from imlmesh_node.core import changes, commands, events
from imlmesh_node.core.changes import Change, ResultRecord
from imlmesh_node.core.commands import Command
from imlmesh_node.core.state import AgentState, HeldPermitRecord, JournalRecord
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import PERMIT_CLOCK_MS, PERMITS_NODE_KEPT
from imlmesh_protocol.permits import (
    CUT_OFF,
    EVERY,
    End,
    course,
    dispatch_of,
    filled,
    ids_of,
    packed_dispatch,
    permit_run,
    split_permit_run,
)
from imlmesh_protocol.wire.dispatches import Dispatch

_QUARANTINED = Fault("node.quarantined", "the node was quarantined before it began")
_WITHDRAWN = Fault("permit.withdrawn", "the permit was taken back before it began")
_EXPIRED = Fault("permit.expired", "the permit's time was over before it began")


class Permits:
    """`state` is the agent's; what is decided goes to `change` and `command`, in order. `lost_ms`: cut off
    is who has had no answered heartbeat for so long."""

    def __init__(
        self,
        state: AgentState,
        lost_ms: int,
        change: Callable[[Change], None],
        command: Callable[[Command], None],
    ) -> None:
        self._state = state
        self._lost_ms = lost_ms
        self._change = change
        self._command = command
        #: what to add to `at_ms` for mesh time; None before the first event
        self._ahead_ms: int | None = None
        #: since when the orchestrator was not heard, by `at_ms`
        self._heard_ms = self._now_ms = 0
        #: dispatches that the guard was asked about
        self._asked: set[str] = set()

    def held(self) -> dict[str, int]:
        """The permits that count, and how often each has run."""
        known = self._state.permits.values()
        return {one.permit.id: one.used for one in known if not (one.dropped or one.refusal)}

    def hears(self, source: str) -> bool:
        """Whether any permit wants to know what this source tells."""
        return any(one.permit.rule.source == source for one in self._state.permits.values())

    def holds_back(self, dispatch: str) -> bool:
        """Whether it belongs to a run that goes on: its result is told with those of the whole run."""
        record = self._state.permits.get(permit_of_dispatch(dispatch))
        return record is not None and record.open and _run_of(record) == dispatch.partition("/")[0]

    def begin(self, at_ms: int) -> None:
        """An event comes. At the first, time goes on where it was written down, if the clock is behind."""
        self._now_ms = at_ms
        if self._ahead_ms is None:
            self._ahead_ms = max(0, self._state.mesh_ms - at_ms)
            self._heard_ms = at_ms

    def met(self, at_ms: int, mesh_ms: int) -> None:
        """A session is open, and `mesh_ms` the orchestrator's time."""
        self._ahead_ms = mesh_ms - at_ms
        self._heard_ms = at_ms
        if self._state.permits:
            self._change(changes.MeshTimeNoted(mesh_ms, met=True))
            self._discard(mesh_ms)

    def answered(self, at_ms: int) -> None:
        """A heartbeat was answered; unlike a lease, contact counts from when that was heard."""
        met, mesh_ms = self._hear(at_ms), self._mesh_ms(at_ms)
        late = mesh_ms >= self._state.mesh_ms + PERMIT_CLOCK_MS
        if self._state.permits and (met or late):
            self._change(changes.MeshTimeNoted(mesh_ms, met))
            self._discard(mesh_ms)

    def take(self, event: events.PermitArrived) -> None:
        """Hold these, and begin no run of those. Who brings them is there."""
        met, mesh_ms = self._hear(event.at_ms), self._mesh_ms(event.at_ms)
        self._change(changes.MeshTimeNoted(mesh_ms, met))
        for permit, document in event.permits:
            known = self._state.permits.get(permit.id)
            if permit.to_ms <= mesh_ms:
                self._refuse(Fault("permit.expired", f"{permit.id} is over already"))
            elif known is None and len(self._state.permits) >= PERMITS_NODE_KEPT:
                self._refuse(Fault("permit.too_many", f"{permit.id}: {PERMITS_NODE_KEPT} are kept"))
            else:
                self._change(changes.PermitTaken(permit, document))
        for id in event.drop:
            known = self._state.permits.get(id)
            if known is not None and not known.dropped:
                self._change(changes.PermitDropped(id))

    def without_open(self, records: Iterable[JournalRecord]) -> list[JournalRecord]:
        """Those whose results are told one by one, and of runs that are over."""
        return [record for record in records if not self.holds_back(record.dispatch)]

    def due_ms(self, *, closed: bool) -> list[int]:
        """When runs begin by time, by `at_ms`; `closed`: none may."""
        times = [] if closed else [self._due_ms(one) for one in self._usable()]
        return [at_ms for at_ms in times if at_ms is not None]

    def look(self, at_ms: int, *, closed: bool) -> list[ResultRecord]:
        """Begin what is due, unless `closed`, and let what has begun go on; returns results of runs that are
        over, to be told."""
        told: list[ResultRecord] = []
        if not closed:
            for record in list(self._usable()):
                due_ms = self._due_ms(record)
                if due_ms is not None and due_ms <= at_ms:
                    self._begin_run(record, at_ms)
        for record in self._state.permits.values():
            if record.open:
                told += self._go_on(record, at_ms)
        return told

    def source_told(self, event: events.SourceTold, *, closed: bool) -> None:
        """What a source saw starts runs, but only of who is cut off and not at it already."""
        if closed or event.at_ms < self._heard_ms + self._lost_ms:
            return
        for record in list(self._usable()):
            permit = record.permit
            within = permit.from_ms <= self._mesh_ms(event.at_ms) < permit.to_ms
            if within and permit.rule.hears(event.source, event.values):
                self._begin_run(record, event.at_ms)

    def checked(self, event: events.DispatchChecked) -> events.Arrival | None:
        """The guard's answer, if it was asked, with what else speaks against it by now."""
        dispatch = event.arrival.dispatch
        if dispatch.id not in self._asked:
            return None
        self._asked.discard(dispatch.id)
        record = self._state.permits[permit_of_dispatch(dispatch.id)]
        refusal = self._refusal(record, event.at_ms) or event.arrival.refusal
        return replace(event.arrival, refusal=refusal)

    def _hear(self, at_ms: int) -> bool:
        """The orchestrator is there. True when that ends a time cut off in which a run began: it may end
        within a session, when it was the orchestrator that was away."""
        cut_off = at_ms >= self._heard_ms + self._lost_ms
        self._heard_ms = max(self._heard_ms, at_ms)
        return cut_off and any(one.spent for one in self._state.permits.values())

    def _usable(self) -> Iterator[HeldPermitRecord]:
        if self._state.quarantined or self._state.lost:
            return
        for record in self._state.permits.values():
            over = record.open or record.dropped or record.refusal is not None
            if not over and record.used < record.permit.budget:
                yield record

    def _due_ms(self, record: HeldPermitRecord) -> int | None:
        """When it begins by itself; None when it does not."""
        permit, ahead_ms = record.permit, self._ahead_ms or 0
        rule = permit.rule
        if rule.kind == EVERY:
            at_ms = max(self._heard_ms, record.begun_ms - ahead_ms) + rule.ms
        elif rule.kind == CUT_OFF and not record.spent:
            at_ms = self._heard_ms + rule.ms
        else:
            return None
        at_ms = max(at_ms, self._heard_ms + self._lost_ms, permit.from_ms - ahead_ms)
        # one whose time is over waits for the orchestrator's clock to say so
        return at_ms if max(at_ms, self._now_ms) + ahead_ms < permit.to_ms else None

    def _begin_run(self, record: HeldPermitRecord, at_ms: int) -> None:
        number, mesh_ms = record.used + 1, self._mesh_ms(at_ms)
        self._change(changes.PermitRunBegun(record.permit.id, number, mesh_ms))

    def _go_on(self, record: HeldPermitRecord, at_ms: int) -> list[ResultRecord]:
        """The next action of an open run; its results when there is none."""
        permit = record.permit
        while True:
            ends, results = self._ended(record)
            if ends is None:
                return []
            following = course(permit.actions, ends).next
            if following is None:
                told = self._results(record)
                self._change(changes.PermitRunEnded(permit.id))
                return told
            action, attempt = following
            dispatch = dispatch_of(permit, record.used, action, attempt)
            if dispatch.id in self._asked:
                return []
            digest = sha256(packed_dispatch(dispatch)).digest()
            completed = {id for id, end in ends.items() if end.outcome == "completed"}
            params = filled(action, results, completed - results.keys())
            refusal = self._refusal(record, at_ms) or (
                params if isinstance(params, Fault) else None
            )
            if refusal is None and not isinstance(params, Fault):
                self._asked.add(dispatch.id)
                self._command(commands.CheckDispatch(replace(dispatch, params=params), digest))
                return []
            self._never_begun(dispatch, digest, at_ms, refusal)

    def _ended(self, record: HeldPermitRecord) -> tuple[dict[str, End] | None, dict[str, Any]]:
        """How the actions of its run ended, and what completed ones returned; None while one goes on."""
        ends: dict[str, End] = {}
        values: dict[str, Any] = {}
        for id in ids_of(record.permit, record.used):
            known = self._state.records.get(id)
            if known is None:
                continue
            result = known.result
            if result is None:
                return None, {}
            _, action, _, attempt = id.split("/")
            code = result.error.code if result.error else ""
            ends[action] = End(int(attempt), result.outcome, code)
            if result.outcome == "completed" and result.bulk is None:
                values[action] = result.result
        return ends, values

    def _results(self, record: HeldPermitRecord) -> list[ResultRecord]:
        """In the order taken, also of a permit whose actions cannot be read any more."""
        run = f"{_run_of(record)}/"
        known = self._state.records.items()
        return [one.result for id, one in known if id.startswith(run) and one.result is not None]

    def _refusal(self, record: HeldPermitRecord, at_ms: int) -> Fault | None:
        """Why nothing more of its run begins."""
        if self._state.quarantined:
            return _QUARANTINED
        if record.refusal is not None:
            return record.refusal
        if record.dropped:
            return _WITHDRAWN
        return _EXPIRED if self._mesh_ms(at_ms) >= record.permit.to_ms else None

    def _never_begun(
        self, dispatch: Dispatch, digest: bytes, at_ms: int, fault: Fault | None
    ) -> None:
        self._change(changes.DispatchTaken(dispatch.id, digest, dispatch.effect, at_ms))
        result = ResultRecord(dispatch.id, digest, "failed", None, fault, 0)
        self._change(changes.ResultRecorded(result))

    def _discard(self, mesh_ms: int) -> None:
        """By the orchestrator's own clock the time of these is over."""
        for record in list(self._state.permits.values()):
            permit = record.permit
            if permit.to_ms <= mesh_ms and not record.open:
                if not record.dropped:
                    text = f"{permit.id} was discarded after {record.used} of {permit.budget} runs"
                    self._refuse(Fault("permit.expired", text))
                self._change(changes.PermitForgotten(permit.id))

    def _refuse(self, fault: Fault) -> None:
        self._command(commands.NoteRefusal(fault))

    def _mesh_ms(self, at_ms: int) -> int:
        return at_ms + (self._ahead_ms or 0)


def permit_of_dispatch(dispatch: str) -> str:
    """The permit that it belongs to, "" for none."""
    found = split_permit_run(dispatch.partition("/")[0]) if dispatch.startswith("p-") else None
    return "" if found is None else found[0]


def _run_of(record: HeldPermitRecord) -> str:
    return permit_run(record.permit.id, record.used)
