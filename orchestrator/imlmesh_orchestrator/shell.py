"""The orchestrator around its core: link, stores, engine and watchers as one.

The one rule: it decides nothing. Requests become events and their answers are awaited; messages
become events through `inbound`; what the core asks for leaves through `outbound`, after the commit.
Deliberately absent: HTTP; benches and tests use a shell as the API does.
"""

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from imlmesh_orchestrator.ca.certificates import Issued
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.given import Newcomer as Newcomer
from imlmesh_orchestrator.given import Stores as Stores
from imlmesh_orchestrator.given import Voice as Voice
from imlmesh_orchestrator.inbound import Inbound
from imlmesh_orchestrator.intake import Intake
from imlmesh_orchestrator.ledger import Ledger
from imlmesh_orchestrator.outbound import Outbound
from imlmesh_orchestrator.register import Register
from imlmesh_orchestrator.store.ledger import LedgerFile
from imlmesh_orchestrator.store.lifecycle import Lifecycle, Numbered, Replay
from imlmesh_orchestrator.store.mover import Mover
from imlmesh_orchestrator.store.projections import Source
from imlmesh_orchestrator.stream import Stream
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError, StoreError
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.states import Liveness, RunState
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.envelope import Opener, Sealer
from imlmesh_protocol.wire.seals import Head
from imlmesh_protocol.wire.topics import Kind, Topic, Way
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.engine import Engine
from imlmesh_runtime.link.base import Link, Will

log = logging.getLogger(__name__)


def starts_at_ms(plan: Plan) -> int:
    """`not_before` of a plan in ms of mesh time; 0 without."""
    if plan.not_before is None:
        return 0
    return max(0, round(datetime.fromisoformat(plan.not_before.upper()).timestamp() * 1_000))


