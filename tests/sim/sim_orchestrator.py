"""The simulated orchestrator: the real core, a store that survives a kill."""

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Any

from imlmesh_orchestrator.assembly import Assembly
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
from letters import Letter, is_ahead, is_late
from machine import Machine, SimClock
from sim_node import RESTART_MS

if TYPE_CHECKING:
    from world import World

NAME = "orchestrator"
#: a commit that found the disk full is tried again
STORE_RETRY_MS = 250
BEFORE, AFTER = "before its commit", "after its commit"
#: what the story tells of a change
_TOLD = ("run", "dispatch", "action", "node", "state", "liveness", "admission", "option", "fault")
_TOLD += ("permit", "number", "why")


class SimOrchestrator:
    def __init__(self, world: "World") -> None:
        self.world = world
        self.machine = Machine(world)
        self.stored: list[c.Change] = []
        self.core: Scheduler = Scheduler({})
        self.alive = False
        #: until then the machine does nothing, as if it were suspended
        self.still_until_ms = 0
        self._epoch = 0
        #: commits so far, and at which of them, on which side, the power goes
        self.commits = 0
        self.cut_at: tuple[int, str] | None = None
        self._waiting: list[Plan] = []
        #: what waits for room on the disk: a turn that could not be stored, and what came since
        self._stuck: tuple[list[c.Change], list[k.Command]] | None = None
        self._retry_ms = 0
        self._inbox: list[tuple[type[e.Event | Tick], dict[str, Any]]] = []
        self._connected_ms: int | None = None
        self._heard_no = -1
        #: whether its core had a turn since somebody looked at it
        self._turned = False
        #: (at_ms, topic, payload) of everything ever sent
        self.published: list[tuple[int, str, bytes]] = []

    def start(self) -> None:
        from world import MESH

        if self.alive or self.machine.asleep:
            return
        if self.machine.disk_full:  # it waits for its first commit, and nobody hears of it before
            self.world.at(self.world.now_ms + RESTART_MS, self.start)
            return
        self.alive = True
        last_ms = max((change.at_ms for change in self.stored), default=0)
        self.clock = SimClock(self.world, max(self.machine.wall_ms(), last_ms + 1))
        self._connected_ms = None
        self._epoch += 1
        self._seq = self._causes = 0
        self._floors: dict[tuple[str, str], tuple[int, int, int]] = {}
        #: when each node was last told the time, and who was heard to follow it
        self._told_ms: dict[str, int] = {}
        self._follow: set[str] = set()
        self._answer_ms: int | None = None
        self._assembly = Assembly()
        self.world.checks.of_nodes.forgets()
        self.core = Scheduler({}, self.history())
        self._turned = True
        self.world.tell(f"orchestrator starts, epoch {self._epoch}")
        self.post(e.Restarted, epoch=self._epoch)
        if self.alive:
            self.link = self.world.link(NAME, topics.orchestrator_subscriptions(MESH))
            self.link.start(self)

    def kill(self) -> None:
        if self.alive:
            self.world.tell("orchestrator dies")
            self.alive = False
            self._stuck = None
            self._inbox.clear()
            self.machine.forget_heard()
            if hasattr(self, "link"):
                self.link.kill()

    def suspend(self) -> None:
        """Its machine sleeps: nothing is heard or done, time goes on."""
        self.machine.sleep()

    def resume_machine(self, timers_first: bool | None = None) -> None:
        """It wakes; None: chance says whether timers or messages come first."""
        if not self.machine.asleep:
            return
        slept_ms, heard = self.machine.wake()
        self.world.checks.of_nodes.hears_anew()
        self.world.tell(f"the orchestrator's machine wakes after {slept_ms} ms")
        if timers_first is None:
            timers_first = self.world.dice.random() < 0.5
        if timers_first:
            self.tick()
        for act in heard:
            act()
        self.tick()

    def heard_for_ms(self) -> int:
        """How long its connection to the broker has stood, slept time included."""
        up_ms = self._connected_ms
        return 0 if up_ms is None else self.world.now_ms - up_ms

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
        """A person says so of every run: its pause may not be decided yet."""
        for run in list(self.core.state.runs.values()):
            if self.alive and not run.ended:
                self.post(e.ResumeAsked, run=run.run, by="eve")

    @property
    def stuck(self) -> bool:
        """Whether a turn is not stored yet."""
        return self._stuck is not None

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
        self.machine.hear(self._up)

    def _up(self) -> None:
        self._connected_ms = self.world.now_ms
        self.world.checks.of_nodes.hears_anew()
        self.post(e.BusOpened)

    def link_down(self, reason: str) -> None:
        self.machine.hear(self._down)

    def _down(self) -> None:
        self._connected_ms = None
        self.post(e.BusClosed)

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        node = topics.parse(topic).name
        self._heard_no = self.world.came(payload, self._heard_no)
        letter = self.world.read(payload)
        self.machine.hear(lambda: self._message(node, letter, int(payload)))

    def _message(self, node: str, letter: Letter, number: int) -> None:
        if not self.alive:
            return
        kind, boot, session = letter.kind, letter.term, letter.session
        if letter.fields.get("state") == "gone":
            self.post(e.NodeGone, node=node, boot=boot, session=session)
            return
        if kind is not Kind.REQUEST and is_late(letter, self.clock.now_ms()):
            told_ms = self._told_ms.get(node, self.clock.now_ms())
            known = self.clock.now_ms() - told_ms > limits.TIME_KNOWN_MS
            if known and node in self._follow and is_ahead(letter, self.clock.now_ms()):
                seen = {"kind": "ahead", "text": "dated ahead", "mark": str(number)}
                self.post(e.EvidenceSeen, node=node, **seen)
            return
        lane = "heartbeat" if kind is Kind.HEARTBEAT else ""
        place = (boot, session, letter.seq)
        if place <= self._floors.get((node, lane), (0, 0, 0)):
            return
        self._floors[node, lane] = place
        if kind is Kind.REQUEST:
            self._told_ms[node] = self.clock.now_ms()
            record = self.core.state.nodes.get(node)
            answer = {"nonce": letter.fields["nonce"], "at_ms": self.clock.now_ms()}
            answer["boot"] = 0 if record is None else record.boot
            self._send(node, Kind.RESPONSE, answer)
        else:
            self._follow.add(node)
            self._hear(node, kind, boot, session, letter.fields)

    def _hear(self, node: str, kind: Kind, boot: int, session: int, fields: dict[str, Any]) -> None:
        if kind is Kind.STATUS and fields["state"] == "offline":
            self.post(e.NodeLeft, node=node, boot=boot, session=session)
        elif kind is Kind.STATUS:
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
                permits=fields["permits"],
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
        index = self._assembly.take(node, item, self.clock.now_ms())
        if index is not None:
            wants = {"beat": None, "settled": (), "wants": ((record.dispatch, index),)}
            self._send(node, Kind.ACK, wants)
            return ()
        value = self._assembly.value(node, item)
        self.world.happened("a result in chunks")
        return (
            e.Result(record.dispatch, record.hash, record.outcome, record.duration_ms, value, None),
        )

    # the engine

    def post(self, kind: type[e.Event | Tick], /, **fields: Any) -> None:
        """One turn: decide, commit, act; a kill may come between any two. The dead hear nothing."""
        if not self.alive or self.machine.asleep:
            return
        if self._stuck is not None:
            self._inbox.append((kind, fields))
            return
        self._turned = True
        self._causes += 1
        event = kind(self.clock.now_ms(), f"c{self._epoch}.{self._causes}", **fields)
        self.world.checks.of_nodes.heard(event, self.world.now_ms)
        changes, commands = self.core.handle(event)
        self.world.checks.decided(changes)
        if self._power_cut(BEFORE, bool(changes)):
            return
        self._commit(changes, commands)

    def _commit(self, changes: list[c.Change], commands: list[k.Command]) -> None:
        """A commit that finds no room waits for it, and with it all that comes meanwhile."""
        if changes and self.machine.disk_full:
            self.world.happened("a commit failed: store")
            self._stuck = (changes, commands)
            self._retry_ms = self.world.now_ms + STORE_RETRY_MS
            return
        self.stored += changes
        for change in changes:
            self._tell(change)
        if changes:
            self.world.checks.committed(changes, self.core.state)
        if self._power_cut(AFTER, bool(changes)):
            return
        self._perform(commands)
        if self.core.state.approvals and self._answer_ms is None:
            self._answer_ms = self.world.now_ms + 1_500

    def _try_again(self) -> None:
        """The commit that waits for room, then what came meanwhile."""
        if self._stuck is None or self._retry_ms > self.world.now_ms:
            return
        stuck, self._stuck = self._stuck, None
        self.world.checks.of_nodes.hears_anew()
        self._commit(*stuck)
        while self._inbox and self._stuck is None and self.alive:
            kind, fields = self._inbox.pop(0)
            self.post(kind, **fields)

    def _power_cut(self, where: str, matters: bool) -> bool:
        if not matters:
            return False
        self.commits += where == AFTER
        if self.cut_at == (self.commits, where):
            self.cut_at = None
            pause_ms: int | None = 2 * RESTART_MS
        else:
            pause_ms = self.world.power_cut(NAME, where == BEFORE, 0.004)
        if pause_ms is None:
            return False
        self.kill()
        self.world.at(self.world.now_ms + pause_ms, self.start)
        return True

    def _tell(self, change: c.Change) -> None:
        told = [str(getattr(change, name)) for name in _TOLD if getattr(change, name, None)]
        self.world.tell(f"{type(change).__name__} {' '.join(told)}")

    def _perform(self, commands: list[k.Command]) -> None:
        delegates: dict[str, list[tuple[Any, bytes]]] = {}
        for command in commands:
            if isinstance(command, k.SendDispatch):
                self.world.checks.sends(command.node, command.dispatch, command.bin)
                digest = hashlib.sha256(command.bin).digest()
                delegates.setdefault(command.node, []).append(
                    (decode_dispatch(command.bin), digest)
                )
            elif isinstance(command, k.SendAck):
                fields = {"beat": command.beat, "settled": command.settled}
                self.world.checks.settles(command.node, command.settled, self.core.state)
                self._send(command.node, Kind.ACK, fields)
            elif isinstance(command, k.SendCancel):
                fields = {"do": "cancel", "dispatches": command.dispatches}
                self._send(command.node, Kind.COMMAND, fields)
            elif isinstance(command, k.SendAdmission):
                self._send(command.node, Kind.COMMAND, {"do": command.do})
            elif isinstance(command, k.SendPermit):
                self._send(command.node, Kind.COMMAND, {"do": "permit", "bodies": (command.body,)})
            elif isinstance(command, k.DropPermits):
                fields = {"do": "permit", "drop": command.permits}
                self._send(command.node, Kind.COMMAND, fields)
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
            letter = Letter(kind, self._epoch, 0, self._seq, self.clock.now_ms(), fields)
            topic, payload = down(node, kind), self.world.write(letter)
            self.published.append((self.world.now_ms, topic, payload))
            self.link.publish(topic, payload)

    def next_ms(self) -> int | None:
        if not self.alive or self.machine.asleep:
            return None
        if self.world.now_ms < self.still_until_ms:
            return self.still_until_ms
        if self._stuck is not None:
            return self._retry_ms
        if self._waiting:
            return self.world.now_ms
        times = [self.clock.world_ms(self.core.next_deadline_ms()), self._answer_ms]
        return min((t for t in times if t is not None), default=None)

    def tick(self) -> None:
        if self.machine.asleep:
            return
        now_ms = self.world.now_ms
        if now_ms < self.still_until_ms:
            return
        self._try_again()
        if self._stuck is not None:
            return
        while self.alive and self._waiting:
            plan = self._waiting.pop()
            if self.machine.disk_full:
                self.world.tell("a plan is refused: store.full")
                self.world.at(self.world.now_ms + RESTART_MS, partial(self.submit, plan))
                continue
            dice = self.world.dice.getrandbits(64)
            before = len(self.stored)
            self.post(e.PlanSubmitted, dice=dice, plan=plan, digest="d", by="eve")
            if len(self.stored) == before:
                self._waiting.append(plan)  # nobody was told that it was accepted
        if self.alive and self._answer_ms is not None and self._answer_ms <= now_ms:
            self._answer_ms = None
            self.world.now_answer()
        due_ms = self.core.next_deadline_ms()
        if self.alive and due_ms is not None and due_ms <= self.clock.now_ms():
            self.post(Tick)

    def problems(self) -> list[str]:
        """What is wrong since it was last asked; a core without a turn stays as it was."""
        if not self.alive or not self._turned:
            return []
        self._turned = False
        problems = broken(self.core.state) + self.world.checks.unlooked(self.core)
        if hasattr(self, "link") and self.link.faults:
            problems.append("the core of the orchestrator raised; see the log")
        return problems

    def idle(self) -> bool:
        asleep = self.machine.asleep
        busy = self._waiting or self._stuck is not None or self.core.state.active
        return self.alive and not asleep and not busy

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
            for name in (
                "nodes",
                "admissions",
                "groups",
                "approvals",
                "memory",
                "permits",
                "epoch",
                "active",
            )
            if getattr(replayed, name) != getattr(live, name)
        ] + [
            f"a replay gives another {key}"
            for name, records in known
            for key, record in records.items()
            if getattr(replayed, name).get(key) != record
        ]
