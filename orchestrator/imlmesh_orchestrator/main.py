"""The process of an orchestrator: `python -m imlmesh_orchestrator --home DIR --broker ADDRESS:PORT`.

The one rule: it ends by itself when it should: on SIGTERM, SIGINT, or when the pipe from a parent
that started it ends; and with a failure when it can no longer remember what it decides.
"""

import argparse
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from imlmesh_orchestrator.api.served import Served
from imlmesh_orchestrator.api.server import Api
from imlmesh_orchestrator.config import Config, load_config
from imlmesh_orchestrator.shell import Shell, Stores, Voice
from imlmesh_orchestrator.store.files import Files
from imlmesh_orchestrator.store.lifecycle import replay
from imlmesh_orchestrator.store.migrations import migrations
from imlmesh_orchestrator.store.reading import FileReader
from imlmesh_protocol.errors import InputError, MeshError, Place, TrustError
from imlmesh_protocol.wire.topics import orchestrator_subscriptions
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.files import read_file
from imlmesh_runtime.link.base import Link
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.notify import READY, STOPPING, WATCHDOG, notify, watchdog_s
from imlmesh_runtime.paths import Home
from imlmesh_runtime.sqlite import Database
from imlmesh_runtime.trust import ControlKeys

log = logging.getLogger(__name__)

#: descriptor of a pipe whose end means that the parent is gone
PARENT_FD = "IMLMESH_PARENT_FD"
#: variables that templates of plans may read begin with this
ENV_PREFIX = "IML_"
_GC_THRESHOLD = 50_000  # short-lived events are freed by counting, not by the collector
# by default a writer thread waits 5 ms for a loop that encodes and signs; with this they overlap
_SWITCH_S = 0.000_2


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that the home says of its orchestrator."""

    home: Home
    mesh: str
    me: str
    keys: ControlKeys
    config: Config
    broker: str

    def link(self) -> Link:
        """The way to the broker; nothing is connected yet."""
        address, _, port = self.broker.rpartition(":")
        subscriptions = orchestrator_subscriptions(self.mesh)
        return MqttLink(address, int(port), self.me, self.keys.context(), subscriptions)

    def alias(self, node: str) -> str:
        """What people call an enrolled node."""
        enrolled = self.keys.enrolled.node(node)
        return enrolled.alias if enrolled is not None else node


def load_setup(home: Home, broker: str) -> Setup:
    """Read ids, keys and settings; InputError `home.missing`, `config.invalid`, TrustError."""
    if not home.ca.is_dir():
        raise InputError("home.missing", f"{home.root} has no mesh")
    _, _, port = broker.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65_536:
        raise InputError("config.invalid", f"broker {broker!r} is not ADDRESS:PORT")
    names_file = home.ca / "mesh.toml"
    try:
        names = tomllib.loads(read_file(names_file).decode())
        mesh, me = str(names["mesh"]), str(names["orchestrator"])
    except (ValueError, KeyError) as exc:
        raise TrustError("trust.file", str(exc), place=Place(file=str(names_file))) from exc
    strict = "INVOCATION_ID" in os.environ  # systemd's: a service does not go on with a warning
    keys = ControlKeys.load(home.ca, mesh, strict=strict)
    config = load_config(home.root / "orchestrator.toml")
    return Setup(home, mesh, me, keys, config, broker)


class RunningOrchestrator:
    """Stores, shell and API of one setup, opened and closed in order."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        folder = setup.home.orchestrator
        self._files = Files(folder)
        self._reader = FileReader(folder / "lifecycle.db")
        self._output = FileReader(self._files.path("output"))
        self._database: Database | None = None
        self._api: Api | None = None
        self.shell: Shell | None = None

    async def start(self, *, serve: bool = True) -> Shell:
        """Fold what is stored, raise the epoch, connect and answer; returns the running shell.

        `serve` False leaves the API out, as benches want it.
        """
        setup = self._setup
        setup.home.make()
        path = setup.home.orchestrator / "lifecycle.db"
        self._database = Database(path, migrations("lifecycle"))
        self._files.open_made()
        held = await self._reader.ask(replay)
        clock = MeshClock(held.marks.at_ms + 1)
        voice = Voice(
            setup.mesh, setup.me, setup.keys.signer, setup.keys.enrolled.find, setup.alias
        )
        stores = Stores(self._database, self._reader, self._files.store)
        env = {k: v for k, v in os.environ.items() if k.startswith(ENV_PREFIX)}
        shell = self.shell = Shell(voice, setup.link(), clock, stores, held, env)
        await shell.start()
        if serve:
            self._api = Api(setup.home, self._served(shell, clock.now_ms()))
            await self._api.start()
        log.info("epoch %d, %d stored changes folded", shell.epoch, len(held.changes))
        return shell

    async def close(self) -> None:
        """Stop taking, say goodbye, write down what is left; safe after a failed start."""
        if self._api is not None:
            await self._api.close()
        if self.shell is not None:
            await self.shell.close()
        self._reader.close()
        self._output.close()
        await self._files.close()
        if self._database is not None:
            await self._database.close()

    def _served(self, shell: Shell, now_ms: int) -> Served:
        setup = self._setup
        return Served(
            shell=shell,
            config=setup.config,
            output=self._output,
            output_path=self._files.path("output"),
            mesh=setup.mesh,
            orchestrator=setup.me,
            broker=setup.broker,
            version=version("imlmesh"),
            started_at_ms=now_ms,
        )


