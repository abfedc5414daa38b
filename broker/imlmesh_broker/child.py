"""A broker as a child of this process: started, watched, restarted, stopped.

The one rule: it is up when a TLS handshake with our own certificate succeeds, for only then it
is our broker that listens. While it runs it is told of every change of who may come in, and what it
says of messages that it did not take is passed on. It ends with its parent. Deliberately absent: which broker it is.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from imlmesh_broker.oversize import OversizeLog
from imlmesh_broker.serving import Served, Source
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, TrustError
from imlmesh_runtime.background import Background
from imlmesh_runtime.files import write_private
from imlmesh_runtime.link.base import retry_ms
from imlmesh_runtime.logs import is_too_long

logger = logging.getLogger(__name__)

USUAL_PORT, USUAL_CONTROL_PORT = 8883, 8884
EVERYWHERE = ""
LOOPBACK = "127.0.0.1"
#: nodes look for a mesh where it was, so it never takes other ports by itself
_OTHER_PORTS = (
    "end that program (ss -ltnp names it); or remove port and control_port from orchestrator/mesh.toml "
    "in the home folder: then nodes elsewhere need the new address"
)
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02
_AGAIN_S = 1.0  # before a broker that was not told is told again
# whoever listens and says nothing is not our broker, which may have ended meanwhile
_HANDSHAKE_S = 1.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class BrokerPlace:
    """Where a broker lives: its folder with key, certificate and access.json, the folder of the CAs,
    its log, its address.

    `host` EVERYWHERE means all addresses of this computer for nodes; control is heard on this
    computer alone. A port that is None is the usual one or the next that is free.
    """

    folder: Path
    ca: Path
    log: Path
    host: str = LOOPBACK
    port: int | None = None
    control_port: int | None = None

    @property
    def served(self) -> Path:
        """Checked copies of what the broker serves by, and its own configuration."""
        return self.folder / "served"


class Broker(ABC):
    """The broker of one mesh as a supervised child of this process.

    `context` makes a client context whose certificate the broker must accept (control's).
    `failed` gets the LinkError `broker.failed` when restarting did not help.
    """

    #: how people call it
    program: ClassVar[str]

    def __init__(
        self, mesh: str, control: str, place: BrokerPlace, context: Callable[[], ssl.SSLContext]
    ) -> None:
        self.port = 0
        self.control_port = 0
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.mesh = mesh
        self.control = control
        self.place = place
        self._context = context
        self._child: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._watcher = Background("telling the broker who may come in", self._watch)
        self._listener = Background("passing on what the broker says", self._listen)
        self._oversize = OversizeLog(place.log, place.folder / "oversize.json", self.oversize_of)
        source = Source(mesh, control, place.ca, place.folder)
        self._served = Served(source, place.served)
        self._telling = asyncio.Lock()
        #: what the child serves by is not proved to be what the copies say, or nobody was told of it
        self._untold = False

    @property
    def pid(self) -> int | None:
        """The number of the running child."""
        return self._child.pid if self._child and self._child.returncode is None else None

    @abstractmethod
    def command(self) -> list[str]:
        """What to run, once the ports are known; writes the files that it reads."""

    @staticmethod
    @abstractmethod
    def oversize_of(line: bytes) -> str | None:
        """The client whose message was too large, if that is what a line of its log says; "" when it has
        no name."""

    def environment(self) -> Mapping[str, str]:
        """Variables for it beside our own."""
        return {}

    async def start(self) -> int:
        """Start, wait until it accepts; returns the port for nodes.

        LinkError `broker.missing` when it is not installed, `broker.failed` when it ends; TrustError
        `broker.lists` or `broker.access` when who may come in cannot be known.
        """
        self.place.served.mkdir(mode=0o700, exist_ok=True)
        self._oversize.begin()
        # one that served before is where its clients look for it
        if not self.port:
            self._find_ports(USUAL_PORT, USUAL_CONTROL_PORT)
        again: set[tuple[int, int]] = set()
        while self._child is None:
            try:
                await self._launch()
            except LinkError as exc:
                # somebody may have taken a port since it was found free, and left it since
                self._find_ports(self.port, self.control_port)
                ports = self.port, self.control_port
                if ports in again or ports == (self.place.port, self.place.control_port):
                    raise self._taken() or exc from exc
                again.add(ports)
        self._keeper = asyncio.get_running_loop().create_task(self._watch_over())
        self._watcher.start()
        self._listener.start()
        return self.port

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after limits.STOP_MS."""
        await self._watcher.close()
        await self._listener.close()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._child is not None:
            await _end(self._child)
            self._child = None

    def _find_ports(self, first: int, first_control: int) -> None:
        place = self.place
        self.port = place.port or free_port(place.host, first)
        self.control_port = place.control_port or free_port(LOOPBACK, first_control, self.port)

    def _taken(self) -> LinkError | None:
        """What to say when somebody else listens on the ports that this mesh was given once."""
        places = (self.place.host, self.place.port), (LOOPBACK, self.place.control_port)
        taken = [str(port) for host, port in places if port and not _is_free(host, port)]
        if not taken:
            return None
        ports = "ports" if len(taken) > 1 else "port"
        text = f"another program listens on the {ports} {' and '.join(taken)} of this mesh"
        return LinkError("broker.failed", text, hint=_OTHER_PORTS)

    async def _watch(self) -> None:
        """Tell the broker when the orchestrator says anew who may come in."""
        while True:
            await asyncio.sleep(limits.BROKER_WATCH_MS / 1000)
            # one that is down takes it all up when it starts
            if self.pid is None or not (self._untold or self._served.is_changed()):
                continue
            try:
                await self._tell()
            except Exception as exc:
                # whatever it is: who looks no more lets nobody be shut out
                logger.error("the broker was not told who may come in: %r", exc)
                await asyncio.sleep(_AGAIN_S)

    async def _listen(self) -> None:
        """Pass on what it says of messages that it did not take."""
        while True:
            await asyncio.sleep(limits.BROKER_SAID_MS / 1000)
            try:
                await asyncio.to_thread(self._oversize.look)
            except OSError as exc:
                logger.error("what the broker says cannot be read or passed on: %s", exc)

    async def _tell(self) -> None:
        async with self._telling:
            was_told, self._untold = not self._untold, True
            if await asyncio.to_thread(self._served.take) or not was_told:
                await self._reload()
            self._tell_applied()

    async def _reload(self) -> None:
        """Returns when the child serves by the copies as they are now.

        It reads them between two packets, and a handshake takes several: one that began after the
        signal and is done proves that it did. LinkError `broker.failed` when it has ended.
        """
        child = self._child
        if child is None or child.returncode is not None:
            raise LinkError("broker.failed", f"{self.program} has ended")
        child.send_signal(signal.SIGHUP)
        await self._accepts(child)

    def _tell_applied(self) -> None:
        """Say which version of access.json is in force."""
        told = json.dumps({"version": self._served.access.version}).encode()
        write_private(self.place.folder / "applied.json", told)
        self._untold = False

    async def _launch(self) -> None:
        """Start the child by the copies as they are now; there is none while this fails."""
        async with self._telling:
            self._untold = True
            await asyncio.to_thread(self._served.take)
            self._child = await self._run(self.command())
            try:
                self._tell_applied()
            except OSError as exc:
                # it runs and is in force all the same; `_watch` tells it again
                logger.error("what the broker applied was not written: %s", exc)

    async def _run(self, command: list[str]) -> asyncio.subprocess.Process:
        log = self.place.log
        if is_too_long(log):
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("ab") as log_file:
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                process_group=0,
                env={**os.environ, **self.environment()},
                preexec_fn=_end_with_parent(os.getpid()),
            )
        try:
            await self._accepts(child)
        except BaseException:
            await _end(child)
            raise
        return child

    async def _accepts(self, child: asyncio.subprocess.Process) -> None:
        context = self._context()
        deadline_s = asyncio.get_running_loop().time() + limits.BROKER_START_MS / 1000
        while asyncio.get_running_loop().time() < deadline_s:
            if child.returncode is not None:
                text = f"{self.program} ended with code {child.returncode}; see {self.place.log}"
                raise LinkError("broker.failed", text)
            try:
                async with asyncio.timeout(_HANDSHAKE_S):
                    _, writer = await asyncio.open_connection(
                        LOOPBACK, self.control_port, ssl=context
                    )
            except ssl.SSLError as exc:
                text = f"port {self.control_port} is served by another broker: {exc.reason}"
                raise LinkError("broker.failed", text) from exc
            except OSError:
                await asyncio.sleep(_POLL_S)
            else:
                writer.transport.abort()
                return
        raise LinkError("broker.failed", f"no answer in {limits.BROKER_START_MS} ms")

    async def _watch_over(self) -> None:
        """Whatever ends the watch over the child, it never ends unsaid."""
        text = f"{self.program} ended {limits.BROKER_RESTARTS} times in a minute"
        try:
            await self._keep()
        except Exception as exc:
            logger.exception("the broker is watched no more")
            text = f"{self.program} is watched no more: {exc!r}"
        self.failed.set_exception(LinkError("broker.failed", text))

    async def _keep(self) -> None:
        """Restart the child when it ends, with growing pauses, until that happens too often."""
        loop = asyncio.get_running_loop()
        ends: deque[float] = deque(maxlen=limits.BROKER_RESTARTS)
        while self._child is not None:
            await self._child.wait()
            now_s = loop.time()
            window_s = limits.BROKER_RESTART_WINDOW_MS / 1000
            if len(ends) == limits.BROKER_RESTARTS and now_s - ends[0] < window_s:
                return
            ends.append(now_s)
            logger.warning("%s ended; starting it again", self.program)
            await asyncio.sleep(retry_ms(len(ends) - 1, 1.0) / 1000)
            try:
                await self._launch()
            except (LinkError, TrustError, OSError) as exc:
                code = getattr(exc, "code", "broker.failed")
                logger.error("the broker did not start: %s", exc, extra={"code": code})


def free_port(host: str, first: int, but: int | None = None) -> int:
    """`first` or the next port on which nobody listens at `host`, and which is not `but`."""
    for port in range(first, first + limits.PORTS_TRIED):
        if port == but:
            continue
        if _is_free(host, port):
            return port
    raise LinkError("broker.failed", f"no free port from {first} to {port}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((host, port))
            return True
    return False


def _end_with_parent(parent: int) -> Callable[[], None]:
    """What the child does before it becomes the broker: ask for SIGTERM when `parent` dies."""

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.terminate()
    try:
        async with asyncio.timeout(limits.STOP_MS / 1000):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
