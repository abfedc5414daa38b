"""What machines that are not in yet may ask: whom this mesh believes, a nonce, and to join.

The one rule: everything that a request says is proved before the core hears of it, and papers are
handed out only when it is stored that the node is in. Deliberately absent: HTTP, and deciding.
"""

import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nacl.exceptions import CryptoError

from imlmesh_orchestrator.ca.certificates import check_request
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.joins import IN
from imlmesh_orchestrator.entry.endpoint import Endpoint, Handler
from imlmesh_orchestrator.entry.enrolling import Enrolling
from imlmesh_orchestrator.entry.nonces import Allowance, Nonces
from imlmesh_orchestrator.shell import Shell
from imlmesh_protocol import limits
from imlmesh_protocol.errors import (
    InputError,
    LinkError,
    MeshError,
    Place,
    ProtocolError,
    TrustError,
)
from imlmesh_protocol.wire.documents import root_hash
from imlmesh_protocol.wire.joining import (
    DIGEST_BYTES,
    SECRET_BYTES,
    Fields,
    JoinAsk,
    JoinToken,
    code_of,
    commitment_of,
    proves,
)
from imlmesh_runtime.files import read_file
from imlmesh_runtime.link.address import address_of, address_text
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.multicast import is_loopback, networks
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import HeldTrust, public_key

_USUAL_PORT = 8883  # at which nodes come in, unless the mesh says another one
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what it is told


@dataclass(frozen=True, slots=True)
class Reach:
    """What a new node is told to find its mesh by: the broker as address:port (of loopback: that
    computer, under whatever address the node knows it), and the name of a timing."""

    mesh: str
    orchestrator: str
    broker: str
    timing: str


def reach_of(home: Home, mesh: str, orchestrator: str, broker: str) -> Reach:
    """From the address at which the orchestrator itself calls the broker, and what the mesh's own
    settings say; `config.invalid`."""
    path = home.orchestrator / "mesh.toml"
    host, _ = address_of(broker)
    port, timing = _USUAL_PORT, "wan"
    if path.exists():
        try:
            settings = tomllib.loads(read_file(path).decode())
            port, timing = int(settings.get("port", port)), str(settings["timing"])
        except (ValueError, KeyError) as exc:
            text = f"{path}: {exc!r}"
            raise InputError("config.invalid", text, place=Place(file=str(path))) from exc
    return Reach(mesh, orchestrator, address_text(host, port), timing)


