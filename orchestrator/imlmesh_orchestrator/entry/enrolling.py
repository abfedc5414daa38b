"""Letting a node in: a certificate is made, the core decides, and then the papers are handed out.

The one rule: nothing is handed out before it is stored that the node is in. Deliberately absent:
whether the asker may; whoever calls this has proved that.
"""

from collections.abc import Mapping

from imlmesh_orchestrator.answering import Newcomer
from imlmesh_orchestrator.ca import Authority
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.ids import check_name
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.wire import topics
from imlmesh_runtime.trust import PublicKey


class Enrolling:
    """`lifetime_s` is that of the certificates."""

    def __init__(self, authority: Authority, shell: Shell, lifetime_s: int) -> None:
        self._authority = authority
        self._shell = shell
        self._lifetime_s = lifetime_s

    async def let_in(self, newcomer: Newcomer, request: bytes, by: str) -> Mapping[str, bytes]:
        """The files of a new node's keys folder that others make: node.pem, root.pub, trust.

        InputError `name.invalid`, `config.invalid`, `node.exists`, `node.too_many`; TrustError
        `signature.invalid` for a request that proves no P-256 key, `trust.file` for a weak identity.
        """
        check_name("node", newcomer.node)
        check_name("node", newcomer.alias)
        if newcomer.profile not in PROFILES:
            text = f"profile must be one of {', '.join(PROFILES)}"
            raise InputError("config.invalid", text)
        self.check_id(newcomer.node)
        PublicKey.of_raw(newcomer.identity)
        return await self._papers(newcomer, request, by)

    def check_id(self, node: str) -> None:
        """InputError `node.exists` for an id that is no node's: our own, and those that probes use."""
        if node == self._authority.orchestrator:
            raise InputError("node.exists", f"{node!r} is the orchestrator")
        if node in topics.PROBES:
            raise InputError("node.exists", f"{node!r} is what the broker is probed as")

    def papers(self) -> Mapping[str, bytes]:
        """root.pub and trust, which anybody may read."""
        return self._authority.papers()

    async def certify(self, node: str, request: bytes) -> Mapping[str, bytes]:
        """The same files for a node that is in, whose identity has asked; also again and again."""
        record = self._shell.state.enrolled[node]
        newcomer = Newcomer(node, record.alias, record.identity, record.profile)
        return await self._papers(newcomer, request, record.by)

    async def _papers(self, newcomer: Newcomer, request: bytes, by: str) -> Mapping[str, bytes]:
        issued = self._authority.certify(request, newcomer.node, self._lifetime_s)
        await self._shell.enrol(newcomer, issued, by)
        return {"node.pem": issued.pem, **self._authority.papers()}
