"""A mesh inside this process: orchestrator and nodes, joined by memory instead of a broker.

The one rule: all but the wire is the real thing: the same cores, stores, signatures, drivers, API.
It lives on a loop in a thread of its own and ends with whoever started it. Deliberately absent:
keeping files of users in a temporary home.
"""

import asyncio
import concurrent.futures
import contextlib
import random
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imlmesh.client import Client, path_of
from imlmesh.diagnosis import show_records
from imlmesh.exits import ExitCode
from imlmesh.live import follow, show_end
from imlmesh.mesh import Mesh, machine_name, make_mesh, policy_text
from imlmesh.render import counted, say
from imlmesh.settings import settings
from imlmesh_node.main import load_setup as load_node_setup
from imlmesh_node.opening import open_journal
from imlmesh_node.running import RunningNode
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, MeshError
from imlmesh_protocol.wire.topics import node_subscriptions, orchestrator_subscriptions
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.link.memory import MemoryHub, MemoryLink, MemoryPump
from imlmesh_runtime.logs import set_up_logs
from imlmesh_runtime.paths import find_api
from imlmesh_runtime.process import only_one

_POLL_S = 0.005


class LocalMesh:
    """The mesh of `mesh`'s home with the nodes `names`; `ended` is done when it has stopped."""

    def __init__(self, mesh: Mesh, names: Sequence[str], policy: Path | None) -> None:
        self.mesh = mesh
        self.folders = [mesh.home.node(name) for name in names]
        self._policy = policy
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        # so that nobody who stops waiting for it cancels it
        self.ended.set_running_or_notify_cancel()
        self._ready: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._stop: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="local-mesh", daemon=True)

    def start(self) -> None:
        """Returns when it takes plans; raises MeshError when it cannot begin."""
        self._thread.start()
        self._ready.result()

    def stop(self) -> None:
        """End nodes and orchestrator, also while they start; what they have is stored."""
        if not self._stop.done():
            self._stop.set_result(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as exc:
            if not self._ready.done():
                self._ready.set_exception(exc)
            self.ended.set_exception(exc)
        else:
            self.ended.set_result(None)

    async def _live(self) -> None:
        home = self.mesh.home
        home.make()
        hub = MemoryHub(random.Random())  # noqa: S311 - jitter, no secrets
        pump = MemoryPump(hub)
        try:
            with contextlib.ExitStack() as locks:
                file = home.pid_file("orchestrator")
                locks.enter_context(only_one(file, "orchestrator.running"))
                await self._serve(hub, locks)
        finally:
            pump.close()

    async def _serve(self, hub: MemoryHub, locks: contextlib.ExitStack) -> None:
        setup = load_setup(self.mesh.home, None)
        link = MemoryLink(hub, setup.me, orchestrator_subscriptions(setup.mesh))
        orchestrator = RunningOrchestrator(setup, link)
        nodes: list[RunningNode] = []
        try:
            shell = await orchestrator.start()
            await asyncio.to_thread(self._make_nodes)
            for folder in self.folders:
                locks.enter_context(only_one(folder / "node.lock", "node.running"))
                nodes.append(await _node(folder, hub))
                nodes[-1].start()
            await _all_live(shell, [folder.name for folder in self.folders])
            for node in nodes:
                # a plan that was killed may have left a pump running
                node.stand_guard()
            self._ready.set_result(None)
            stopping = asyncio.wrap_future(self._stop)
            failures = [shell.engine.failed, *(node.engine.failed for node in nodes)]
            either: list[asyncio.Future[Any]] = [stopping, *failures]
            done, _ = await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            for future in done:
                future.result()
        finally:
            await asyncio.gather(*(node.stop() for node in nodes))
            await orchestrator.close()

    def _make_nodes(self) -> None:
        """Not before the orchestrator runs: the home of a mesh that runs already is left alone."""
        with Client.connect(self.mesh.home.root) as client:
            for folder in self.folders:
                self.mesh.own_node(client, folder.name, self._policy)


async def _all_live(shell: Shell, names: Sequence[str]) -> None:
    try:
        async with asyncio.timeout(limits.CHILD_READY_MS / 1000):
            while not all(map(shell.is_live, names)):  # noqa: ASYNC110 - the core tells nobody
                await asyncio.sleep(_POLL_S)
    except TimeoutError as exc:
        seconds = limits.CHILD_READY_MS // 1000
        raise MeshError("process.failed", f"no node was ready within {seconds} s") from exc


async def _node(folder: Path, hub: MemoryHub) -> RunningNode:
    setup = load_node_setup(folder)
    journal, loaded = await open_journal(folder / "journal.db", MeshClock().now_ms())
    subscriptions = node_subscriptions(setup.config.mesh, setup.config.id)
    return RunningNode(setup, journal, loaded, MemoryLink(hub, setup.config.id, subscriptions))


class LocalClient(Client):
    """A mesh inside this process, which ends with `close` or the `with` block. No broker runs.

    `home` keeps everything; else it is temporary. `nodes` are the names of its nodes, else the one
    of this computer; all have the policy.toml `policy`. InputError `orchestrator.running` when
    another process uses the home.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        *,
        policy: str | Path | None = None,
        nodes: Iterable[str] = (),
    ) -> None:
        names = list(dict.fromkeys(nodes)) or [machine_name()]
        if len(names) > limits.LOCAL_NODES:
            raise InputError("usage", f"a local mesh has at most {limits.LOCAL_NODES} nodes")
        file = None if policy is None else Path(policy)
        policy_text("local_worker", file)
        with contextlib.ExitStack() as closing:
            temporary = None if home else tempfile.TemporaryDirectory(prefix="imlmesh-local-")
            root = closing.enter_context(temporary) if temporary else home
            self._is_temporary = temporary is not None
            self.local_mesh = LocalMesh(make_mesh(root, None)[0], names, file)
            closing.callback(self.local_mesh.stop)
            self.local_mesh.start()
            found = self.local_mesh.mesh.home
            super().__init__(found, find_api(found))
            # What is undone when the start fails is done by `close` otherwise.
            self._closing = closing.pop_all()

    def close(self) -> None:
        """End the mesh; a temporary home goes with it."""
        super().close()
        self._closing.close()

    @property
    def loses(self) -> int:
        """Files that plans wrote beneath the nodes' folders, when the home is temporary."""
        if not self._is_temporary:
            return 0
        folders = [folder / "files" for folder in self.local_mesh.folders]
        return sum(path.is_file() for folder in folders for path in folder.rglob("*"))


def run_local(
    submission: Mapping[str, Any],
    policy: Path | None,
    nodes: Sequence[str],
    timeout_s: float | None,
) -> ExitCode:
    """Run a plan on a mesh of its own and show it; the exit code of the run.

    `nodes` are `NAME` or `NAME=GROUP,GROUP`.
    """
    groups = _groups_of(nodes)
    names = [node.partition("=")[0] for node in nodes]
    with _interruptible(), LocalClient(settings.home, policy=policy, nodes=names) as client:
        home = client.home
        set_up_logs(home.logs / "local.log")
        # What is told to be typed in another terminal must reach this mesh.
        settings.home = str(home.root)
        for group, members in groups.items():
            client.put(path_of("groups", group), {"nodes": members})
        submitted = client.post("runs", submission)
        if submitted["warnings"] and settings.output == "table":
            show_records([], submitted["warnings"])
        run = submitted["run"]
        late = interrupted = False
        try:
            late = not asyncio.run(_follow(client, run, timeout_s))
        except KeyboardInterrupt:
            interrupted = True
        if late:
            say(f"{run} takes longer than --timeout: it is cancelled")
        if late or interrupted:
            _cancel(client, run)
        code = show_end(client, run, hints=False)
        if client.loses:
            lost = counted(client.loses, "file")
            say(f"{lost} that it wrote go with the temporary home; keep them with --home FOLDER")
        if interrupted:
            return ExitCode.INTERRUPTED
        return ExitCode.TIMED_OUT if late else code


def _groups_of(nodes: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for node in nodes:
        name, _, listed = node.partition("=")
        for group in filter(None, listed.split(",")):
            groups.setdefault(group, []).append(name)
    return groups


async def _follow(client: LocalClient, run: str, timeout_s: float | None) -> bool:
    """As `follow`; raises what ended the mesh, since nobody will start it again."""
    snapshot = await asyncio.to_thread(client.get, path_of("runs", run))
    ended = asyncio.wrap_future(client.local_mesh.ended)
    following = asyncio.ensure_future(follow(client, snapshot, timeout_s, leave="stop"))
    either: set[asyncio.Future[Any]] = {following, ended}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not following.done():
            ended.result()
            raise MeshError("internal", "the local mesh ended before its run")
        return following.result()
    finally:
        ended.cancel()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def _cancel(client: LocalClient, run: str) -> None:
    try:
        client.post(path_of("runs", run, "cancel"))
    except InputError as exc:
        if exc.code != "run.ended":
            raise
    client.wait(run, timeout_s=limits.STOP_MS / 1000)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end it as Ctrl-C does: nothing temporary may stay behind.

    What nohup ignores stays ignored.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    heeded = [number for number in numbers if before[number] is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])
