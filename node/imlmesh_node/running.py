"""One agent, put together: core, engine, journal, executor and link of one node folder.

The one rule: it ends in the order in which a loss would hurt: drivers are stopped and their ends
recorded, then the goodbye leaves, then link, drivers and journal close.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imlmesh_node.config import NodeConfig, Policy
from imlmesh_node.core.agent import Agent
from imlmesh_node.core.changes import Change
from imlmesh_node.core.commands import Command
from imlmesh_node.core.config import AgentConfig
from imlmesh_node.core.events import Event, RebirthAsked, ShutdownAsked
from imlmesh_node.edge import Edge
from imlmesh_node.executor import Executor
from imlmesh_node.guard import Guard
from imlmesh_node.inbox import Inbox, Refusals
from imlmesh_node.journal import Journal, Loaded
from imlmesh_node.offering import Offering
from imlmesh_node.outbox import Address, Letter, Outbox
from imlmesh_node.permitted import Permitted
from imlmesh_node.presence import Clocks, Presence
from imlmesh_node.reloading import Reloading
from imlmesh_node.shell import Birth, LinkShell, Performer
from imlmesh_node.space import Space
from imlmesh_node.witness import Witness
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.limits import GOODBYE_MS
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.documents import ROSTER, TRUST, Standing
from imlmesh_protocol.wire.envelope import Opener, Sealer
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.permits import PERMIT
from imlmesh_protocol.wire.topics import REFUSALS, Kind, Way
from imlmesh_runtime.engine import Engine
from imlmesh_runtime.link.base import Link
from imlmesh_runtime.trust import NodeKeys


@dataclass(frozen=True, slots=True)
class Setup:
    """What a node's folder gives: who it is, what it may, its keys."""

    folder: Path
    config: NodeConfig
    policy: Policy
    keys: NodeKeys


