"""Keeps the papers of a running node good: its certificate is renewed, missed trust is caught up on.

The one rule: running work never notices. A child brings the papers; the link then begins a session
anew with them. Before it connects, a node whose certificate has ended, or that the broker turned
away, asks for a new one. Deliberately absent: certificates themselves; `renewing` knows them.
"""

import asyncio
import contextlib
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path

from imlmesh_node.finding import Finder
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError, TrustError
from imlmesh_runtime.background import Background
from imlmesh_runtime.clock import MeshClock
from imlmesh_runtime.link.address import address_text
from imlmesh_runtime.link.base import Address, Link
from imlmesh_runtime.pairs import Validity, is_issued_by, own_certificate, validity_of
from imlmesh_runtime.trust import HeldTrust

log = logging.getLogger(__name__)

#: the broker did not want our certificate, or we not its, or a disk spoilt our own: newer papers may help
_TURNED_AWAY = frozenset({"link.refused", "link.tls", "trust.file"})


class Papers:
    """The `Addresses` of a node's link: those of `finder`, after what must be done before a connection.

    `joins` are endpoints that the folder names; `draw` gives jitter in [0, 1).
    """

    def __init__(
        self,
        finder: Finder,
        folder: Path,
        held: HeldTrust,
        joins: tuple[Address, ...],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._finder = finder
        self._folder = folder
        self._held = held
        self._joins = joins
        self._draw = draw
        self._clock = MeshClock()
        self._link: Link | None = None
        self._turned_away = self._doubted = False
        self._attempt = 0
        self._again_s = 0.0
        self._spread_until_s = 0.0
        self._stirred = asyncio.Event()
        self._one = asyncio.Lock()
        self._runner = Background("looking after the papers", self._run)

    def start(self, link: Link, clock: MeshClock) -> None:
        """Look after the papers from now on; `clock` is the node's mesh time."""
        self._link, self._clock = link, clock
        self._held.when_newer, self._held.when_unknown = self._newer, self._unknown
        self._runner.start()

    async def close(self) -> None:
        """Stop; a renewal under way is given up, and the pair that there is stays."""
        self._held.when_newer = self._held.when_unknown = lambda: None
        await self._runner.close()
        await self._finder.close()

    async def next(self) -> Address:
        """Where to connect now; before that, newer papers when the present ones cannot do."""
        if self._turned_away or self._has_ended():
            await self._bring()
        return await self._finder.next()

    def reached(self) -> None:
        """A session began."""
        self._turned_away = False
        self._finder.reached()

    def failed(self, error: MeshError) -> None:
        """No session began, or one ended."""
        if error.code in _TURNED_AWAY and not self._turned_away:
            log.warning("turned away: %s", error.message, extra={"code": error.code})
        self._turned_away = error.code in _TURNED_AWAY
        self._finder.failed(error)

    def _newer(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._spread_until_s = now_s + self._draw() * limits.RENEWAL_SPREAD_MS / 1_000
        self._stirred.set()

    def _unknown(self) -> None:
        self._doubted = True
        self._stirred.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._stirred.clear()
            pause_s = max(self._due_in_s(), self._again_s - loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(pause_s, limits.RENEWAL_LOOK_MS / 1_000)):
                    await self._stirred.wait()
                    continue
            if self._due_in_s() <= 0 and await self._bring() and self._link is not None:
                self._link.begin_anew()

    def _due_in_s(self) -> float:
        """How long the papers are good for."""
        if self._doubted:
            return 0.0
        own = self._own()
        if own is None:
            return 0.0
        certificate, validity = own
        if not is_issued_by(certificate, self._held.trust.node_cas[0]):
            return max(0.0, self._spread_until_s - asyncio.get_running_loop().time())
        return max(0.0, (validity.renewal_ms - self._clock.now_ms()) / 1_000)

    def _has_ended(self) -> bool:
        own = self._own()
        return own is None or own[1].ends_ms < self._clock.now_ms()

    def _own(self) -> tuple[bytes, Validity] | None:
        """Our certificate as DER, and from when to when it counts; None for one that a disk spoilt: that is
        renewed as one that has ended, since what proves who we are is another key."""
        try:
            certificate = own_certificate(self._folder / "keys" / "node.pem")
            return certificate, validity_of(certificate)
        except TrustError:
            return None

    async def _bring(self) -> bool:
        """One attempt, unless the last one is too recent; whether there is something new."""
        loop = asyncio.get_running_loop()
        async with self._one:
            if loop.time() < self._again_s:
                return False
            certificate = self._turned_away or not self._doubted
            self._doubted = False
            done = await self._ask(certificate)
            newer = self._held.reload()
            new = done and (certificate or newer)
            self._attempt = 0 if new and self._due_in_s() > 0 else self._attempt + 1
            pause_ms = limits.RENEWAL_RETRY_MS << min(self._attempt, 16)
            pause_ms = min(pause_ms, limits.RENEWAL_RETRY_MAX_MS)
            self._again_s = loop.time() + pause_ms * (1 + self._draw()) / 2_000
            return new

    async def _ask(self, certificate: bool) -> bool:
        """Run the child; whether it did all that it was asked to."""
        places = [*self._joins, *self._finder.joins()]
        if not places:
            return False
        asked = ["--certificate"] if certificate else []
        if self._clock.synced:
            asked += ["--at-ms", str(self._clock.now_ms())]
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "imlmesh_node.renewing", *asked),
            *(str(self._folder), *(address_text(*place) for place in places)),
            stdin=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(limits.RENEWAL_S):
                return await child.wait() == 0
        except TimeoutError:
            log.warning("no answer of a join endpoint in %d s", limits.RENEWAL_S)
            return False
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
