"""What the broker must know of admissions, and the proof that it does it.

The one rule: this side writes what shall hold (`broker/access.json`, the revocation list), whoever
runs the broker applies it and says so (`broker/applied.json`); only then sessions are ended. What
is not applied is an alarm and tried again, never taken for done. It is all told anew at each start,
so a crash at any point is repaired by the next one. Deliberately absent: the broker's own files.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.store.lifecycle import Numbered
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.states import Admission
from imlmesh_runtime.background import Background
from imlmesh_runtime.files import read_file, write_private

log = logging.getLogger(__name__)

_POLL_S = 0.01  # applied.json is a rename away; watching a folder would need its own thread


class Door(Protocol):
    """What else shuts a removed node out."""

    def revoke(self, serials: Sequence[int]) -> None:
        """Write the revocation list: certificates with these numbers, and no others; blocks."""
        ...

    async def end_session(self, node: str) -> bool:
        """End the live session of a node; whether nobody took it back. LinkError."""
        ...

    def forget(self, node: str) -> None:
        """Clear what the broker keeps of the node."""
        ...

    def tell_nodes(self) -> None:
        """Tell all nodes, by a new roster, who is removed."""
        ...

    def ask_rebirth(self, node: str) -> None:
        """The node may read and write again: what it was sent too early is sent once more."""
        ...

    def alarm(self, node: str, text: str) -> None:
        """Something does not hold yet."""
        ...


@dataclass(frozen=True, slots=True)
class Enforced:
    """What was proved at the broker. `session_ended` is None where no session need end."""

    applied: bool = False
    session_ended: bool | None = None

    @property
    def holds(self) -> bool:
        return self.applied and self.session_ended is not False

    def as_record(self) -> dict[str, Any]:
        return {
            "enforced": self.holds,
            "applied": self.applied,
            "session_ended": self.session_ended,
        }


class Access:
    """`folder` is the broker's; `state` is looked at and never changed."""

    def __init__(self, folder: Path, state: State, door: Door) -> None:
        self._file, self._answer = folder / "access.json", folder / "applied.json"
        self._state = state
        self._door = door
        self._stirred = asyncio.Event()
        self._settled = asyncio.Event()
        self._version = max(_version(self._file), _version(self._answer))
        self._written: dict[str, list[str]] | None = None
        #: nodes that the broker still holds in quarantine, as far as we know
        self._quarantined: set[str] = set()
        #: removed nodes whose sessions are proved to be over
        self._ended: set[str] = set()
        self._runner = Background("telling the broker who is shut out", self._run)
        #: the last look at each removed node that is still to come
        self._later: dict[str, asyncio.Task[None]] = {}
        #: what does not hold yet, for people; "" when all does
        self.problem = ""

    def start(self) -> None:
        """Tell the broker now, and then whenever something changes."""
        self._runner.start()

    async def close(self) -> None:
        """Stop; what is not applied is told again at the next start."""
        await self._runner.close()
        looks = list(self._later.values())
        for each in looks:
            each.cancel()
        if looks:
            await asyncio.wait(looks)

    def committed(self, numbered: Sequence[Numbered]) -> None:
        """The watcher of lifecycle."""
        if any(type(change) is a.AdmissionChanged for _, change in numbered):
            self._settled.clear()
            self._stirred.set()

    def renew(self, node: str) -> None:
        """Shut a removed node out once more, as if it had just been removed."""
        self._written = None
        self._ended.discard(node)
        self._settled.clear()
        self._stirred.set()

    async def enforced(self, node: str) -> Enforced:
        """What is proved of a node, as soon as the broker had the time to apply what is decided."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.ACCESS_ANSWER_MS / 1_000):
                await self._settled.wait()
        applied = self._written is not None and _version(self._answer) >= self._version
        removed = self._state.admission_of(node) is Admission.REVOKED
        return Enforced(applied, node in self._ended if removed else None)

    async def _run(self) -> None:
        while True:
            self._stirred.clear()
            try:
                await self._bring_about()
            except Exception as exc:
                # whatever it is, the next try may do it, and people are told that it is not done
                log.exception("the broker could not be told")
                self._alarm("", f"the broker could not be told: {exc!r}")
            if not self._stirred.is_set():
                self._settled.set()
            pause_s = limits.ACCESS_AGAIN_MS / 1_000 if self.problem else limits.CRL_AGAIN_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._stirred.wait()
            except TimeoutError:
                if not self.problem:
                    self._written = None  # the revocation list must not run out

    async def _bring_about(self) -> None:
        wanted = self._wanted()
        if wanted != self._written:
            told = self._written["revoked"] if self._written else []
            await self._write(wanted)
            if wanted["revoked"] != told:
                self._door.tell_nodes()
        if not await self._is_applied():
            # with nobody shut out and nobody who ever applied anything, nothing is open either
            if any(wanted.values()) or _version(self._answer):
                self._alarm("", f"nobody applied version {self._version} of {self._file.name}")
            return
        for node in self._quarantined.difference(*wanted.values()):
            self._door.ask_rebirth(node)
        self._quarantined = set(wanted["quarantined"])
        left = [node for node in wanted["revoked"] if node not in self._ended]
        await asyncio.gather(*map(self._shut_out, left))
        if self._ended.issuperset(left):
            self.problem = ""

    def _wanted(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"revoked": [], "quarantined": []}
        for node, record in sorted(self._state.admissions.items()):
            if str(record.admission) in found:
                found[str(record.admission)].append(node)
        return found

    async def _write(self, wanted: dict[str, list[str]]) -> None:
        version = self._version + 1
        known = self._state.enrolled
        serials = [
            int(serial)
            for node in wanted["revoked"]
            for serial in (known[node].certificates if node in known else ())
        ]
        text = json.dumps({"version": version, **wanted})

        def write() -> None:
            self._door.revoke(serials)
            write_private(self._file, text.encode())

        await asyncio.to_thread(write)
        self._version, self._written = version, wanted

    async def _is_applied(self) -> bool:
        try:
            async with asyncio.timeout(limits.ACCESS_APPLIED_MS / 1_000):
                while True:
                    if _version(self._answer) >= self._version:
                        return True
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            return False

    async def _shut_out(self, node: str) -> None:
        """End its session until nobody takes it back; a last look follows when all is told."""
        loop = asyncio.get_running_loop()
        earlier = self._later.get(node)
        if earlier is not None:
            # it would take us for the node that came back
            earlier.cancel()
            await asyncio.wait([earlier])
        began_s = loop.time()
        *soon, late = (began_s + at_ms / 1_000 for at_ms in limits.ACCESS_KICKS_MS)
        ended = False
        for at_s in soon:
            await asyncio.sleep(at_s - loop.time())
            ended = await self._end_session(node)
        self._door.forget(node)
        if ended:
            self._ended.add(node)
            look = loop.create_task(self._look_again(node, late - loop.time()))
            self._later[node] = look
            look.add_done_callback(lambda done: self._looked(node, done))
        else:
            self._alarm(node, f"the session of {node} has not ended")

    async def _look_again(self, node: str, after_s: float) -> None:
        await asyncio.sleep(after_s)
        if not await self._end_session(node):
            self._ended.discard(node)
            self._alarm(node, f"{node} came back after it was removed")
            self._stirred.set()

    async def _end_session(self, node: str) -> bool:
        try:
            return await self._door.end_session(node)
        except MeshError as exc:
            log.warning("ending the session of %s: %s", node, exc)
            return False

    def _looked(self, node: str, look: asyncio.Task[None]) -> None:
        if self._later.get(node) is look:
            del self._later[node]

    def _alarm(self, node: str, text: str) -> None:
        if self.problem != text:
            log.error(text, extra={"code": "broker.behind"})
            self._door.alarm(node, text)
        self.problem = text


def _version(path: Path) -> int:
    """The version in a file, 0 when there is none that can be read."""
    try:
        found: Mapping[str, Any] = json.loads(read_file(path, limits.ACCESS_BYTES))
        version = found["version"]
    except (MeshError, ValueError, KeyError, TypeError):
        return 0
    return version if type(version) is int and version >= 0 else 0
