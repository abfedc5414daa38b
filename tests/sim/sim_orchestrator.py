"""The simulated orchestrator: the real core, a store that survives a kill."""

import hashlib
from typing import TYPE_CHECKING, Any

from imlmesh_orchestrator.assembly import Assembly
from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.admission import is_own
from imlmesh_orchestrator.core.invariants import broken
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol import limits
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import Admission
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.dispatches import decode_dispatch
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Will

if TYPE_CHECKING:
    from world import World

NAME = "orchestrator"
BEFORE, AFTER = "before its commit", "after its commit"


class SimOrchestrator:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.stored: list[c.Change] = []
        self.core: Scheduler = Scheduler({})
        self.alive = False
        #: until then the machine does nothing, as if it were suspended
        self.still_until_ms = 0
        self._epoch = 0
        #: results that came in chunks and were whole
        self.assembled = 0
        #: commits so far, and at which of them, on which side, the power goes
        self.commits = 0
        self.cut_at: tuple[int, str] | None = None
        self._waiting: list[Plan] = []
        #: what was decided of each node, in the order of the changes; and what broke against it
        self._admissions: dict[str, Admission] = {}
        self._broken: list[str] = []
        self._asked: dict[str, tuple[str, str]] = {}
        #: (at_ms, topic, payload) of everything ever sent
        self.published: list[tuple[int, str, bytes]] = []

    def start(self) -> None:
        from world import MESH

        if self.alive:
            return
        self.alive = True
        self._epoch += 1
        self._seq = self._causes = 0
        self._floors: dict[tuple[str, str], tuple[int, int, int]] = {}
        self._answer_ms: int | None = None
        self._assembly = Assembly()
        self.core = Scheduler({}, self.history())
        self.world.tell(f"orchestrator starts, epoch {self._epoch}")
        self.post(e.Restarted, epoch=self._epoch)
        if self.alive:
            self.link = self.world.link(NAME, topics.orchestrator_subscriptions(MESH))
            self.link.start(self)

    def kill(self) -> None:
        if self.alive:
            self.world.tell("orchestrator dies")
            self.alive = False
            if hasattr(self, "link"):
                self.link.kill()

    def history(self) -> list[c.Change]:
        """What the store gives back: everything but the changes of runs that have ended."""
        ended = {change.run for change in self.stored if isinstance(change, c.RunEnded)}
        return [
            change
            for change in self.stored
            if not isinstance(change, c.RunChange) or change.run not in ended
        ]

    def submit(self, plan: Plan) -> None:
        self._waiting.append(plan)

    def cancel(self) -> None:
        """A person stops whatever runs."""
        for run in list(self.core.state.runs.values()):
            if self.alive and not run.ended:
                self.post(e.CancelAsked, run=run.run, by="eve")

    def pause(self) -> None:
        """A person lets nothing new start."""
        for run in list(self.core.state.runs.values()):
            if self.alive and not run.ended and run.state in ("pending", "running"):
                self.post(e.PauseAsked, run=run.run, by="eve")

    def resume(self) -> None:
        for run in list(self.core.state.runs.values()):
            if self.alive and run.state == "paused":
                self.post(e.ResumeAsked, run=run.run, by="eve")

    def decide(self, node: str, admission: Admission) -> None:
        """A person decides whether a node may get work; the core refuses what cannot be."""
        fields = {"node": node, "admission": admission, "reason": "the world", "by": "eve"}
        self.post(e.AdmissionAsked, **fields)

    def is_own(self, node: str) -> bool:
        """Whether the mesh itself quarantined it."""
        record = self.core.state.admissions.get(node)
        return record is not None and is_own(record)

    def not_open(self) -> tuple[bool, bool]:
        """Whether a node was removed, and whether the mesh itself quarantined one."""
        known = self.core.state.admissions.values()
        return any(r.admission is Admission.REVOKED for r in known), any(map(is_own, known))

    # the link's events

    def will(self) -> Will | None:
        return None

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self.post(e.BusOpened)

    def link_down(self, reason: str) -> None:
        self.post(e.BusClosed)

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        node = topics.parse(topic).name
        kind, boot, session, seq, fields = self.world.read(payload)
        if not self.alive:
            return
        if fields.get("state") == "gone":
            self.post(e.NodeGone, node=node, boot=boot, session=session)
            return
        lane = "heartbeat" if kind is Kind.HEARTBEAT else ""
        if (boot, session, seq) <= self._floors.get((node, lane), (0, 0, 0)):
            return
        self._floors[node, lane] = (boot, session, seq)
        if kind is Kind.REQUEST:
            self._send(node, Kind.RESPONSE, {"nonce": fields["nonce"]})
        else:
            self._hear(node, kind, boot, session, fields)

    def _hear(self, node: str, kind: Kind, boot: int, session: int, fields: dict[str, Any]) -> None:
        if kind is Kind.STATUS:
            self.post(
                e.NodeBirth,
                node=node,
                alias=node,
                boot=boot,
                session=session,
                manifest=fields["manifest"],
                facts={},
                profile="local_worker",
                heartbeat_ms=limits.LAN.heartbeat_ms,
                lost_ms=limits.LAN.lost_ms,
                journal_since=fields["journal_since"],
            )
        elif kind is Kind.ESCALATE:
            self.post(e.EscalationArrived, node=node, **fields)
        elif kind is Kind.HEARTBEAT:
            where = {"node": node, "boot": boot, "session": session}
            self.post(e.HeartbeatArrived, **where, **fields, health={})
        elif kind is Kind.ACCEPT:
            self.post(e.AcceptArrived, node=node, **fields)
        elif kind is Kind.REJECT:
            self.post(e.RejectArrived, node=node, **fields)
        elif kind is Kind.RESPONSE:
            self.post(e.InventoryArrived, node=node, **fields)
        else:
            results = tuple(
                e.Result(r.dispatch, r.hash, r.outcome, r.duration_ms, r.result, r.error)
                for r in fields["results"]
            )
            if "chunk" in fields:
                results = self._assemble(node, *fields["chunk"])
            if results:
                self.post(e.ResultsArrived, node=node, results=results)

    def _assemble(self, node: str, record: Any, chunk: dict[str, Any]) -> tuple[e.Result, ...]:
        item = {"id": record.dispatch, "hash": record.hash, "chunk": chunk}
        index = self._assembly.take(node, item, self.world.now_ms)
        if index is not None:
            wants = {"beat": None, "settled": (), "wants": ((record.dispatch, index),)}
            self._send(node, Kind.ACK, wants)
            return ()
        value = self._assembly.value(node, item)
        self.assembled += 1
        return (
            e.Result(record.dispatch, record.hash, record.outcome, record.duration_ms, value, None),
        )

    # the engine

    def post(self, kind: type[e.Event | Tick], /, **fields: Any) -> None:
        """One turn: decide, commit, act; a kill may come between any two. The dead hear nothing."""
        if not self.alive:
            return
        self._causes += 1
        event = kind(self.world.now_ms, f"c{self._epoch}.{self._causes}", **fields)
        changes, commands = self.core.handle(event)
        if self._power_cut(BEFORE, bool(changes)):
            return
        self.stored += changes
        for change in changes:
            self._tell(change)
        if self._power_cut(AFTER, bool(changes)):
            return
        self._perform(commands)
        if self.core.state.approvals and self._answer_ms is None:
            self._answer_ms = self.world.now_ms + 1_500

    def _power_cut(self, where: str, matters: bool) -> bool:
        world = self.world
        self.commits += matters and where == AFTER
        if matters and self.cut_at == (self.commits, where):
            self.cut_at = None
            self.kill()
            world.at(world.now_ms + 2_000, self.start)
            return True
        if not matters or world.now_ms > world.faulty_until_ms or world.dice.random() > 0.004:
            return False
        world.tell(f"orchestrator: power cut {where}")
        self.kill()
        world.at(world.now_ms + world.dice.choice((100, 2_000, 12_000)), self.start)
        return True

    def _tell(self, change: c.Change) -> None:
        fields = {
            name: str(getattr(change, name))
            for name in (
                "run",
                "dispatch",
                "action",
                "node",
                "state",
                "liveness",
                "admission",
                "fault",
            )
            if getattr(change, name, None)
        }
        self.world.tell(f"{type(change).__name__} {' '.join(fields.values())}")
        if isinstance(change, a.AdmissionChanged):
            self._admissions[change.node] = change.admission
        elif isinstance(change, c.DispatchPlanned):
            if self._admissions.get(change.node, Admission.OPEN) is not Admission.OPEN:
                self._broken.append(f"{change.node} got {change.dispatch} and is not open")
            self.world.unit_of[change.dispatch] = (change.run, change.action)
        elif isinstance(change, c.RetryPlanned):
            self.world.reruns[change.run, change.action] += 1
        elif isinstance(change, c.ApprovalAsked):
            self._asked[change.approval] = (change.run, change.action)
        elif isinstance(change, c.ApprovalClosed) and change.option == "rerun":
            self.world.reruns[self._asked[change.approval]] += 1

    def _perform(self, commands: list[k.Command]) -> None:
        delegates: dict[str, list[tuple[Any, bytes]]] = {}
        for command in commands:
            if isinstance(command, k.SendDispatch):
                digest = hashlib.sha256(command.bin).digest()
                delegates.setdefault(command.node, []).append(
                    (decode_dispatch(command.bin), digest)
                )
            elif isinstance(command, k.SendAck):
                fields = {"beat": command.beat, "settled": command.settled}
                self._send(command.node, Kind.ACK, fields)
            elif isinstance(command, k.SendCancel):
                fields = {"do": "cancel", "dispatches": command.dispatches}
                self._send(command.node, Kind.COMMAND, fields)
            elif isinstance(command, k.SendAdmission):
                self._send(command.node, Kind.COMMAND, {"do": command.do})
            elif isinstance(command, k.AskInventory):
                self._send(command.node, Kind.REQUEST, {"nonce": command.nonce})
            elif isinstance(command, k.AskRebirth):
                self._send(command.node, Kind.COMMAND, {"do": "rebirth"})
        for node, dispatches in delegates.items():
            self._send(node, Kind.DELEGATE, {"dispatches": dispatches})

    def _send(self, node: str, kind: Kind, fields: dict[str, Any]) -> None:
        from world import down

        self._seq += 1
        if self.link.connected:
            letter = (kind, self._epoch, self._seq, fields)
            topic, payload = down(node, kind), self.world.write(letter)
            self.published.append((self.world.now_ms, topic, payload))
            self.link.publish(topic, payload)

    def next_ms(self) -> int | None:
        if not self.alive:
            return None
        if self.world.now_ms < self.still_until_ms:
            return self.still_until_ms
        if self._waiting:
            return self.world.now_ms
        times = [self.core.next_deadline_ms(), self._answer_ms]
        return min((t for t in times if t is not None), default=None)

    def tick(self) -> None:
        now_ms = self.world.now_ms
        if now_ms < self.still_until_ms:
            return
        while self.alive and self._waiting:
            plan = self._waiting.pop()
            dice = self.world.dice.getrandbits(64)
            before = len(self.stored)
            self.post(e.PlanSubmitted, dice=dice, plan=plan, digest="d", by="eve")
            if len(self.stored) == before:
                self._waiting.append(plan)  # nobody was told that it was accepted
        if self.alive and self._answer_ms is not None and self._answer_ms <= now_ms:
            self._answer_ms = None
            self.world.now_answer()
        due_ms = self.core.next_deadline_ms()
        if self.alive and due_ms is not None and due_ms <= now_ms:
            self.post(Tick)

    def problems(self) -> list[str]:
        if not self.alive:
            return []
        problems = self._broken + broken(self.core.state)
        if hasattr(self, "link") and self.link.faults:
            problems.append("the core of the orchestrator raised; see the log")
        return problems

    def idle(self) -> bool:
        return self.alive and not self._waiting and not self.core.state.active

    def unfinished(self) -> list[str]:
        return [
            f"{run.run} is {run.state}: "
            + ", ".join(f"{name} {record.state}" for name, record in run.actions.items())
            for run in self.core.state.runs.values()
            if not run.ended
        ]

    def replay_differs(self) -> list[str]:
        replayed = Scheduler({}, self.stored).state
        live = self.core.state
        # a restart forgets ended runs, a replay of everything does not
        known = (("runs", live.runs), ("dispatches", live.dispatches))
        return [
            f"a replay gives other {name}"
            for name in ("nodes", "admissions", "groups", "approvals", "memory", "epoch", "active")
            if getattr(replayed, name) != getattr(live, name)
        ] + [
            f"a replay gives another {key}"
            for name, records in known
            for key, record in records.items()
            if getattr(replayed, name).get(key) != record
        ]