class Joining:
    """The way in for nodes that bring a token, or wait for a person."""

    def __init__(self, home: Home, shell: Shell, enrolling: Enrolling, reach: Reach) -> None:
        self._home = home
        self._shell = shell
        self._enrolling = enrolling
        self._reach = reach
        self._nonces = Nonces()
        self._allowance = Allowance()
        #: what is answered at which method and path
        self.routes: dict[tuple[str, str], Handler] = {
            ("GET", "/v1/trust"): self._trust,
            ("GET", "/v1/nonce"): self._nonce,
            ("POST", "/v1/nonce"): self._nonce,
            ("POST", "/v1/join"): self._join,
        }
        self.endpoint: Endpoint | None = None

    def start(self, wanted: Address | None) -> None:
        """Open the endpoint; see `Endpoint`."""
        self.endpoint = Endpoint(self._home, wanted, self.routes, self._refused)
        self.endpoint.start()

    async def close(self) -> None:
        """Close the endpoint; safe when it was never open."""
        if self.endpoint is not None:
            await self.endpoint.close()

    def load(self) -> None:
        """Show the certificate that lies in the folder of the CAs now."""
        if self.endpoint is not None:
            self.endpoint.load()

    def take_nonce(self, nonce: bytes) -> None:
        """Let it count for nobody else; ProtocolError `join.nonce` when it is not good."""
        self._nonces.take(nonce, self._shell.clock.now_ms())

    def endpoints(self) -> list[str]:
        """Where other machines reach the endpoint; LinkError `join.unreachable` where it is not."""
        if self.endpoint is None:
            raise LinkError("join.unreachable", "nobody can join this mesh: it has no endpoint")
        address, port = self.endpoint.address
        if address not in _EVERYWHERE:
            return [address_text(address, port)]
        found = [address_text(network.address, port) for network in networks()]
        return found[: limits.TOKEN_ENDPOINTS] or [address_text("127.0.0.1", port)]

    @property
    def addresses(self) -> list[str]:
        """As `endpoints`, without any where it is closed."""
        return [] if self.endpoint is None else self.endpoints()

    @property
    def ports(self) -> tuple[int, int]:
        """Of the broker, and of the endpoint or 0 where other machines do not reach it."""
        _, broker = address_of(self._reach.broker)
        if self.endpoint is None or is_loopback(self.endpoint.address[0]):
            return broker, 0
        return broker, self.endpoint.address[1]

    def new_token(self) -> JoinToken:
        """A token that nobody knows of yet; as `endpoints`."""
        ca = HeldTrust(self._home.ca, self._reach.mesh)
        return JoinToken(
            self._reach.mesh,
            tuple(self.endpoints()),
            bytes.fromhex(root_hash(bytes(ca.root.key))),
            f"t-{secrets.token_hex(4)}",
            secrets.token_bytes(SECRET_BYTES),
        )

    async def _trust(self, body: Any, address: str) -> Mapping[str, Any]:
        held = HeldTrust(self._home.ca, self._reach.mesh)
        papers = self._enrolling.papers()
        return {"root": bytes(held.root.key), "trust": papers["trust"]}

    async def _nonce(self, body: Any, address: str) -> Mapping[str, Any]:
        commitment, now_ms = b"", self._shell.clock.now_ms()
        if body is not None:
            # each is another code, of which one might be wished for, and another row in the store
            self._allowance.take(address, now_ms)
            fields = Fields(body)
            commitment = fields.blob("commitment", DIGEST_BYTES)
            fields.end()
        return {"nonce": self._nonces.give(now_ms, commitment)}

    async def _join(self, body: Any, address: str) -> Mapping[str, Any]:
        asked = JoinAsk.of_wire(body)
        proven, code = self._checked(asked)
        verdict = await self._shell.ask(
            lambda at_ms, cause: e.JoinAsked(
                at_ms,
                cause,
                asked.node,
                asked.identity,
                asked.profile,
                address,
                asked.token,
                proven,
                code,
            )
        )
        if verdict != IN:
            return {"state": verdict}
        self._allowance.take(f"node {asked.node}", self._shell.clock.now_ms())
        papers = await self._enrolling.certify(asked.node, asked.request)
        record = self._shell.state.enrolled[asked.node]
        return {
            "state": IN,
            "alias": record.alias,
            "profile": record.profile,
            "orchestrator": self._reach.orchestrator,
            "broker": self._reach.broker,
            "timing": self._reach.timing,
            "papers": dict(papers),
        }

    def _checked(self, asked: JoinAsk) -> tuple[bool, str]:
        """Whether the token's secret is known, and the code; raises for what is not proved at all."""
        assert self.endpoint is not None  # noqa: S101 - nobody asks before
        commitment = self._nonces.take(asked.nonce, self._shell.clock.now_ms())
        to_prove = asked.to_prove(self._reach.mesh, self.endpoint.certificate)
        try:
            public_key(asked.identity).verify(to_prove, asked.signature)
        except (CryptoError, TrustError) as exc:
            text = "the request is not signed by the identity key that it names"
            raise TrustError("join.signature", text) from exc
        check_request(asked.request, asked.node)
        self._enrolling.check_id(asked.node)
        code = ""
        if asked.own or commitment:
            if not asked.own or commitment != commitment_of(asked.own, asked.identity):
                raise ProtocolError("join.nonce", "this is not what was committed to")
            root = bytes(HeldTrust(self._home.ca, self._reach.mesh).root.key)
            code = code_of(root, asked.identity, asked.own, asked.nonce)
        token = self._shell.state.tokens.get(asked.token)
        proven = token is not None and proves(token.key, to_prove, asked.proof)
        return proven, code

    def _refused(self, error: MeshError, address: str) -> None:
        place = {"topic": f"join from {address}"}
        at_ms = self._shell.clock.now_ms()
        self._shell.stream.refusal(at_ms, place, error.code, error.message)
