"""The process of an orchestrator: `python -m imlmesh_orchestrator --home DIR --broker ADDRESS:PORT`.

The one rule: what it opens it closes, in order, also after a failed start. Deliberately absent:
when to end; `runtime/process` knows that.
"""

import argparse
import asyncio
import logging
import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from imlmesh_orchestrator.announcing import Announcing, announced_mesh, check_announced
from imlmesh_orchestrator.api.served import Served
from imlmesh_orchestrator.api.server import Api
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.config import Config, load_config
from imlmesh_orchestrator.entry.enrolling import Enrolling
from imlmesh_orchestrator.entry.joining import Joining, Reach, reach_of
from imlmesh_orchestrator.entry.renewing import Renewing
from imlmesh_orchestrator.intake import Held
from imlmesh_orchestrator.ledger import Notary
from imlmesh_orchestrator.loopback import Loopback
from imlmesh_orchestrator.shell import Shell, Stores, Voice
from imlmesh_orchestrator.store.files import Files
from imlmesh_orchestrator.store.ledger import known_witnesses
from imlmesh_orchestrator.store.lifecycle import replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import FileReader
from imlmesh_orchestrator.store.telemetry import known_series
from imlmesh_orchestrator.trust.access import Access
from imlmesh_orchestrator.trust.door import BrokerDoor
from imlmesh_orchestrator.trust.expiring import ExpiredSessions
from imlmesh_orchestrator.trust.oversize import OversizeTold
from imlmesh_orchestrator.trust.rosters import Rosters
from imlmesh_orchestrator.trust.trusting import Trusting
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, Place, StoreError, TrustError
from imlmesh_protocol.wire.topics import orchestrator_probe, orchestrator_subscriptions
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.files import read_file
from imlmesh_runtime.link.address import JOIN_PORT, address_of
from imlmesh_runtime.link.base import Address, Link
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.notify import is_service
from imlmesh_runtime.paths import Home
from imlmesh_runtime.process import (
    asked_to_end,
    end_in_time,
    only_one,
    unless_told,
    until_told,
)
from imlmesh_runtime.sqlite import Database
from imlmesh_runtime.trust import ControlKeys

log = logging.getLogger(__name__)

T = TypeVar("T")

