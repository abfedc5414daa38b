"""How a removed node is shut out of its mesh: its certificates, its session, its words, its name.

The one rule: each deed may be done again without harm, since a crash may come between any two.
Deliberately absent: when; `access` decides that.
"""

from collections.abc import Sequence

from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.core.state import State
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.takeover import take_over
from imlmesh_protocol import limits
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire.documents import Roster
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.trust import ControlKeys


class BrokerDoor:
    """An `access.Door`; `broker` is the address of the listener for control."""

    def __init__(
        self, authority: Authority, keys: ControlKeys, shell: Shell, broker: Address
    ) -> None:
        self._authority = authority
        self._keys = keys
        self._shell = shell
        self._broker = broker

    def revoke(self, serials: Sequence[int]) -> None:
        self._authority.revoke(serials)

    async def end_session(self, node: str) -> bool:
        return await take_over(self._broker, node, self._keys.context(), limits.ACCESS_HELD_MS)

    def forget(self, node: str) -> None:
        self._shell.clear_status(node)

    def tell_nodes(self) -> None:
        self._shell.tell_all({"do": "roster", "doc": self._roster()})

    def ask_rebirth(self, node: str) -> None:
        self._shell.answer(node, Kind.COMMAND, {"do": "rebirth"})

    def alarm(self, node: str, text: str) -> None:
        place = {"node": node} if node else {"topic": "broker/access.json"}
        self._shell.stream.refusal(self._shell.clock.now_ms(), place, "broker.behind", text)

    def _roster(self) -> bytes:
        """The next roster, kept here before anybody hears of it, so that its version never falls."""
        held, me = self._keys.held, self._authority.orchestrator
        version = held.roster.version + 1 if held.roster else 1
        nodes = _standings(self._shell.state)
        at_ms = self._shell.clock.now_ms()
        roster = Roster(self._authority.mesh, version, at_ms, (me,), nodes)
        document = roster.sealed(self._keys.roster.sign, self._keys.roster.key_id)
        held.take(document)
        return document


def _standings(state: State) -> dict[str, tuple[str, str]]:
    return {
        node: (_word(state.admission_of(node)), record.profile)
        for node, record in state.enrolled.items()
    }


def _word(admission: Admission) -> str:
    return "revoked" if admission is Admission.REVOKED else "active"
