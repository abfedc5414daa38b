"""The orchestrator around its core: link, stores, engine and watchers as one.

The one rule: it decides nothing. Requests become events and their answers are awaited; messages
become events through `inbound`; what the core asks for leaves through `outbound`, after the commit.
Deliberately absent: HTTP; benches and tests use a shell as the API does.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imlmesh_orchestrator.answering import Answering
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.inbound import Inbound
from imlmesh_orchestrator.intake import Held, Intake
from imlmesh_orchestrator.ledger import Ledger, Notary
from imlmesh_orchestrator.loopback import Loopback
from imlmesh_orchestrator.outbound import Outbound
from imlmesh_orchestrator.outranked import Outranked
from imlmesh_orchestrator.register import Register
from imlmesh_orchestrator.room import Room
from imlmesh_orchestrator.store.compaction import Compaction
from imlmesh_orchestrator.store.files import OpenStore
from imlmesh_orchestrator.store.ledger import LedgerFile
from imlmesh_orchestrator.store.lifecycle import Lifecycle, Marks, Numbered, Replay
from imlmesh_orchestrator.store.mover import Mover
from imlmesh_orchestrator.store.reading import Reader
from imlmesh_orchestrator.stream import Stream
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError, StoreError
from imlmesh_protocol.states import Liveness, RunState
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.envelope import Opener, Sealer
from imlmesh_protocol.wire.seals import Head
from imlmesh_protocol.wire.topics import Kind, Topic, Way
from imlmesh_runtime.clock import Clock
from imlmesh_runtime.engine import Engine
from imlmesh_runtime.link.base import Link, Will
from imlmesh_runtime.sqlite import Store
from imlmesh_runtime.trust import Signer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Voice:
    """Who the orchestrator is and how it signs."""

    mesh: str
    me: str
    signer: Signer
    #: the ledger key, and whose seals are believed
    notary: Notary


@dataclass(frozen=True, slots=True)
class Stores:
    """lifecycle's writer and reader, the way to the files that are copied into, and what output
    held at the start: of telemetry, and the seals that nodes witnessed."""

    lifecycle: Store
    reader: Reader
    open_store: OpenStore
    held: Held = field(default_factory=Held)
    #: whose disk they lie on; None when in memory
    folder: Path | None = None
    witnessed: Sequence[tuple[str, bytes]] = ()


def next_epoch(marks: Marks, now_ms: int) -> int:
    """Above every one that a node may have heard, also when the store is an older copy of itself: not
    below the milliseconds of our clock, unless that seems to be years ahead, which nothing could undo."""
    if marks.at_ms and now_ms - marks.at_ms > limits.EPOCH_CLOCK_MS:
        days = (now_ms - marks.at_ms) // 86_400_000
        log.warning("the clock is %d days ahead of the last change: it makes no epoch", days)
        return marks.epoch + 1
    return max(marks.epoch + 1, now_ms)


class Shell(Answering):
    """One running orchestrator. `replay` is what its store held; `env` the IML_ variables; with
    `four_eyes` nobody opens a gate of a run that they submitted."""

    #: None where no broker is between the nodes and us
    loopback: Loopback | None = None

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
        self.epoch = next_epoch(replay.marks, clock.now_ms())
        self.outranked = Outranked(self.epoch)
        self.lifecycle = Lifecycle(stores.lifecycle, replay.marks)
        self.lifecycle.on_wait = self._store_waits
        self.env = env
        scheduler = Scheduler(env, replay.changes, four_eyes=four_eyes)
        self.state: State = scheduler.state
        # ended runs are not replayed, but their numbers are never used again
        self.state.run_counter = replay.marks.run_counter
        self.state.approval_counter = replay.marks.approval_counter
        sealer = Sealer(voice.signer.sign, voice.signer.key_id, voice.mesh, voice.me, Way.TO)
        sealer.new_session(self.epoch, 0)
        self.sealer = sealer
        #: called with id and fields whenever a node is born
        self.births: list[Callable[[str, Mapping[str, Any]], None]] = []
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
        file = LedgerFile(stores.open_store, replay.marks.seq)
        self.ledger = Ledger(file, voice.notary, stores.open_store, clock, self, stores.witnessed)
        self._keep(stores, file)
        self._requests = 0
        self._ending: dict[str, asyncio.Future[RunState]] = {}
        self._ended: OrderedDict[str, RunState] = OrderedDict()
        self.lifecycle.watch(self._committed)
        self.lifecycle.watch(self.stream.committed)

    def _keep(self, stores: Stores, ledger: LedgerFile) -> None:
        """Make what writes the other files, and what looks after them and their disk."""
        open_store, clock = stores.open_store, self.clock
        room = self.room = Room(stores.folder, lambda: self.mover.measure())
        behind, take = self._outflow_measured, self._inbound.telemetry
        self.mover = Mover(
            self.lifecycle, stores.reader, open_store, clock, behind, ledger, room.scarce
        )
        self.intake = Intake(open_store, stores.held, clock, self.stream, take, room.low)
        self.compaction = Compaction(self.lifecycle, stores.reader, clock, lambda: ledger.tip.seq)

    async def start(self) -> None:
        """Raise the epoch, and only when that is stored begin to listen and speak."""
        committed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def raised(numbered: Sequence[Numbered]) -> None:
            if not committed.done():
                committed.set_result(None)

        self.lifecycle.watch(raised)
        self.lifecycle.patient = True
        self.post(e.Restarted(self.clock.now_ms(), f"epoch-{self.epoch}", self.epoch))
        either: set[asyncio.Future[None]] = {committed, self.engine.failed}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if self.engine.failed.done():
            self.engine.failed.result()
        self.room.start()
        # before the link is open: while the ledger is doubted nothing may start
        await self.ledger.load()
        self.mover.start()
        self.ledger.start()
        self.intake.start()
        self.compaction.start()
        self.link.start(self)

    async def finish(self) -> None:
        """Place nothing more; returns when all that was decided is stored and on its way."""
        # what finds no room now is decided again after the next start
        self.lifecycle.patient = False
        if self.engine.failed.done():
            return
        self.post(e.StopAsked(self.clock.now_ms(), "stop"))
        turned = asyncio.ensure_future(self.engine.turned())
        await asyncio.wait({turned, self.engine.failed}, return_when=asyncio.FIRST_COMPLETED)
        turned.cancel()
        self._outbound.settle_now()

    async def close(self) -> None:
        """Say goodbye and write down what is left; the stores are closed by their owner."""
        self.engine.stop()
        self.room.close()
        if self.loopback is not None:
            self.loopback.close()
        await self.compaction.close()
        told = await self.mover.close()
        # the last seal leaves before the goodbye; a file that refuses entries must not delay that
        await self.ledger.close(seal=told)
        if self.link.connected:
            self._outbound.announce("offline")
        await self.link.close()
        await self.intake.close()

    async def works(self) -> None:
        """Return when a turn was completed, or one that waits for room has tried again."""
        either = [
            asyncio.ensure_future(each) for each in (self.engine.turned(), self.lifecycle.tried())
        ]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in either:
                each.cancel()

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
        return self.state.alias_of(node)

    def tell_all(self, fields: dict[str, Any]) -> None:
        """A command to every node, resting on no commit."""
        self._outbound.tell_all(fields)

    def clear_status(self, node: str) -> None:
        """The broker keeps no word of this node any more."""
        self._outbound.clear_status(node)

    @property
    def unsent(self) -> int:
        """Messages that could not be handed to the link."""
        return self._outbound.unsent

    def will(self) -> Will:
        return self._outbound.will()

    def link_up(self) -> None:
        self._outbound.announce("online")
        self.post(e.BusOpened(self.clock.now_ms(), "link"))
        if self.loopback is not None:
            self.loopback.link_up()

    def link_down(self, reason: str) -> None:
        log.warning("link down: %s", reason)
        self.post(e.BusClosed(self.clock.now_ms(), "link"))

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        if self.loopback is not None and topic == self.loopback.topic:
            self.loopback.came(payload)
        elif self.lifecycle.waits:
            # nothing could be remembered of it; what must not be lost is sent again
            text = "not taken while a commit waits for room"
            self.stream.refusal(self.clock.now_ms(), {"topic": topic}, "store.full", text)
        else:
            self._inbound.message(topic, payload, retained)

    def _store_waits(self, waits: bool) -> None:
        """A commit waits for room, and the engine with it: as good as no connection. Nobody is judged
        for what was not heard, and afterwards everybody says anew what it holds."""
        if waits:
            self.post(e.BusClosed(self.clock.now_ms(), "store"))
        elif self.link.connected:
            self.post(e.BusOpened(self.clock.now_ms(), "store"))

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

    def last_boot(self, node: str) -> int:
        record = self.state.nodes.get(node)
        return record.boot if record is not None else 0

    def asked(self, node: str, obeys: int) -> None:
        self.outranked.asked(node, self.name_of(node), obeys)

    def born(self, node: str, fields: Mapping[str, Any]) -> None:
        for watcher in self.births:
            watcher(node, fields)

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