class Shell:
    """One running orchestrator. `replay` is what its store held; `env` the IML_ variables; with
    `four_eyes` nobody opens a gate of a run that they submitted."""

    def __init__(
        self,
        voice: Voice,
        link: Link,
        clock: Clock,
        stores: Stores,
        replay: Replay,
        env: Mapping[str, str],
        *,
        four_eyes: bool = False,
    ) -> None:
        self.link = link
        self.clock = clock
        self.reader = stores.reader
        self.stream = Stream()
        self.epoch = replay.marks.epoch + 1
        self.lifecycle = Lifecycle(stores.lifecycle, replay.marks)
        self.env = env
        scheduler = Scheduler(env, replay.changes, four_eyes=four_eyes)
        self.state: State = scheduler.state
        # ended runs are not replayed, but their numbers are never used again
        self.state.run_counter = replay.marks.run_counter
        self.state.approval_counter = replay.marks.approval_counter
        sealer = Sealer(voice.signer.sign, voice.signer.key_id, voice.mesh, voice.me, Way.TO)
        sealer.new_session(self.epoch, 0)
        self.sealer = sealer
        #: called with id and version of its trust whenever a node is born
        self.births: list[Callable[[str, int], None]] = []
        self._outbound = Outbound(
            voice.mesh, voice.me, sealer, link, clock, self.stream, self.lifecycle
        )
        self._register = Register(self.state)
        opener = Opener(voice.mesh, voice.me, self._register.find_key)
        inbound = Inbound(opener, clock, self.stream, self)
        self._inbound = inbound
        self.engine: Engine[e.Event | Tick, c.Change, Any] = Engine(
            scheduler, self._outbound, self.lifecycle.commit, clock, Tick
        )
        self.engine.failed.add_done_callback(self._engine_ended)
        open_store, behind = stores.open_store, self._outflow_measured
        file = LedgerFile(open_store, replay.marks.seq)
        self.ledger = Ledger(file, voice.notary, open_store, clock, self, stores.witnessed)
        self.mover = Mover(self.lifecycle, stores.reader, open_store, clock, behind, file)
        self.intake = Intake(open_store, stores.held, clock, self.stream, inbound.telemetry)
        self._requests = 0
        self._ending: dict[str, asyncio.Future[RunState]] = {}
        self._ended: OrderedDict[str, RunState] = OrderedDict()
        self.lifecycle.watch(self._committed)
        self.lifecycle.watch(self.stream.committed)

    async def start(self) -> None:
        """Raise the epoch, and only when that is stored begin to listen and speak."""
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def raised(numbered: Sequence[Numbered]) -> None:
            if not committed.done():
                committed.set_result(None)

        self.lifecycle.watch(raised)
        self.post(e.Restarted(self.clock.now_ms(), f"epoch-{self.epoch}", self.epoch))
        either: set[asyncio.Future[None]] = {committed, self.engine.failed}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.engine.failed.done():
            self.engine.failed.result()
        # before the link is open: while the ledger is doubted nothing may start
        await self.ledger.load()
        self.mover.start()
        self.ledger.start()
        self.intake.start()
        self.link.start(self)

    async def close(self) -> None:
        """Say goodbye and write down what is left; the stores are closed by their owner."""
        self.engine.stop()
        told = await self.mover.close()
        # the last seal leaves before the goodbye; a file that refuses entries must not delay that
        await self.ledger.close(seal=told)
        if self.link.connected:
            self._outbound.announce("offline")
        await self.link.close()
        await self.intake.close()

    async def submit(self, plan: Plan, digest: str, by: str, source: Source | None = None) -> str:
        """The id of a new run of a validated plan, once it is stored; MeshError when refused."""
        run, _ = await self.submit_from(plan, digest, by, source)
        return run

    async def submit_from(
        self,
        plan: Plan,
        digest: str,
        by: str,
        source: Source | None = None,
        *,
        priority: int = 0,
        retried: e.Retried | None = None,
    ) -> tuple[str, int]:
        """As `submit`, with the seq after which everything about a new run comes.

        `retried` is what the run takes over from the ended one that it retries.
        """
        cause = self._next_cause()
        if source is not None:
            self.lifecycle.expect(cause, source)
        event = e.PlanSubmitted(
            self.clock.now_ms(),
            cause,
            secrets.randbits(64),
            plan,
            digest,
            by,
            priority,
            starts_at_ms(plan),
            retried,
        )
        try:
            return await self._ask(event)
        finally:
            self.lifecycle.forget(cause)

    async def cancel(self, run: str, by: str) -> str:
        """The state of the run, now that cancelling it is stored."""
        event = e.CancelAsked(self.clock.now_ms(), self._next_cause(), run, by)
        return str((await self._ask(event))[0])

    async def pause(self, run: str, by: str) -> str:
        """Nothing new starts in the run until it is resumed; its state, now that this is stored."""
        event = e.PauseAsked(self.clock.now_ms(), self._next_cause(), run, by)
        return str((await self._ask(event))[0])

    async def resume(self, run: str, by: str) -> str:
        """The paused run goes on; its state, now that this is stored."""
        event = e.ResumeAsked(self.clock.now_ms(), self._next_cause(), run, by)
        return str((await self._ask(event))[0])

    async def set_memory(self, session: str, key: str, value: Any, by: str) -> None:
        """Write a value of a session's memory; `memory.too_large` when it can never fit."""
        await self._ask(
            e.MemorySet(self.clock.now_ms(), self._next_cause(), session, key, value, by)
        )

    async def delete_memory(self, session: str, key: str, by: str) -> None:
        """Take a value away; `memory.not_found`."""
        await self._ask(
            e.MemoryDeleteAsked(self.clock.now_ms(), self._next_cause(), session, key, by)
        )

    async def answer_approval(self, approval: str, option: str, by: str) -> None:
        """A person's choice, stored; `approval.closed`, `.superseded`, `.option` when it does not count."""
        event = e.AnswerGiven(self.clock.now_ms(), self._next_cause(), approval, option, by)
        await self._ask(event)

    async def acknowledge(self, by: str, reason: str) -> int:
        """Go on although the ledger is doubted; how many doubts that ends. `ledger.undoubted`."""
        event = e.AcknowledgementGiven(self.clock.now_ms(), self._next_cause(), by, reason)
        return int((await self._ask(event))[0])

    async def enrol(self, newcomer: Newcomer, issued: Issued, by: str) -> None:
        """Let a node in with the certificate that was made for it; `node.exists`, `node.too_many`."""
        event = e.EnrolAsked(
            self.clock.now_ms(),
            self._next_cause(),
            newcomer.node,
            newcomer.alias,
            newcomer.identity,
            newcomer.profile,
            by,
            str(issued.serial),
            issued.not_after_ms,
        )
        await self._ask(event)

    async def set_group(self, group: str, nodes: tuple[str, ...]) -> None:
        """From now on the group has exactly these node ids; none removes it."""
        await self._ask(e.GroupSet(self.clock.now_ms(), self._next_cause(), group, nodes))

    async def set_labels(self, node: str, labels: Mapping[str, Any]) -> None:
        """Change labels of one node; None removes one."""
        await self._ask(e.LabelsSet(self.clock.now_ms(), self._next_cause(), node, labels))

    def when_ended(self, run: str) -> asyncio.Future[RunState]:
        """The state that the run ends in, once that is stored; `run.not_found` when long gone."""
        future = self._ending.get(run)
        if future is not None:
            return future
        future = asyncio.get_running_loop().create_future()
        if run in self._ended:
            future.set_result(self._ended[run])
        elif run in self.state.runs:
            self._ending[run] = future
        else:
            raise InputError("run.not_found", f"no run {run}")
        return future

    def name_of(self, node: str) -> str:
        """What people call a node; its id when nobody introduced it."""
        record = self.state.nodes.get(node)
        return record.alias if record is not None else node

    @property
    def unsent(self) -> int:
        """Messages that could not be handed to the link."""
        return self._outbound.unsent

    def tell_all(self, fields: dict[str, Any]) -> None:
        """A command to every node, resting on no commit."""
        self._outbound.tell_all(fields)

    def will(self) -> Will:
        return self._outbound.will()

    def link_up(self) -> None:
        self._outbound.announce("online")
        self.post(e.BusOpened(self.clock.now_ms(), "link"))

    def link_down(self, reason: str) -> None:
        log.warning("link down: %s", reason)
        self.post(e.BusClosed(self.clock.now_ms(), "link"))

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        self._inbound.message(topic, payload, retained)

    def handed_over(self) -> None:
        self.engine.turn_now()

    def post(self, event: e.Event) -> None:
        self.engine.post(event)

    def post_quiet(self, make_event: Callable[[], e.Event | None]) -> None:
        self.engine.post_quiet(make_event)

    def answer(self, node: str, kind: Kind, fields: dict[str, Any]) -> None:
        self._outbound.send(node, kind, fields)

    def alias(self, node: str) -> str:
        return self._register.alias(node)

    def is_live(self, node: str) -> bool:
        record = self.state.nodes.get(node)
        present = node in self.state.presence
        return present and record is not None and record.liveness is Liveness.ONLINE

    def born(self, node: str, trust: int) -> None:
        for watcher in self.births:
            watcher(node, trust)

    def beat(self, event: e.HeartbeatArrived) -> None:
        self.intake.beat(event.node, event.at_ms, event.beat, event.health)
        self.stream.heartbeat(
            {
                "at_ms": event.at_ms,
                "node": event.node,
                "beat": event.beat,
                "health": dict(event.health),
            }
        )

    def witnessed(self, node: str, seal: bytes | None) -> None:
        self.ledger.heard(node, seal)

    def send_seal(self, node: str, fields: Mapping[str, Any]) -> None:
        if self.link.connected:
            self._outbound.send_seal(node, fields)

    def seal_contradicted(self, witness: str, head: Head) -> None:
        self.post(e.SealContradicted(self.clock.now_ms(), f"seal-{head[0]}", witness, *head))

    def acknowledged_heads(self) -> Iterable[Head]:
        return self.state.acknowledged

    def telemetry_came(self, topic: Topic, payload: bytes) -> None:
        self.intake.came(topic, payload)

    def measured(self, node: str, name: str, fields: Mapping[str, Any], at_ms: int) -> None:
        self.intake.measured(node, name, fields, at_ms)

    async def _ask(self, event: e.Event) -> tuple[Any, int]:
        if self.engine.failed.done():
            raise StoreError("store.failed", "the orchestrator is ending")
        future = self._outbound.expect(event.cause)
        self.engine.post(event)
        return await future

    def _next_cause(self) -> str:
        self._requests += 1
        return f"q-{self.epoch}-{self._requests}"

    def _outflow_measured(self, behind: bool) -> None:
        self.post(e.OutflowMeasured(self.clock.now_ms(), "outflow", behind))

    def _committed(self, numbered: Sequence[Numbered]) -> None:
        for _, change in numbered:
            if type(change) is c.RunEnded:
                self._ended[change.run] = change.state
                if len(self._ended) > limits.RECENT_RUNS:
                    self._ended.popitem(last=False)
                future = self._ending.pop(change.run, None)
                if future is not None and not future.done():
                    future.set_result(change.state)

    def _engine_ended(self, failed: "asyncio.Future[None]") -> None:
        reason = None if failed.cancelled() else failed.exception()
        if isinstance(reason, MeshError):
            error: MeshError = reason
        else:
            error = StoreError("store.failed", f"the orchestrator is ending: {reason}")
        self._outbound.fail_all(error)
        for future in self._ending.values():
            if not future.done():
                future.set_exception(error)
        self._ending.clear()