class RunningNode:
    """Needs a running loop; `loaded` is what `journal.load` returned."""

    def __init__(self, setup: Setup, journal: Journal, loaded: Loaded, link: Link) -> None:
        config, keys = setup.config, setup.keys
        self._offering = Offering(setup.policy.modules)
        self._held = keys.held
        self._id = config.id
        self._guard = Guard(setup.policy, self._offering.manifest, Space(setup.folder).refusal)
        self._guard.rule(self._standing())
        self.clocks = Clocks()
        self.refusals = Refusals(self._tell_refusals)
        self.link = link
        self._journal = journal
        self._since = loaded.since
        sealer = Sealer(keys.signer.sign, keys.signer.key_id, config.mesh, config.id, Way.FROM)
        address = Address(config.mesh, config.id, config.orchestrator)
        self._outbox = Outbox(address, sealer, link, self.clocks.mesh)
        self.presence = Presence(
            self._outbox,
            self.clocks,
            self._post,
            loaded,
            self._store_boot,
        )
        self.edge = Edge(setup.folder, self._outbox, self.presence, self.clocks, self.refusals)
        streams, steady = self.edge.streams, self.clocks.steady
        self._executor = Executor(
            setup.policy.site, streams, self._post, steady, self._offering.apart
        )
        self.reloading = Reloading(self._offering, self._executor, self._guard, self._tell_birth)
        self.witness = Witness(config.mesh, keys.held.ledger_key, journal.keep_seals, loaded.seal)
        self._performer = Performer(
            self._outbox,
            self._executor,
            _birth(setup, self._offering, lambda: self._guard.profile, lambda: self._since),
            self.refusals,
            journal.read_chunk,
            self.edge.spool.health,
            self.witness,
        )
        self._permitted = Permitted(
            config, keys.held.plan_key, self._guard, self._executor, self._post, steady
        )
        self.agent = _agent(config, loaded, self._permitted)
        self._permitted.serve(self.agent.permits, self._performer, streams)
        self.clocks.busy = lambda: bool(self.agent.held_ids())
        self.engine: Engine[Event, Change, Command] = Engine(
            self.agent, self._performer, journal.commit, self.clocks.steady, Tick
        )
        inbox = self._inbox(config, keys, loaded.floor)
        self._shell = LinkShell(self.presence, inbox, self.engine.turn_now)

    def _inbox(self, config: NodeConfig, keys: NodeKeys, floor: tuple[int, int]) -> Inbox:
        opener = Opener(config.mesh, config.id, keys.find_key, config.orchestrator)
        opener.floors[config.orchestrator, ""] = (floor[0], 0, floor[1])
        return Inbox(
            opener,
            self.presence,
            self._guard,
            self._executor.ends_at_once,
            self._post,
            self.refusals,
            {
                TRUST: self._take_document,
                ROSTER: self._take_document,
                "seal": self._take_seal,
                PERMIT: self._permitted.take,
            },
        )

    def start(self) -> None:
        """Begin to connect; what an earlier agent left open is reported first."""
        self._post(Tick(self.clocks.steady.now_ms()))
        self.edge.start(lambda: len(self.agent.unsettled_ids()))
        self.link.start(self._shell)

    def stand_guard(self) -> None:
        """Bring what drivers move to its safe state."""
        self._executor.stand_guard(self._offering.manifest.modules)

    def warm_up(self) -> None:
        """Load drivers before they are needed; call it when the start is over."""
        self.stand_guard()
        self._executor.warm_up(self._offering.manifest.modules)

    async def stop(self, finish_ms: int = 0) -> None:
        """Take nothing more, let what runs end within `finish_ms`, stop the rest, say goodbye."""
        self._post(ShutdownAsked(self.clocks.steady.now_ms(), finish_ms))
        await self.reloading.close()
        goodbye = asyncio.ensure_future(self._performer.gone.wait())
        either: set[asyncio.Future[Any]] = {goodbye, self.engine.failed}
        timeout_s = (finish_ms + GOODBYE_MS) / 1_000
        await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        goodbye.cancel()
        self.edge.end_readings()
        self.refusals.close()
        self.presence.close()
        await self.edge.close()
        await self.link.close()
        await self._executor.close()
        self.engine.stop()
        await self._journal.close()

    def hurry(self) -> None:
        """What still runs is stopped now."""
        self._post(ShutdownAsked(self.clocks.steady.now_ms()))

    def _tell_birth(self) -> None:
        self._post(RebirthAsked(self.clocks.steady.now_ms()))

    def _tell_refusals(self, counts: dict[str, int]) -> bool:
        if self.presence.is_open:
            self._outbox.send(Letter(Kind.EVENT, {"values": counts}, REFUSALS, qos=0))
        return self.presence.is_open

    def _store_boot(self, boot: int, done: Callable[[MeshError | None], None]) -> None:
        """Keep a higher number of this start; the journal of before, which knew higher ones, is lost."""

        def stored(error: MeshError | None) -> None:
            if error is None:
                self._since = boot
            done(error)

        self._journal.raise_boot(boot, stored)

    def _take_document(self, message: Message) -> Event | None:
        """Keep newer trust or a newer roster; who sent it hears of the trust that is held now, and of
        what a roster changes here."""
        before = self._standing()
        if not self._held.take(message.fields.get("doc", b"")):
            return None
        if message.fields["do"] == ROSTER and before == self._standing():
            return None
        self._guard.rule(self._standing())
        return RebirthAsked(self.clocks.steady.now_ms(), message.id, message.term)

    def _standing(self) -> Standing | None:
        roster = self._held.roster
        return roster.nodes.get(self._id) if roster else None

    def _take_seal(self, message: Message) -> None:
        self.witness.take(message.fields)

    def _post(self, event: Event) -> None:
        self.engine.post(event)


def _agent(config: NodeConfig, loaded: Loaded, permitted: Permitted) -> Agent:
    told = AgentConfig(
        config.timing.heartbeat_ms,
        floor=loaded.floor,
        lost=loaded.lost,
        quarantined=loaded.quarantined,
        lost_ms=config.timing.lost_ms,
        permits=permitted.believed(loaded.permits),
        mesh_ms=loaded.mesh_ms,
    )
    return Agent(told, loaded.records)


def _birth(
    setup: Setup, offering: Offering, profile: Callable[[], str], since: Callable[[], int]
) -> Birth:
    policy, timing = setup.policy, setup.config.timing
    simulated = policy.site.buses.simulate
    return Birth(
        lambda: offering.manifest, profile, timing, setup.folder, setup.keys.held, simulated, since
    )