#: variables that templates of plans may read begin with this
ENV_PREFIX = "IML_"


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that the home says of its orchestrator."""

    home: Home
    mesh: str
    me: str
    keys: ControlKeys
    config: Config
    broker: str
    notary: Notary
    #: where nodes join, to begin with; None: where they did at the last start
    join: Address | None = None
    #: whether the network is told by mDNS where this mesh is
    lan: bool = False

    def link(self) -> Link:
        """The way to the broker; nothing is connected yet."""
        addresses = [address_of(self.broker)]
        probe = orchestrator_probe(self.mesh, self.me)
        subscriptions = (*orchestrator_subscriptions(self.mesh), probe)
        return MqttLink(
            addresses,
            self.me,
            self.keys.context,
            subscriptions,
            retry_max_ms=limits.CONTROL_RETRY_MAX_MS,
        )


def load_setup(
    home: Home, broker: str | None, join: str | None = None, *, lan: bool = False
) -> Setup:
    """Read ids, keys and settings; InputError `home.missing`, `config.invalid`, TrustError.

    `broker` None is for who brings a link that needs none; `join` is the address for joining; with
    `lan` the mesh is announced by mDNS.
    """
    if not home.ca.is_dir():
        raise InputError("home.missing", f"{home.root} has no mesh")
    if broker is not None:
        address_of(broker)
    if lan:
        check_announced(broker)
    names_file = home.ca / "mesh.toml"
    try:
        names = tomllib.loads(read_file(names_file).decode())
        mesh, me = str(names["mesh"]), str(names["orchestrator"])
    except (ValueError, KeyError) as exc:
        raise TrustError("trust.file", str(exc), place=Place(file=str(names_file))) from exc
    strict = is_service()  # which does not go on with a warning that nobody reads
    keys = ControlKeys.load(home.ca, mesh, strict=strict)
    config = load_config(home.config)
    door = address_of(join, "--join", JOIN_PORT) if join is not None else None
    notary = Notary(mesh, keys.ledger, keys.held.ledger_key)
    return Setup(home, mesh, me, keys, config, broker or "memory", notary, door, lan)


async def _with_room(opened: Callable[[], T]) -> T:
    """What `opened` returns; while a full disk keeps it from that it is tried again."""
    told = False
    while True:
        try:
            return opened()
        except StoreError as exc:
            if exc.code != "store.full":
                raise
            if not told:
                log.warning("the start waits for room: %s", exc)
            told = True
            await asyncio.sleep(limits.STORE_RETRY_MS / 1_000)


class RunningOrchestrator:
    """Stores, shell and API of one setup, opened and closed in order; `link` another way to the
    nodes than the setup's."""

    def __init__(self, setup: Setup, link: Link | None = None) -> None:
        self._setup = setup
        self._link = link
        folder = setup.home.orchestrator
        self._files = Files(folder)
        self._reader = FileReader(folder / "lifecycle.db")
        self._output = FileReader(self._files.path("output"))
        # of its own: a question about a year must not make `node list` wait
        self._history = FileReader(self._files.path("output"))
        self._ledger = FileReader(self._files.path("metadata"))
        self._database: Database | None = None
        self._api: Api | None = None
        self._trusting: Trusting | None = None
        self._rosters: Rosters | None = None
        self.joining: Joining | None = None
        self._announcing: Announcing | None = None
        #: None where no broker is between the nodes and us
        self.access: Access | None = None
        self._expired: ExpiredSessions | None = None
        self._oversize: OversizeTold | None = None
        self.shell: Shell | None = None

    async def start(self, *, serve: bool = True) -> Shell:
        """Fold what is stored, raise the epoch, connect and answer; returns the running shell.

        `serve` False leaves the API out, as benches want it.
        """
        setup = self._setup
        shell = self.shell = await self._folded()
        if self._link is None:
            topic = orchestrator_probe(setup.mesh, setup.me)
            shell.loopback = Loopback(topic, shell.link, shell.clock, shell.post)
        trusting = self._trusting = Trusting(
            setup.home.ca, self._authority, setup.keys, setup.notary, shell
        )
        trusting.start()
        rosters = self._rosters = Rosters(setup.mesh, setup.me, setup.keys, shell)
        rosters.start()
        await shell.start()
        if self._link is None:
            door = self._door(shell, rosters)
            self.access = Access(setup.home.broker, shell.state, door)
            shell.lifecycle.watch(self.access.committed)
            self.access.start()
            self._expired = ExpiredSessions(shell.state.enrolled, shell.clock, door.end_session)
            self._expired.start()
            self._oversize = OversizeTold(setup.home.broker / "oversize.json", door.oversize)
            self._oversize.start()
        if serve:
            joining = self.joining = self._opened(shell)
            trusting.when_reloaded = joining.load
            self._api = Api(setup.home, self._served(shell, joining, trusting))
            await self._api.start()
            if setup.lan:
                announced = announced_mesh(setup.home.ca, setup.mesh, *joining.ports)
                self._announcing = Announcing(announced)
                self._announcing.start()
        log.info("epoch %d", shell.epoch)
        return shell

    async def _folded(self) -> Shell:
        """A shell that remembers all that is stored."""
        setup = self._setup
        setup.home.make()
        path = setup.home.orchestrator / "lifecycle.db"
        made = await _with_room(lambda: Database(path, migrations("lifecycle"), inline=True))
        self._database = made
        await _with_room(self._files.open_made)
        held = await self._reader.ask(replay)
        log.info("%d stored changes to fold", len(held.changes))
        voice = Voice(setup.mesh, setup.me, setup.keys.signer, setup.notary)
        series = await self._output.ask(known_series) if self._files.has("output") else ()
        witnessed = await self._output.ask(known_witnesses) if self._files.has("output") else ()
        telemetry = Held(series, setup.config.kept)
        stores = Stores(
            self._database, self._reader, self._files.store, telemetry, path.parent, witnessed
        )
        env = {k: v for k, v in os.environ.items() if k.startswith(ENV_PREFIX)}
        clock, four_eyes = MeshClock(held.marks.at_ms + 1), setup.config.four_eyes
        link = self._link or setup.link()
        return Shell(voice, link, clock, stores, held, env, four_eyes=four_eyes)

    async def close(self) -> None:
        """Stop taking, finish, write down what is left and say goodbye; safe after a failed start."""
        if self._announcing is not None:
            await self._announcing.close()
        if self._api is not None:
            self._api.refuse_new()
        if self.shell is not None:
            await self.shell.finish()
        if self._api is not None:
            await self._api.close()
        watching = (self.access, self._expired, self._oversize)
        for each in (self._trusting, self._rosters, self.joining, *watching):
            if each is not None:
                await each.close()
        if self.shell is not None:
            await self.shell.close()
        self._reader.close()
        self._output.close()
        self._history.close()
        self._ledger.close()
        await self._files.close()
        if self._database is not None:
            await self._database.close()

    def enrolling(self, shell: Shell) -> Enrolling:
        """The way for nodes into this mesh."""
        return Enrolling(self._authority(), shell, self._setup.config.node_s)

    def _authority(self) -> Authority:
        return Authority.open(self._setup.home)

    def _opened(self, shell: Shell) -> Joining:
        """The way in for other machines; closed where no other machine can be a node."""
        setup = self._setup
        if self._link is not None:
            reach = Reach(setup.mesh, setup.me, setup.broker, "lan")
            return Joining(setup.home, shell, self.enrolling(shell), reach)
        reach = reach_of(setup.home, setup.mesh, setup.me, setup.broker)
        joining = Joining(setup.home, shell, self.enrolling(shell), reach)
        renewing = Renewing(self._authority(), shell, joining.take_nonce, setup.config.node_s)
        joining.routes["POST", "/v1/renew"] = renewing.answer
        joining.start(setup.join)
        return joining

    def _door(self, shell: Shell, rosters: Rosters) -> BrokerDoor:
        setup = self._setup
        return BrokerDoor(self._authority(), setup.keys, rosters, shell, address_of(setup.broker))

    def _served(self, shell: Shell, joining: Joining, trusting: Trusting) -> Served:
        setup = self._setup
        return Served(
            shell=shell,
            enrolling=self.enrolling(shell),
            trusting=trusting,
            joining=joining,
            access=self.access,
            config=setup.config,
            output=self._output,
            history=self._history,
            output_path=self._files.path("output"),
            ledger=self._ledger,
            mesh=setup.mesh,
            orchestrator=setup.me,
            broker=setup.broker,
            version=version("imlmesh"),
            started_at_ms=shell.clock.now_ms(),
        )