async def run_orchestrator(home: Home, broker: str) -> int:
    """Run until told to end; 0, or 1 when it could not go on.

    Raises InputError, TrustError or StoreError when the home cannot be used, InputError
    `orchestrator.running` when another one uses it.
    """
    setup = load_setup(home, broker)
    home.make()
    with only_one(home):
        running = RunningOrchestrator(setup)
        try:
            shell = await running.start()
            failed = await _live(shell)
            notify(STOPPING)
        finally:
            await running.close()
    return 1 if failed else 0


async def _live(shell: Shell) -> bool:
    """Until somebody ends it, or the engine does; whether it was the engine."""
    loop = asyncio.get_running_loop()
    asked_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_end.set)
    _watch_parent(asked_to_end.set)
    tune_process()
    notify(READY)
    watching = asyncio.ensure_future(_feed_watchdog())
    ending = asyncio.ensure_future(asked_to_end.wait())
    either: set[asyncio.Future[Any]] = {ending, shell.engine.failed}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    watching.cancel()
    ending.cancel()
    if shell.engine.failed.done():
        reason = shell.engine.failed.exception()
        log.critical("ends: what it decides cannot be stored or done: %s", reason)
        return True
    return False


def tune_process() -> None:
    """Set the interpreter for a loop and writer threads that share few cores; once, after start."""
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


@contextlib.contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Hold the home and write its pid file; InputError `orchestrator.running` when it is held."""
    path = home.pid_file("orchestrator")
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            text = f"an orchestrator already runs for {home.root}"
            raise InputError("orchestrator.running", text) from exc
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def _watch_parent(ended: Callable[[], None]) -> None:
    descriptor = os.environ.pop(PARENT_FD, "")
    if not descriptor.isdecimal():
        return
    number = int(descriptor)
    loop = asyncio.get_running_loop()

    def readable() -> None:
        if not os.read(number, 1_024):
            loop.remove_reader(number)
            ended()

    loop.add_reader(number, readable)


async def _feed_watchdog() -> None:
    pause_s = watchdog_s()
    while pause_s is not None:
        notify(WATCHDOG)
        await asyncio.sleep(pause_s)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, raises what `run_orchestrator` raises."""
    parser = argparse.ArgumentParser(prog="imlmesh_orchestrator", allow_abbrev=False)
    parser.add_argument("--home", required=True, type=Path)
    parser.add_argument("--broker", required=True, metavar="ADDRESS:PORT")
    given = parser.parse_args(argv)
    set_up_logs()
    return asyncio.run(run_orchestrator(Home(given.home.absolute()), given.broker))


def script(argv: Sequence[str] | None = None) -> int:
    """As `main`, but each coded error is one line of the log and the exit code 3."""
    try:
        return main(argv)
    except MeshError as exc:
        for error in getattr(exc, "errors", (exc,)):
            log.error("%s", error, extra={"code": error.code, "hint": error.hint})
        return 3
