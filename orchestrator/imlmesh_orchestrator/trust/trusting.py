"""Trust while the orchestrator runs: handed to each node that holds an older one, reloaded when keys or
CAs rolled over; and the orchestrator's own certificate, renewed in time.

The one rule: what is signed with is what lies in the folder since the last reload; nodes are told in
the voice that they know. Deliberately absent: making keys; `ca/rotation` does that, in whatever
process has the root key.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.core.placement import barred
from imlmesh_orchestrator.ledger import Notary
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol import limits
from imlmesh_protocol.errors import MeshError, TrustError
from imlmesh_protocol.states import Admission, Liveness
from imlmesh_protocol.wire.permits import PERMIT, sign_permit
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.background import Background
from imlmesh_runtime.pairs import own_certificate, validity_of
from imlmesh_runtime.trust import ControlKeys

log = logging.getLogger(__name__)


class Trusting:
    """`authority` opens the folder of the CAs anew; `keys` are those that the orchestrator speaks with."""

    def __init__(
        self,
        ca: Path,
        authority: Callable[[], Authority],
        keys: ControlKeys,
        notary: Notary,
        shell: Shell,
    ) -> None:
        self._ca = ca
        self._authority = authority
        self._keys = keys
        self._notary = notary
        self._shell = shell
        #: the version that each node told of in its last birth
        self._held: dict[str, int] = {}
        self._runner = Background("looking after the trust", self._run)
        #: called when certificates of this machine may be new ones
        self.when_reloaded: Callable[[], None] = lambda: None

    @property
    def version(self) -> int:
        """Of the trust that nodes are handed."""
        return self._keys.held.trust.version

    def start(self) -> None:
        """Look after it, until `close`."""
        self._shell.births.append(self._born)
        self._runner.start()

    async def close(self) -> None:
        """Stop."""
        await self._runner.close()

    def reload(self) -> None:
        """Speak with what lies in the folder now, and tell all nodes of it; TrustError `trust.file`."""
        before = self.version
        self._keys.reload(self._ca)
        plan = self._keys.signer
        self._shell.sealer.sign_with(plan.sign, plan.key_id)
        self._notary.signer = self._keys.ledger
        self.when_reloaded()
        if self.version > before:
            log.info("trust is of version %d now", self.version)
            self._shell.tell_all(self._command())

    def standing(self) -> list[dict[str, Any]]:
        """Of each node that is in: which trust it holds as far as was heard since the start, and
        whether that is older than ours."""
        state = self._shell.state
        found = []
        for node, record in sorted(state.enrolled.items()):
            if state.admission_of(node) is Admission.REVOKED:
                continue
            known = state.nodes.get(node)
            liveness = known.liveness if known is not None else Liveness.OFFLINE
            version = self._held.get(node)
            found.append(
                {
                    "node": node,
                    "alias": record.alias,
                    "liveness": str(liveness),
                    "version": version,
                    "behind": version is None or version < self.version,
                }
            )
        return found

    def _command(self) -> dict[str, Any]:
        return {"do": "trust", "doc": self._keys.held.document}

    def _born(self, node: str, fields: Mapping[str, Any]) -> None:
        before, version = self._held.get(node), fields.get("trust", 0)
        self._held[node] = version
        if version < self.version:
            self._shell.answer(node, Kind.COMMAND, self._command())
        elif version != before:
            self._bring_permits(node, fields.get("permits", {}))

    def _bring_permits(self, node: str, held: Iterable[str]) -> None:
        """Those that it holds, by our present voice: what another one signed means nothing to it after its
        next start, and then it may be cut off."""
        state, now_ms = self._shell.state, self._shell.clock.now_ms()
        if barred(state, node):
            return
        for name in held:
            record = state.permits.get(name)
            if record and record.permit.node == node and record.holds(now_ms):
                document = self._shell.sealer.document(sign_permit, record.body)
                self._shell.answer(node, Kind.COMMAND, {"do": PERMIT, "doc": document})

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(min(self._due_in_s(), limits.TRUST_AGAIN_MS / 1_000))
            self._remind()
            if self._due_in_s() <= 0:
                await self._renew()

    def _remind(self) -> None:
        """What was told while a node could not hear is told again, as long as it is there."""
        for node, version in self._held.items():
            if version < self.version and self._shell.is_live(node):
                self._shell.answer(node, Kind.COMMAND, self._command())

    def _due_in_s(self) -> float:
        try:
            validity = validity_of(own_certificate(self._ca / "control.pem"))
        except TrustError:
            return 0.0  # what a disk spoilt is made anew, as what has ended
        return max(0.0, validity.renewal_ms / 1_000 - time.time())

    async def _renew(self) -> None:
        """A new certificate of our own, and a session with it."""
        try:
            made = await asyncio.to_thread(lambda: self._authority().refresh())
        except (MeshError, OSError) as exc:
            log.error("our own certificate was not renewed: %s", exc, extra={"code": "trust.file"})
            await asyncio.sleep(limits.RENEWAL_RETRY_MS / 1_000)
            return
        log.info("certificates made anew: %s", ", ".join(made))
        self.when_reloaded()
        self._shell.link.begin_anew()