async def run_orchestrator(setup: Setup) -> int:
    """Run until told to end; 0, or 1 when it could not go on.

    Raises InputError, TrustError or StoreError when the home cannot be used, InputError
    `orchestrator.running` when another one uses it.
    """
    home = setup.home
    home.make()
    asked = asked_to_end()
    with only_one(home.pid_file("orchestrator"), "orchestrator.running"):
        running, failed = RunningOrchestrator(setup), False
        try:
            shell = await unless_told(asked, running.start())
            if shell is not None:
                failed = await until_told(shell.engine.failed, shell.works, asked)
        finally:
            with end_in_time():
                await running.close()
    return 1 if failed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises what `load_setup` and `run_orchestrator` raise."""
    parser = argparse.ArgumentParser(prog="imlmesh_orchestrator", allow_abbrev=False)
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--broker", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--api", type=Path, help="where the API listens; else run/ of the home")
    parser.add_argument("--join", metavar="ADDRESS:PORT", help="where nodes join, or a port above")
    parser.add_argument("--lan", action="store_true", help="tell the network by mDNS")
    given = parser.parse_args(argv)
    set_up_logs()
    home = Home(given.home.absolute(), given.api.absolute() if given.api else None)
    return asyncio.run(run_orchestrator(load_setup(home, given.broker, given.join, lan=given.lan)))
