"""A simulated node: the real core, a journal that survives a kill, drivers that are timers."""

from typing import TYPE_CHECKING, Any

from imlmesh_node.core import commands as k
from imlmesh_node.core import events as e
from imlmesh_node.core.agent import Agent
from imlmesh_node.core.changes import Bulk, Change
from imlmesh_node.core.config import AgentConfig
from imlmesh_node.core.invariants import check
from imlmesh_node.core.state import AgentState, apply
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CRASHED, KILLED_ALONG, Fault, InvariantError
from imlmesh_protocol.limits import TIME_ASK_MS, TIME_SYNC_MS
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_protocol.wire.permits import permit_of
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Will
from letters import Letter, is_late
from machine import Machine, SimClock
from plans import TOY

if TYPE_CHECKING:
    from world import World


#: a result of three chunks
LARGE = pack({"ok": True, "filler": b"x" * 2 * limits.RESULT_CHUNK_BYTES})
#: what takes so long runs in one process of the driver: who kills one of them kills all
SHARED_MS = 3_000
#: commands whose place is the core's own to judge
_OWN = ("quarantine", "release", "permit")
#: an agent that ended is started again by its parent
RESTART_MS = 1_000
_STALE = -1


class SimNode:
    """`start` is a power-on and does nothing while it is on; `kill` loses all but the journal."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.boot = 0
        self.machine = Machine(world)
        self.journal: list[Change] = []
        #: the boot that began it, and whether it began in place of another
        self.journal_since, self.lost = 0, False
        #: what the journal gives, folded as it grows
        self.stored = AgentState()
        #: commits so far, and at which of them the power goes
        self.commits = 0
        self.cut_at: int | None = None
        self.agent: Agent | None = None
        #: how many times longer its drivers take
        self.slowness = 1
        #: running drivers: when each ends by itself, in the world's time
        self._drivers: dict[str, tuple[int, Dispatch]] = {}
        self._heard_no = -1
        #: whether its core had a turn since somebody looked at it
        self._turned = False
        #: when the agent wants its next tick; _STALE after a turn
        self._due_ms: int | None = _STALE

    def start(self) -> None:
        from world import node_filter

        if self.agent is not None or self.machine.asleep or self.machine.broken:
            return
        self.boot += 1
        self.mesh = SimClock(self.world, self.machine.wall_ms())
        self.steady = SimClock(self.world, self.machine.wall_ms())
        stored = AgentState(lost=self.lost)
        for change in self.journal:
            apply(stored, change)
        if not self.journal_since:
            self.journal_since = self.boot
        config = AgentConfig(
            limits.LAN.heartbeat_ms,
            floor=stored.floor,
            lost=stored.lost,
            quarantined=stored.quarantined,
            lost_ms=limits.LAN.lost_ms,
            permits=stored.permits,
            mesh_ms=stored.mesh_ms,
        )
        self.agent = Agent(config, list(stored.records.values()))
        self._turned = True
        self._due_ms = _STALE
        self._drivers.clear()
        self._session = self._seq = 0
        self.world.checks.permits.starts(self.name)
        self._nonce: int | None = None
        self._ask_ms: int | None = None
        self._asked_ms = 0
        self._floor = stored.floor
        self.world.tell(f"{self.name} boots ({self.boot})")
        self.link = self.world.link(self.name, node_filter(self.name))
        self.link.start(self)

    def kill(self) -> None:
        if self.agent is None:
            return
        self.world.tell(f"{self.name} dies")
        self.agent = None
        self._drivers.clear()
        self.machine.forget_heard()
        self.link.kill()

    def lose_journal(self, *, gone: bool) -> None:
        """It dies, and its next agent finds a journal that it cannot read, or none at all."""
        self.kill()
        self.journal.clear()
        self.world.checks.permits.excuse(self.name)
        self.stored = AgentState(lost=not gone)
        self.journal_since, self.lost = 0, not gone

    def suspend(self) -> None:
        """The machine sleeps: its drivers stand still, nothing is heard, time goes on."""
        self.machine.sleep()

    def resume(self, *, drivers_end: bool = False) -> None:
        """It wakes: what reached its sockets and what fell due meanwhile comes in either order.

        With `drivers_end` a driver that waited for a time of the clock ends at once, before that.
        """
        if not self.machine.asleep:
            return
        slept_ms, heard = self.machine.wake()
        self.world.tell(f"{self.name} wakes after {slept_ms} ms")
        if self.agent is None:
            return
        for id, (at_ms, dispatch) in list(self._drivers.items()):
            if not drivers_end:
                self._drivers[id] = (at_ms + slept_ms, dispatch)
            elif at_ms <= self.world.now_ms and self._drivers.pop(id, None):
                self.post(self._finished(dispatch))
        if self.world.dice.random() < 0.5:
            self.tick()
        for act in heard:
            act()
        self.tick()

    def goodbye(self) -> None:
        """It is shut down: drivers are stopped, then it says so and ends."""
        if self.agent is None or self.machine.asleep:
            return
        self.world.tell(f"{self.name} is shut down")
        self.post(e.ShutdownAsked(self.steady.now_ms()))
        self.kill()

    def crash(self) -> None:
        """The process of its driver ends, and with it all that runs in it."""
        for id, (_, dispatch) in list(self._drivers.items()):
            if self._drivers.pop(id, None):
                self.world.tell(f"{self.name}: the driver of {id} crashes")
                self.post(self._crashed(dispatch))

    def _crashed(self, dispatch: Dispatch) -> e.DriverFinished:
        fault = Fault(CRASHED, "its process ended")
        return e.DriverFinished(self.steady.now_ms(), dispatch.id, "failed", error=fault)

    def running(self) -> list[Dispatch]:
        """What its drivers do now."""
        return [dispatch for _, dispatch in self._drivers.values()]

    # the link's events

    def will(self) -> Will:
        from world import up

        self._session += 1
        letter = Letter(Kind.STATUS, self.boot, self._session, 0, 0, {"state": "gone"})
        return Will(up(self.name, Kind.STATUS), self.world.write(letter), retain=False)

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self.machine.hear(self._ask)

    def link_down(self, reason: str) -> None:
        self.machine.hear(lambda: self._down(reason))

    def _down(self, reason: str) -> None:
        self._ask_ms = self._nonce = None
        if self.agent is not None and self.agent.session is not None:
            self.post(e.SessionClosed(self.steady.now_ms(), reason))

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self._heard_no = self.world.came(payload, self._heard_no)
        letter = self.world.read(payload)
        self.machine.hear(lambda: self._message(letter))

    def _message(self, letter: Letter) -> None:
        if self.agent is None:
            return
        if letter.kind is Kind.RESPONSE:
            self._answered(letter)
            return
        if self.agent.session is None:
            return
        if is_late(letter, self.mesh.now_ms()):
            self._ask_again()
            return
        if letter.term > self._floor[0] > 0:
            self._floor = (letter.term, 0)
            self.post(e.RebirthAsked(self.steady.now_ms(), epoch=letter.term))
            self._met(letter.term)
            self._ask_again()
        # a delegate's and a quarantine's place is the core's own to judge
        place = (letter.term, letter.seq)
        own = letter.kind is Kind.DELEGATE or letter.fields.get("do") in _OWN
        if self.agent is not None and (own or place > self._floor):
            self._floor = max(self._floor, place)
            self._hear(letter)

    def _answered(self, letter: Letter) -> None:
        """The time: this session is open, and the clocks are set."""
        stale = letter.fields["nonce"] != self._nonce or letter.term < self._floor[0]
        if stale or self.agent is None:
            return
        now_ms = self.world.now_ms
        mesh_ms = letter.fields["at_ms"] + (now_ms - self._asked_ms) // 2
        self.mesh.sync(mesh_ms)
        if not self.steady.synced:
            busy = bool(self.agent.held_ids())
            self.steady.sync(self.steady.now_ms() if busy else mesh_ms)
        self._nonce, self._ask_ms = None, now_ms + TIME_SYNC_MS
        # what was sent before an answer to this question is old, whatever the journal knows
        self._floor = max(self._floor, (letter.term, letter.seq))
        if self.agent.session is None:
            dice = self.world.dice.getrandbits(32)
            self.world.checks.permits.contact(self.name, now_ms)
            opened = e.SessionOpened(
                self.steady.now_ms(),
                self._session,
                letter.term,
                dice=dice,
                mesh_ms=mesh_ms,
                forgot=0 < letter.fields["boot"] < self.journal_since,
            )
            self.post(opened)
            self._met(letter.term)

    def _met(self, epoch: int) -> None:
        """Unless the power went while it was noted."""
        if self.agent is not None:
            self.world.checks.meets(self.name, epoch)

    def _hear(self, letter: Letter) -> None:
        kind, epoch, seq, fields = letter.kind, letter.term, letter.seq, letter.fields
        at_ms = self.steady.now_ms()
        if kind is Kind.DELEGATE:
            arrivals = tuple(
                e.Arrival(dispatch, digest, None, dispatch.params["ms"] == 0)
                for dispatch, digest in fields["dispatches"]
            )
            self.post(e.DelegateArrived(at_ms, arrivals, epoch, seq))
        elif kind is Kind.ACK:
            wants = fields.get("wants", ())
            if fields["beat"] is not None:
                self.world.checks.permits.contact(self.name, self.world.now_ms)
            self.post(
                e.AckArrived(at_ms, fields["beat"], fields["settled"], epoch, seq, wants=wants)
            )
        elif kind is Kind.REQUEST:
            self.post(e.InventoryAsked(at_ms, fields["nonce"]))
        elif fields["do"] == "rebirth":
            self.post(e.RebirthAsked(at_ms))
        elif fields["do"] in ("quarantine", "release"):
            self.post(e.QuarantineArrived(at_ms, fields["do"] == "quarantine", epoch, seq))
        elif fields["do"] == "permit":
            bodies = fields.get("bodies", ())
            permits = tuple((permit_of(body), body) for body in bodies)
            self.post(e.PermitArrived(at_ms, permits, fields.get("drop", ()), epoch, seq))
        else:
            self.post(e.CancelArrived(at_ms, fields["dispatches"]))

    def pin_told(self) -> None:
        """A pin that is watched tells a 1."""
        if self.agent is not None and not self.machine.asleep and self.agent.permits.hears("pin"):
            self.post(e.SourceTold(self.steady.now_ms(), "pin", {"value": 1}))

    # the engine

    def post(self, event: e.Event) -> None:
        """One turn: decide, start early work and say how it ended, commit, act; a kill may come between any
        two."""
        self._turned = True
        self._due_ms = _STALE
        inbox = [event]
        changes: list[Change] = []
        asked: list[k.Command] = []
        while inbox:
            assert self.agent is not None
            decided, commands = self.agent.handle(inbox.pop(0))
            changes += decided
            for command in commands:
                if isinstance(command, k.RunDriver) and command.early:
                    inbox += self._run(command)
                else:
                    asked.append(command)
        for command in [c for c in asked if isinstance(c, k.SendComplete) and c.early]:
            asked.remove(command)
            self._act(command)
        if self._power_cut(True, bool(changes)):
            return
        if changes and self.machine.disk_full:
            self.world.happened("a commit failed: journal")
            self.kill()  # an engine that cannot commit ends, and its parent starts it again
            self.world.at(self.world.now_ms + RESTART_MS, self.start)
            return
        self.journal += changes
        epoch = event.epoch if isinstance(event, e.DelegateArrived) else None
        for (
            change
        ) in changes:  # each is judged by what was stored before it, also in the same commit
            self.world.checks.journalled(self.name, change, epoch)
            apply(self.stored, change)
        if self._power_cut(False, bool(changes)):
            return
        doomed = {c.dispatch.id for c in asked if isinstance(c, k.KillDriver)}
        for command in asked:
            if isinstance(command, k.KillDriver):
                self._kill(command, doomed)
            else:
                self._act(command)

    def _power_cut(self, before: bool, matters: bool) -> bool:
        if not matters:
            return False
        self.commits += 1
        if self.commits == self.cut_at:
            pause_ms: int | None = RESTART_MS * 2
        else:
            pause_ms = self.world.power_cut(self.name, before, 0.01)
        if pause_ms is None:
            return False
        self.kill()
        self.world.at(self.world.now_ms + pause_ms, self.start)
        return True

    def _act(self, command: k.Command) -> None:
        if self.agent is None:
            return
        if isinstance(command, k.RunDriver):
            for event in self._run(command):
                self.post(event)
        elif isinstance(command, k.SendChunk):
            chunk = chunk_of(command.bulk, command.index)
            self._send(Kind.COMPLETE, {"results": (), "chunk": (command.result, chunk)})
        elif isinstance(command, k.SendStatus):
            fields = {"state": command.state, "journal_since": self.journal_since}
            self._send(Kind.STATUS, fields | {"manifest": TOY, "permits": dict(command.permits)})
        elif isinstance(command, k.CheckDispatch):
            instant = command.dispatch.params["ms"] == 0
            arrival = e.Arrival(command.dispatch, command.hash, None, instant)
            self.post(e.DispatchChecked(self.steady.now_ms(), arrival))
        elif isinstance(command, k.NoteRefusal):
            if command.fault.code.startswith("permit."):
                self.world.tell(f"{self.name}: {command.fault.code}: {command.fault.message}")
        else:
            self.world.checks.node_says(self.name, command)
            self._send(*_letter(command))

    def _kill(self, command: k.KillDriver, doomed: set[str]) -> None:
        """Its process dies, with all others in it but those that the agent ends in the same turn."""
        killed = command.dispatch
        if self.agent is None or self._drivers.pop(killed.id, None) is None:
            return
        self.world.tell(f"{self.name}: stops {killed.id} ({command.reason})")
        along = [
            self._drivers.pop(dispatch.id)[1]
            for dispatch in self.running()
            if _shares(killed) and _shares(dispatch) and dispatch.id not in doomed
        ]
        outcome, fault = k.killed(killed, command.reason)
        self.post(e.DriverFinished(self.steady.now_ms(), killed.id, outcome, error=fault))
        for dispatch in along:
            if self.agent is None:
                return
            self.world.happened("killed along")
            self.world.tell(f"{self.name}: {dispatch.id} dies along")
            fault = Fault(KILLED_ALONG, f"its process was killed for {killed.id}")
            outcome = k.cut_short(dispatch.effect)
            self.post(e.DriverFinished(self.steady.now_ms(), dispatch.id, outcome, error=fault))

    def _run(self, command: k.RunDriver) -> list[e.Event]:
        dispatch = command.dispatch
        record = self.stored.records.get(dispatch.id)
        intent = record is not None and record.started
        self.world.tell(f"{self.name}: runs {dispatch.id}")
        self.world.checks.driver_starts(
            self.name, command, intent, self._lease_over_ms(dispatch.id)
        )
        ms = int(dispatch.params["ms"]) * self.slowness
        if ms:
            self._drivers[dispatch.id] = (self.world.now_ms + ms, dispatch)
            return []
        return [self._finished(dispatch)]

    def _lease_over_ms(self, dispatch: str) -> int:
        """For how long the lease of what starts now has been over, as the node counts; 0 or less:
        it is not."""
        assert self.agent is not None
        held = self.agent.slots.running[dispatch]
        return self.steady.now_ms() - held.lease_end_ms(self.agent.heart.answered_ms)

    def _finished(self, dispatch: Dispatch) -> e.DriverFinished:
        at_ms = self.steady.now_ms()
        if dispatch.params.get("poison"):
            return self._crashed(dispatch)
        if int(dispatch.id.rsplit("/", 1)[1]) <= dispatch.params["fails"]:
            fault = Fault("driver.failed", "as the plan says")
            return e.DriverFinished(at_ms, dispatch.id, "failed", error=fault)
        if at_ms % 8 == 0:
            # no dice: whether a result is large must not change which world a seed is
            return e.DriverFinished(at_ms, dispatch.id, "completed", packed=LARGE)
        return e.DriverFinished(at_ms, dispatch.id, "completed", {"ok": True})

    def next_ms(self) -> int | None:
        if self.agent is None or self.machine.asleep:
            return None
        times = [at_ms for at_ms, _ in self._drivers.values()]
        due_ms = self.steady.world_ms(self._deadline_ms(self.agent))
        times += [t for t in (due_ms, self._ask_ms) if t is not None]
        return min(times, default=None)

    def tick(self) -> None:
        if self.machine.asleep:
            return
        now_ms = self.world.now_ms
        for id, (at_ms, dispatch) in list(self._drivers.items()):
            if at_ms <= now_ms and self._drivers.pop(id, None):
                self.post(self._finished(dispatch))
        if self.agent is None:
            return
        if self._ask_ms is not None and self._ask_ms <= now_ms:
            self._ask()
        due_ms = self._deadline_ms(self.agent)
        if due_ms is not None and due_ms <= self.steady.now_ms():
            self.post(Tick(self.steady.now_ms()))

    def _deadline_ms(self, agent: Agent) -> int | None:
        """Asked at each step of the world, and the same until the agent's next turn."""
        if self._due_ms == _STALE:
            self._due_ms = agent.next_deadline_ms()
        return self._due_ms

    def _ask(self) -> None:
        if self.agent is None:
            return
        self._nonce = self.world.dice.getrandbits(64)
        self._asked_ms = self.world.now_ms
        self._ask_ms = self.world.now_ms + TIME_ASK_MS
        self._send(Kind.REQUEST, {"what": "time", "nonce": self._nonce})

    def _ask_again(self) -> None:
        """Its clock is doubtful; a question under way is enough."""
        if self._nonce is None:
            self._ask()

    def _send(self, kind: Kind, fields: dict[str, Any]) -> None:
        from world import up

        if not self.link.connected:
            return
        self._seq += 1
        letter = Letter(kind, self.boot, self._session, self._seq, self.mesh.now_ms(), fields)
        self.link.publish(up(self.name, kind), self.world.write(letter))

    def problems(self) -> list[str]:
        """What is wrong since it was last asked; a core without a turn stays as it was."""
        if self.agent is None or not self._turned:
            return []
        self._turned = False
        if self.stored != self.agent.state:
            return [f"{self.name}: the journal does not give the state that it has"]
        try:
            check(self.agent)
        except InvariantError as exc:
            return [f"{self.name}: {exc}"]
        faults = self.link.faults
        return [f"{self.name}: the core raised; see the log"] if faults else []


def chunk_of(bulk: Bulk, index: int) -> dict[str, Any]:
    data = LARGE[index * limits.RESULT_CHUNK_BYTES :][: limits.RESULT_CHUNK_BYTES]
    return {"index": index, "count": bulk.chunks, "hash": bulk.sha256, "data": data}


def _shares(dispatch: Dispatch) -> bool:
    return int(dispatch.params["ms"]) >= SHARED_MS


def _letter(command: Any) -> tuple[Kind, dict[str, Any]]:
    if isinstance(command, k.Escalate):
        return Kind.ESCALATE, {"fault": command.fault}
    if isinstance(command, k.SendHeartbeat):
        return Kind.HEARTBEAT, {"beat": command.beat, "held": command.held}
    if isinstance(command, k.SendAccept):
        return Kind.ACCEPT, {"dispatches": command.pairs, "started": command.started}
    if isinstance(command, k.SendReject):
        return Kind.REJECT, {"refusals": command.refusals}
    if isinstance(command, k.SendComplete):
        return Kind.COMPLETE, {"results": command.results}
    fields = {"nonce": command.nonce, "held": command.held, "unsettled": command.unsettled}
    return Kind.RESPONSE, fields
