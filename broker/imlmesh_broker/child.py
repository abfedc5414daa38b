"""A broker as a child of this process: started, watched, restarted, stopped.

The one rule: it is up when a TLS handshake with our own certificate succeeds, for only then it
is our broker that listens. It ends with its parent. Deliberately absent: which broker it is.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import ssl
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_runtime.files import read_file, write_private
from imlmesh_runtime.link.base import retry_ms

logger = logging.getLogger(__name__)

USUAL_PORT = 8883
EVERYWHERE = ""
_LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
_POLL_S = 0.02
# whoever listens and says nothing is not our broker, which may have ended meanwhile
_HANDSHAKE_S = 1.0
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class BrokerPlace:
    """Where a broker lives: its folder with key and certificate, the folder of the CAs, its log, its
    address.

    `host` EVERYWHERE means all addresses of this computer; `port` None the usual one or the next
    that is free.
    """

    folder: Path
    ca: Path
    log: Path
    host: str = _LOOPBACK
    port: int | None = None

    def clients(self) -> Path:
        """Write the certificates of both CAs into one file of the folder."""
        path = self.folder / "clients.pem"
        both = [read_file(self.ca / f"{role}-ca.pem") for role in ("node", "control")]
        write_private(path, b"".join(both))
        return path

    @property
    def near(self) -> str:
        """An address at which this computer reaches the broker."""
        return self.host or _LOOPBACK


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
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.mesh = mesh
        self.control = control
        self.place = place
        self._context = context
        self._child: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The number of the running child."""
        return self._child.pid if self._child and self._child.returncode is None else None

    @abstractmethod
    def command(self) -> list[str]:
        """What to run, once `port` is known; writes the files that it reads."""

    async def start(self) -> int:
        """Start, wait until it accepts; returns the port.

        LinkError `broker.missing` when it is not installed, `broker.failed` when it ends.
        """
        # one that served before is where its clients look for it
        self.port = self.place.port or self.port or free_port(self.place.host, USUAL_PORT)
        again: set[int] = set()
        while self._child is None:
            try:
                self._child = await self._launch(self.command())
            except LinkError:
                # somebody may have taken the port since it was found free, and left it since
                following = free_port(self.place.host, self.port)
                if self.place.port is not None or following in again:
                    raise
                again.add(following)
                self.port = following
        self._keeper = asyncio.get_running_loop().create_task(self._keep(self._child))
        return self.port

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL after limits.STOP_MS."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._child is not None:
            await _end(self._child)
            self._child = None

    async def _launch(self, command: list[str]) -> asyncio.subprocess.Process:
        log = self.place.log
        if log.exists() and log.stat().st_size > limits.LOG_FILE_BYTES:
            log.replace(log.with_name(f"{log.name}.1"))
        with log.open("ab") as log_file:
            child = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                process_group=0,
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
                        self.place.near, self.port, ssl=context
                    )
            except ssl.SSLError as exc:
                text = f"port {self.port} is served by another broker: {exc.reason}"
                raise LinkError("broker.failed", text) from exc
            except OSError:
                await asyncio.sleep(_POLL_S)
            else:
                writer.transport.abort()
                return
        raise LinkError("broker.failed", f"no answer in {limits.BROKER_START_MS} ms")

    async def _keep(self, child: asyncio.subprocess.Process) -> None:
        """Restart the child when it ends, with growing pauses, until that happens too often."""
        loop = asyncio.get_running_loop()
        ends: deque[float] = deque(maxlen=limits.BROKER_RESTARTS)
        while True:
            await child.wait()
            now_s = loop.time()
            window_s = limits.BROKER_RESTART_WINDOW_MS / 1000
            if len(ends) == limits.BROKER_RESTARTS and now_s - ends[0] < window_s:
                break
            ends.append(now_s)
            logger.warning("%s ended; starting it again", self.program)
            await asyncio.sleep(retry_ms(len(ends) - 1, 1.0) / 1000)
            try:
                child = self._child = await self._launch(self.command())
            except LinkError as exc:
                logger.error("the broker did not start: %s", exc, extra={"code": exc.code})
        text = f"{self.program} ended {limits.BROKER_RESTARTS} times in a minute"
        self.failed.set_exception(LinkError("broker.failed", text))


def free_port(host: str, first: int) -> int:
    """`first` or the next port on which nobody listens at `host`."""
    for port in range(first, first + limits.PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((host, port))
                return port
    raise LinkError("broker.failed", f"no free port from {first} to {port}")


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
