"""The agent's core: takes dispatches, starts drivers, keeps results until they are settled.

The one rule: a once or physical driver is asked for only in the step whose commit holds its
intent, and no dispatch is ever asked for twice. What must survive goes through `apply`; the rest
(slots, claims, leases, the session) is rebuilt by what happens next.
Deliberately absent: policy (an arrival brings the guard's word) and the drivers themselves.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from imlmesh_node.core import changes, commands, events
from imlmesh_node.core.autonomy import Autonomy
from imlmesh_node.core.changes import Bulk, Change, ResultRecord
from imlmesh_node.core.commands import Command, KillReason
from imlmesh_node.core.config import AgentConfig
from imlmesh_node.core.heart import Heart
from imlmesh_node.core.permits import Permits, permit_of_dispatch
from imlmesh_node.core.slots import CUT_OFF, HeldRecord, Slots
from imlmesh_node.core.state import AgentState, JournalRecord, apply
from imlmesh_node.core.unsettled import Unsettled
from imlmesh_node.core.wording import accept_of, complete_of, cut_short, given_back
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import LOOK_MS, SETTLED_KEPT_MS
from imlmesh_protocol.tick import Tick

_LOST = Fault("journal.lost", "its journal could not be read and was set aside")


class Agent(Autonomy):
    """See the module; `records` come from the journal, in the order taken."""

    def __init__(self, config: AgentConfig, records: Iterable[JournalRecord] = ()) -> None:
        self._config = config
        known = {record.dispatch: record for record in records}
        self.state = AgentState(
            known, config.floor, config.lost, config.quarantined, {**config.permits}, config.mesh_ms
        )
        self.slot_count = config.slots
        self.slots = Slots(config.slots)
        self.heart = Heart(config.heartbeat_ms)
        self.session: int | None = None
        self._seen, self._forgot = config.floor, False
        self._leftover = [r for r in self.state.records.values() if r.result is None]
        self._changes: list[Change] = []
        self._commands: list[Command] = []
        self.permits = Permits(self.state, config.lost_ms, self._change, self._command)
        self._unsettled = Unsettled(r.result for r in self.permits.without_open(known.values()))
        self._settled: dict[str, None] = {}
        self._settled_since_ms = self._looked_ms = 0
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.SessionOpened: self._on_session_opened,
            events.SessionClosed: self._on_session_closed,
            events.DelegateArrived: self._on_delegate,
            events.AckArrived: self._on_ack,
            events.CancelArrived: self._on_cancel,
            events.QuarantineArrived: self._on_quarantine,
            events.PermitArrived: self._on_permit,
            events.DispatchChecked: self._on_checked,
            events.SourceTold: self._on_source,
            events.InventoryAsked: self._on_inventory,
            events.RebirthAsked: self._on_rebirth,
            events.DriverFinished: self._on_finished,
            Tick: self._on_tick,
            events.ShutdownAsked: self._on_shutdown,
        }

    def handle(self, event: events.Event) -> tuple[list[Change], list[Command]]:
        """Decide on one event; the changes are already applied."""
        self._changes, self._commands = [], []
        self.permits.begin(event.at_ms)
        if self._leftover:
            self._end_leftover(event.at_ms)
        # whoever stood still wakes with messages and ends of drivers, and with the tick behind them
        if event.at_ms >= self._looked_ms + LOOK_MS:
            self._end_late(event.at_ms)
        self._handlers[type(event)](event)
        self._go_on_alone(event.at_ms)
        return self._changes, self._commands

    def next_deadline_ms(self) -> int | None:
        """When to send the next Tick; None when nothing is due."""
        due: list[int] = []
        if self._leftover:
            due.append(0)
        if self.session is not None:
            due.append(self.heart.next_ms)
            if (resend_ms := self._unsettled.due_ms) is not None:
                due.append(resend_ms)
        if self._settled:
            due.append(self._settled_since_ms + SETTLED_KEPT_MS)
        due.extend(self.slots.limits_ms(self.heart.answered_ms))
        due.extend(self.permits.due_ms(closed=self._closed))
        return min(due, default=None)

    def held_ids(self) -> tuple[str, ...]:
        """The dispatches taken and not finished."""
        return self.slots.ids()

    def unsettled_ids(self) -> tuple[str, ...]:
        """The dispatches whose results nobody has settled yet."""
        return self._unsettled.ids()

    def _on_session_opened(self, event: events.SessionOpened) -> None:
        if event.epoch < self._seen[0]:
            self._refuse("message.epoch", f"an orchestrator of epoch {event.epoch} answered")
            return
        self._see(event.epoch)
        self.session, self._forgot = event.session, event.forgot
        self._unsettled.bulks.restart()
        self.permits.met(event.at_ms, event.mesh_ms or event.at_ms)
        self.heart.born_ms = event.at_ms
        self._send_everything(event.at_ms)
        self.heart.scatter(event.dice)

    def _on_session_closed(self, event: events.SessionClosed) -> None:
        self.session = None

    def _on_rebirth(self, event: events.RebirthAsked) -> None:
        self._see(event.epoch)
        if self.session is not None:
            self._send_everything(event.at_ms)

    def _send_everything(self, at_ms: int) -> None:
        self._commands.append(commands.SendStatus("online", self.permits.held()))
        if self.state.lost:
            self._commands.append(commands.Escalate(_LOST))
        self._send_heartbeat(at_ms, anew=True)
        self._send_results(self._unsettled.ids(), at_ms)

    def _on_delegate(self, event: events.DelegateArrived) -> None:
        place = (event.epoch, event.seq)
        if place <= self._seen:
            code = "message.epoch" if event.epoch < self._seen[0] else "message.replayed"
            self._refuse(code, f"a delegate of {place} after {self._seen}")
            return
        self._see(*place)
        doubts = self.state.lost or self._forgot
        if self.session is None or self.slots.stopping:
            self._raise_floor()  # a later agent shall not take what this one did not
            if self.session is not None and self.slots.running:  # no goodbye was said yet
                self._commands += given_back(event.dispatches, self.state.records, doubts)
            return
        again, new = list[str](), list[str]()
        refused = [pair for pair in event.unread if not (doubts or pair[0] in self.state.records)]
        for arrival in event.dispatches:
            fault = self._take(arrival, event.at_ms, new, again)
            if fault is not None:
                refused.append((arrival.dispatch.id, fault))
        if new:
            self._start_waiting(event.at_ms)
        if refused or any(not self.state.records[id].effect.repeatable for id in new):
            self._raise_floor()
        accepted = [id for id in again if id not in self._unsettled and id not in self._settled]
        accepted += [id for id in new if self._needs_accept(id, event.at_ms)]
        if accepted:
            self._send_accept(accepted)
        if refused:
            self._commands.append(commands.SendReject(tuple(refused)))
        self._send_results([id for id in again if id not in accepted], event.at_ms)

    def _take(
        self, arrival: events.Arrival, at_ms: int, new: list[str], again: list[str]
    ) -> Fault | None:
        dispatch = arrival.dispatch
        record = self.state.records.get(dispatch.id)
        if record is not None:
            if record.hash != arrival.hash:
                return Fault("dispatch.hash", "another dispatch of that name is known here")
            again.append(dispatch.id)
            return None
        if (self.state.lost or self._forgot) and not dispatch.effect.repeatable:
            # a refusal would say that it was never done: until our birth was heard we are silent
            self._refuse("journal.lost", f"{dispatch.id} may have been done before")
            return None
        if arrival.refusal is not None:
            return arrival.refusal
        if self.state.quarantined:
            return Fault("node.quarantined", "its orchestrator put it in quarantine")
        if len(self.slots) >= self._config.held or self._unsettled.full:
            text = f"it holds {len(self.slots)} dispatches and {len(self._unsettled)} results"
            return Fault("node.full", text)
        taken = changes.DispatchTaken(dispatch.id, arrival.hash, dispatch.effect, at_ms)
        self._change(taken)
        held = HeldRecord(dispatch, arrival.instant, at_ms, self.heart.born_ms)
        self.slots.wait(held)
        if at_ms >= held.lease_end_ms(self.heart.answered_ms):
            self._fail_waiting(held, at_ms, CUT_OFF)
        else:
            new.append(dispatch.id)
        return None

    def _needs_accept(self, id: str, at_ms: int) -> bool:
        """What runs and ends at once is answered by its result alone."""
        held = self.slots.waiting.get(id)
        if held is None:
            return not self.slots.running[id].instant
        holder = self.slots.holder(held) if held.dispatch.on_busy == "fail" else None
        if holder is None:
            return True
        self._fail_waiting(held, at_ms, Fault("driver.busy", f"held by {holder}"))
        return False

    def _on_ack(self, event: events.AckArrived) -> None:
        self._see(event.epoch, event.seq)
        if event.beat is not None:
            self.heart.answered(event.beat)
            self.permits.answered(event.at_ms)
            self._forgot = False  # only a beat of a session whose birth was taken is answered
            if self.state.lost:
                self._change(changes.LossTold())
        if not self._settled:
            self._settled_since_ms = event.at_ms
        for id in event.settled:
            if self._unsettled.settle(id):
                self._settled[id] = None
        for id, index in event.wants:
            self._unsettled.bulks.wanted(id, index)
        self._send_chunk(event.at_ms)

    def _on_cancel(self, event: events.CancelArrived) -> None:
        for id in event.dispatches:
            if (held := self.slots.waiting.get(id)) is not None:
                fault = Fault("action.cancelled", "cancelled before it started")
                self._fail_waiting(held, event.at_ms, fault, "cancelled")
            elif (held := self.slots.running.get(id)) is not None:
                self._kill(held, KillReason.CANCEL)
            elif id in self.state.records:
                self._send_results((id,), event.at_ms)

    def _on_quarantine(self, event: events.QuarantineArrived) -> None:
        """Nothing new from now on, and the leases are over: what has not begun never does, what
        somebody else may do is stopped; a once or physical effect under way ends by itself."""
        place = (event.epoch, event.seq)
        if place <= self._seen:
            self._refuse("message.replayed", f"a quarantine of {place} after {self._seen}")
            return
        self._seen = place
        if event.quarantined is not self.state.quarantined:
            self._change(changes.QuarantineSet(event.quarantined))
            self._raise_floor()
        if event.quarantined:
            fault = Fault("node.quarantined", "the node was quarantined before it started")
            for held in list(self.slots.waiting.values()):
                self._fail_waiting(held, event.at_ms, fault)
            for held in self.slots.running.values():
                if held.dispatch.when_cut_off == "stop":
                    self._kill(held, KillReason.LEASE)

    def _on_inventory(self, event: events.InventoryAsked) -> None:
        if self.session is not None:
            held, unsettled = self.held_ids(), self.unsettled_ids()
            self._command(commands.SendInventory(event.nonce, held, unsettled))

    def _on_finished(self, event: events.DriverFinished) -> None:
        if self.slots.end(event.dispatch) is None:
            return
        hash, error = self.state.records[event.dispatch].hash, event.error
        told = (event.dispatch, hash, event.outcome, event.result, error, event.duration_ms)
        result = ResultRecord(*told)
        if event.packed:
            digest = hashlib.sha256(event.packed).digest()
            result.bulk = Bulk(len(event.packed), digest)
        self._record(result, event.at_ms, event.packed)
        if self.slots.waiting:
            started = self._start_waiting(event.at_ms)
            # nobody sent what a permit begins, so nobody waits for its accept
            started = [id for id in started if not permit_of_dispatch(id)]
            if started and self.session is not None:
                self._send_accept(started)
        self._say_goodbye()

    def _on_tick(self, event: Tick) -> None:
        at_ms = event.at_ms
        self._end_late(at_ms)
        if self.session is not None:
            if at_ms >= self.heart.next_ms:
                self._send_heartbeat(at_ms)
            self._send_results(self._unsettled.due(at_ms), at_ms)
        if self._settled and at_ms >= self._settled_since_ms + SETTLED_KEPT_MS:
            self._forget_settled()

    def _end_late(self, at_ms: int) -> None:
        self._looked_ms = at_ms
        for held, why in self.slots.late(at_ms, self.heart.answered_ms):
            if isinstance(why, Fault):
                self._fail_waiting(held, at_ms, why)
            else:
                self._kill(held, why)

    def _on_shutdown(self, event: events.ShutdownAsked) -> None:
        self.slots.finish_by_ms = min(self.slots.finish_by_ms, event.at_ms + event.finish_ms)
        self._end_late(event.at_ms)
        self._forget_settled()
        self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self.slots.stopping and not self.slots.running:
            self._commands.append(commands.SendStatus("offline"))

    def _end_leftover(self, at_ms: int) -> None:
        """What the end of an earlier agent cut short is reported as what is known of it."""
        leftover, self._leftover = self._leftover, []
        for record in leftover:
            self._record(cut_short(record), at_ms)

    def _start_waiting(self, at_ms: int) -> list[str]:
        """Ask for all drivers that may run; returns the ids of those that do not end at once."""
        started: list[str] = []
        for held in self.slots.start(at_ms):
            dispatch = held.dispatch
            self._change(changes.IntentRecorded(dispatch.id))
            self._commands.append(commands.RunDriver(dispatch, early=dispatch.effect.repeatable))
            if not held.instant:
                started.append(dispatch.id)
        return started

    def _kill(self, held: HeldRecord, reason: KillReason) -> None:
        if held.killing is None and not held.instant:
            held.killing = reason
            self._commands.append(commands.KillDriver(held.dispatch, reason))

    def _fail_waiting(
        self, held: HeldRecord, at_ms: int, fault: Fault, outcome: str = "failed"
    ) -> None:
        id = held.dispatch.id
        del self.slots.waiting[id]
        hash = self.state.records[id].hash
        self._record(ResultRecord(id, hash, outcome, None, fault, 0), at_ms)

    def _record(self, result: ResultRecord, at_ms: int, packed: bytes = b"") -> None:
        if self._settled:
            self._forget_settled()
        self._change(changes.ResultRecorded(result, packed))
        if self.permits.holds_back(result.dispatch):
            return
        self._unsettled.keep(result, at_ms)
        if self.session is None:
            return
        if result.bulk is None:
            self._commands.append(complete_of(self.state.records[result.dispatch].effect, result))
        else:
            self._send_chunk(at_ms)

    def _send_results(self, ids: Iterable[str], at_ms: int) -> None:
        results: list[ResultRecord] = []
        for id in ids:
            result = self.state.records[id].result
            if result is None:
                continue
            self._unsettled.sent(id, at_ms)
            if result.bulk is None:
                results.append(result)
        if results and self.session is not None:
            self._commands.append(commands.SendComplete(tuple(results)))
        self._send_chunk(at_ms)

    def _send_chunk(self, at_ms: int) -> None:
        """Small results never wait for large ones: those leave chunk by chunk."""
        due = self._unsettled.bulks.due(at_ms) if self.session is not None else None
        if due is not None:
            id, index = due
            result = self.state.records[id].result
            if result is not None and result.bulk is not None:
                self._commands.append(commands.SendChunk(result, result.bulk, index))

    def _send_accept(self, ids: Iterable[str]) -> None:
        self._commands.append(accept_of([self.state.records[id] for id in ids]))

    def _send_heartbeat(self, at_ms: int, *, anew: bool = False) -> None:
        number = self.heart.beat(at_ms, anew=anew)
        self._commands.append(commands.SendHeartbeat(number, self.held_ids()))

    def _forget_settled(self) -> None:
        settled, self._settled = self._settled, {}
        for id in settled:
            self._change(changes.DispatchSettled(id))
        if settled:
            self._raise_floor()

    def _see(self, epoch: int, seq: int = 0) -> None:
        """Whoever ruled is remembered for good: no restart makes an older orchestrator heard."""
        self._seen = max(self._seen, (epoch, seq))
        if epoch > self.state.floor[0]:
            self._raise_floor()

    def _raise_floor(self) -> None:
        if self._seen > self.state.floor:
            self._change(changes.FloorRaised(*self._seen))

    def _refuse(self, code: str, message: str) -> None:
        self._command(commands.NoteRefusal(Fault(code, message)))

    def _command(self, command: Command) -> None:
        self._commands.append(command)

    def _change(self, change: Change) -> None:
        apply(self.state, change)
        self._changes.append(change)
