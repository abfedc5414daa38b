"""How a removed node is shut out of its mesh: its certificates, its session, its words, its name.

The one rule: each deed may be done again without harm, since a crash may come between any two.
Deliberately absent: when; `access` decides that.
"""

from collections.abc import Sequence

from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.shell import Shell
from imlmesh_orchestrator.trust.rosters import Rosters
from imlmesh_orchestrator.trust.takeover import take_over
from imlmesh_protocol import limits
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.trust import ControlKeys


class BrokerDoor:
    """An `access.Door`; `broker` is the address of the listener for control."""

    def __init__(
        self,
        authority: Authority,
        keys: ControlKeys,
        rosters: Rosters,
        shell: Shell,
        broker: Address,
    ) -> None:
        self._rosters = rosters
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
        self._rosters.tell()

    def ask_rebirth(self, node: str) -> None:
        self._shell.answer(node, Kind.COMMAND, {"do": "rebirth"})

    def oversize(self, client: str, more: int, count: int) -> None:
        """The broker took none of these; its word is no proof against a node, so none is blamed."""
        place = {"topic": "broker/oversize.json"}
        name = client if NAME.fullmatch(client) else "others"
        text = f"{name}: too large for the broker, {count} so far"
        at_ms = self._shell.clock.now_ms()
        self._shell.stream.refusal(at_ms, place, "message.too_large", text, more)

    def alarm(self, node: str, text: str) -> None:
        place = {"node": node} if node else {"topic": "broker/access.json"}
        self._shell.stream.refusal(self._shell.clock.now_ms(), place, "broker.behind", text)
