"""Who is in, as nodes know it: a signed roster, made anew when that changes, and handed to each node that
holds an older one.

The one rule: a roster is kept in the folder of the CAs before anybody hears of it, so that its version
never falls. Deliberately absent: who may be in; the core decides that.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import joining_changes as j
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.store.lifecycle import Numbered
from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire.documents import Roster
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.trust import ControlKeys

_STIRRING = frozenset({c.NodeEnrolled, a.AdmissionChanged, j.ProfileGranted})
log = logging.getLogger(__name__)


class Rosters:
    """`me` is the orchestrator of `mesh`; `keys` hold the last roster."""

    def __init__(self, mesh: str, me: str, keys: ControlKeys, shell: Shell) -> None:
        self._mesh = mesh
        self._me = me
        self._keys = keys
        self._shell = shell
        #: what is handed out, and its version
        self._document, self._version = b"", 0
        self._soon: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look after it, until `close`."""
        self._shell.births.append(self._born)
        self._shell.lifecycle.watch(self._committed)
        self._stir()

    async def close(self) -> None:
        """Stop."""
        if self._soon is not None:
            self._soon.cancel()

    def tell(self) -> None:
        """Make the roster that holds now, and tell all nodes, also of one that is not new.

        One that would not fit into a message is logged: whoever is removed is shut out all the same.
        """
        self._try()
        if self._keys.held.roster:
            self._shell.tell_all(self._command())

    def _committed(self, numbered: Sequence[Numbered]) -> None:
        if any(type(change) in _STIRRING for _, change in numbered):
            self._stir()

    def _stir(self) -> None:
        """Many who join at once make one roster."""
        if self._soon is None:
            loop = asyncio.get_running_loop()
            self._soon = loop.call_later(limits.ROSTER_GATHER_MS / 1_000, self._made)

    def _made(self) -> None:
        self._soon = None
        if self._try():
            self._shell.tell_all(self._command())

    def _try(self) -> bool:
        try:
            return self._renew()
        except ProtocolError as exc:
            log.error("nodes keep the roster that they have: %s", exc, extra={"code": exc.code})
            return False

    def _renew(self) -> bool:
        """Whether there is a new one. `message.too_large` when it would not fit into a message."""
        held = self._keys.held.roster
        nodes = _standings(self._shell.state)
        if held and (held.nodes, held.orchestrators) == (nodes, (self._me,)):
            return False
        at_ms = self._shell.clock.now_ms()
        # by the clock, so that a store that was restored does not stand still at an old version
        version = max(at_ms, held.version + 1 if held else 1)
        roster = Roster(self._mesh, version, at_ms, (self._me,), nodes)
        signer = self._keys.roster
        self._keys.held.take(roster.sealed(signer.sign, signer.key_id))
        return True

    def _born(self, node: str, fields: Mapping[str, Any]) -> None:
        held = self._keys.held.roster
        if held and fields.get("roster", 0) < held.version:
            self._shell.answer(node, Kind.COMMAND, self._command())

    def _command(self) -> dict[str, Any]:
        held = self._keys.held.roster
        if held and held.version != self._version:
            # also one that was signed anew by another key, in the process that rolled it over
            self._document, self._version = self._keys.held.roster_document(), held.version
        return {"do": "roster", "doc": self._document}


def _standings(state: State) -> dict[str, tuple[str, str]]:
    return {
        node: (_word(state.admission_of(node)), record.profile)
        for node, record in state.enrolled.items()
    }


def _word(admission: Admission) -> str:
    return "revoked" if admission is Admission.REVOKED else "active"
