"""A simulated node: the real core, a journal that survives a kill, drivers that are timers."""

from typing import TYPE_CHECKING, Any

from imlmesh_node.core import commands as k
from imlmesh_node.core import events as e
from imlmesh_node.core.agent import Agent, AgentConfig
from imlmesh_node.core.changes import Bulk, Change
from imlmesh_node.core.state import AgentState, apply
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import TIME_ASK_MS
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Will
from plans import TOY

if TYPE_CHECKING:
    from world import World

#: a result of three chunks
LARGE = pack({"ok": True, "filler": b"x" * 2 * limits.RESULT_CHUNK_BYTES})


class SimNode:
    """`start` is a power-on and does nothing while it is on; `kill` loses all but the journal."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.boot = 0
        self.journal: list[Change] = []
        #: the boot that began it, and whether it began in place of another
        self.journal_since, self.lost = 0, False
        #: commits so far, and at which of them the power goes
        self.commits = 0
        self.cut_at: int | None = None
        self.agent: Agent | None = None
        self._drivers: dict[str, tuple[int, Dispatch]] = {}

    def start(self) -> None:
        from world import node_filter

        if self.agent is not None:
            return
        self.boot += 1
        stored = self._stored()
        if not self.journal_since:
            self.journal_since = self.boot
        config = AgentConfig(
            limits.LAN.heartbeat_ms,
            floor=stored.floor,
            lost=stored.lost,
            quarantined=stored.quarantined,
        )
        self.agent = Agent(config, list(stored.records.values()))
        self._drivers.clear()
        self._session = self._seq = 0
        self._nonce: int | None = None
        self._ask_ms: int | None = None
        self._floor = stored.floor
        self.world.tell(f"{self.name} boots ({self.boot})")
        self.link = self.world.link(self.name, node_filter(self.name))
        self.link.start(self)

    def _stored(self) -> AgentState:
        """What the journal gives."""
        stored = AgentState(lost=self.lost)
        for change in self.journal:
            apply(stored, change)
        return stored

    def lose_journal(self) -> None:
        """It dies, and its next agent finds a journal that it cannot read."""
        self.kill()
        self.journal.clear()
        self.journal_since, self.lost = 0, True

    def kill(self) -> None:
        if self.agent is None:
            return
        self.world.tell(f"{self.name} dies")
        self.agent = None
        self._drivers.clear()
        self.link.kill()

    # the link's events

    def will(self) -> Will:
        from world import up

        self._session += 1
        letter = (Kind.STATUS, self.boot, self._session, 0, {"state": "gone"})
        return Will(up(self.name, Kind.STATUS), self.world.write(letter), retain=False)

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self._ask()

    def link_down(self, reason: str) -> None:
        self._ask_ms = self._nonce = None
        if self.agent is not None and self.agent.session is not None:
            self.post(e.SessionClosed(self.world.now_ms, reason))

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        kind, epoch, seq, fields = self.world.read(payload)
        if self.agent is None:
            return
        if kind is Kind.RESPONSE:
            if fields["nonce"] == self._nonce:
                self._nonce = self._ask_ms = None
                # what was sent before an answer to this question is old, whatever the journal knows
                self._floor = max(self._floor, (epoch, seq))
                dice = self.world.dice.getrandbits(32)
                self.post(e.SessionOpened(self.world.now_ms, self._session, epoch, dice=dice))
            return
        if self.agent.session is None or (epoch, seq) <= self._floor:
            return
        newer = epoch > self._floor[0] > 0
        self._floor = (epoch, seq)
        if newer:
            self.post(e.RebirthAsked(self.world.now_ms))
        self._hear(kind, epoch, seq, fields)

    def _hear(self, kind: Kind, epoch: int, seq: int, fields: dict[str, Any]) -> None:
        at_ms = self.world.now_ms
        if kind is Kind.DELEGATE:
            arrivals = tuple(
                e.Arrival(dispatch, digest, None, dispatch.params["ms"] == 0)
                for dispatch, digest in fields["dispatches"]
            )
            self.post(e.DelegateArrived(at_ms, arrivals, epoch, seq))
        elif kind is Kind.ACK:
            self.post(
                e.AckArrived(
                    at_ms,
                    fields["beat"],
                    fields["settled"],
                    epoch,
                    seq,
                    wants=fields.get("wants", ()),
                )
            )
        elif kind is Kind.REQUEST:
            self.post(e.InventoryAsked(at_ms, fields["nonce"]))
        elif fields["do"] == "rebirth":
            self.post(e.RebirthAsked(at_ms))
        elif fields["do"] in ("quarantine", "release"):
            self.post(e.QuarantineArrived(at_ms, fields["do"] == "quarantine", epoch, seq))
        else:
            self.post(e.CancelArrived(at_ms, fields["dispatches"]))

    # the engine

    def post(self, event: e.Event) -> None:
        """One turn: decide, start early work, commit, act; a kill may come between any two."""
        inbox = [event]
        changes: list[Change] = []
        asked: list[k.Command] = []
        while inbox:
            assert self.agent is not None
            decided, commands = self.agent.handle(inbox.pop(0))
            changes += decided
            for command in commands:
                if isinstance(command, k.RunDriver) and command.early:
                    inbox += self._run(command.dispatch)
                else:
                    asked.append(command)
        if self._power_cut("before its commit", bool(changes)):
            return
        self.journal += changes
        if self._power_cut("after its commit", bool(changes)):
            return
        for command in asked:
            self._act(command)

    def _power_cut(self, where: str, matters: bool) -> bool:
        world = self.world
        if matters:
            self.commits += 1
            if self.commits == self.cut_at:
                self.kill()
                world.at(world.now_ms + 2_000, self.start)
                return True
        if not matters or world.now_ms > world.faulty_until_ms or world.dice.random() > 0.01:
            return False
        world.tell(f"{self.name}: power cut {where}")
        self.kill()
        world.at(world.now_ms + world.dice.choice((100, 2_000, 12_000)), self.start)
        return True

    def _act(self, command: k.Command) -> None:
        if self.agent is None:
            return
        if isinstance(command, k.RunDriver):
            for event in self._run(command.dispatch):
                self.post(event)
        elif isinstance(command, k.KillDriver):
            if self._drivers.pop(command.dispatch.id, None):
                outcome, fault = k.killed(command.dispatch, command.reason)
                event = e.DriverFinished(
                    self.world.now_ms, command.dispatch.id, outcome, error=fault
                )
                self.post(event)
        elif isinstance(command, k.SendChunk):
            chunk = chunk_of(command.bulk, command.index)
            self._send(Kind.COMPLETE, {"results": (), "chunk": (command.result, chunk)})
        elif isinstance(command, k.SendStatus):
            fields = {"state": command.state, "journal_since": self.journal_since}
            self._send(Kind.STATUS, fields | {"manifest": TOY})
        elif not isinstance(command, k.NoteRefusal):
            self._send(*_letter(command))

    def _run(self, dispatch: Dispatch) -> list[e.Event]:
        if not dispatch.effect.repeatable:
            self.world.count_effect(self.name, dispatch.id)
        ms = int(dispatch.params["ms"])
        if ms:
            self._drivers[dispatch.id] = (self.world.now_ms + ms, dispatch)
            return []
        return [self._finished(dispatch)]

    def _finished(self, dispatch: Dispatch) -> e.DriverFinished:
        at_ms = self.world.now_ms
        if int(dispatch.id.rsplit("/", 1)[1]) <= dispatch.params["fails"]:
            fault = Fault("driver.failed", "as the plan says")
            return e.DriverFinished(at_ms, dispatch.id, "failed", error=fault)
        if at_ms % 8 == 0:
            # no dice: whether a result is large must not change which world a seed is
            return e.DriverFinished(at_ms, dispatch.id, "completed", packed=LARGE)
        return e.DriverFinished(at_ms, dispatch.id, "completed", {"ok": True})

    def next_ms(self) -> int | None:
        if self.agent is None:
            return None
        times = [at_ms for at_ms, _ in self._drivers.values()]
        times += [t for t in (self.agent.next_deadline_ms(), self._ask_ms) if t is not None]
        return min(times, default=None)

    def tick(self) -> None:
        now_ms = self.world.now_ms
        for id, (at_ms, dispatch) in list(self._drivers.items()):
            if at_ms <= now_ms and self._drivers.pop(id, None):
                self.post(self._finished(dispatch))
        if self.agent is None:
            return
        if self._ask_ms is not None and self._ask_ms <= now_ms:
            self._ask()
        due_ms = self.agent.next_deadline_ms()
        if due_ms is not None and due_ms <= now_ms:
            self.post(Tick(now_ms))

    def _ask(self) -> None:
        self._nonce = self.world.dice.getrandbits(64)
        self._ask_ms = self.world.now_ms + TIME_ASK_MS
        self._send(Kind.REQUEST, {"what": "time", "nonce": self._nonce})

    def _send(self, kind: Kind, fields: dict[str, Any]) -> None:
        from world import up

        if not self.link.connected:
            return
        self._seq += 1
        letter = (kind, self.boot, self._session, self._seq, fields)
        self.link.publish(up(self.name, kind), self.world.write(letter))

    def problems(self) -> list[str]:
        if self.agent is None:
            return []
        stored = self._stored()
        if stored != self.agent.state:
            return [f"{self.name}: the journal does not give the state that it has"]
        faults = self.link.faults
        return [f"{self.name}: the core raised; see the log"] if faults else []


def chunk_of(bulk: Bulk, index: int) -> dict[str, Any]:
    data = LARGE[index * limits.RESULT_CHUNK_BYTES :][: limits.RESULT_CHUNK_BYTES]
    return {"index": index, "count": bulk.chunks, "hash": bulk.sha256, "data": data}


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
