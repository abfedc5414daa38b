"""How a new node gets in: whom to believe is settled first, and then it asks until it is in.

The one rule: until the root key is the one of the token, nothing that has to do with the secret is
made, let alone sent; without a token the code that people compare stands for that. Deliberately
absent: files, and printing.
"""

import asyncio
import secrets
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from imlmesh_node.exchange import exchange
from imlmesh_node.joining import NewKeys
from imlmesh_protocol import limits
from imlmesh_protocol.errors import (
    CODES,
    InputError,
    LinkError,
    MeshError,
    ProtocolError,
    TrustError,
)
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.wire.documents import Trust, root_hash
from imlmesh_protocol.wire.joining import (
    NONCE_BYTES,
    Fields,
    JoinAsk,
    JoinToken,
    code_of,
    commitment_of,
    proof_of,
)
from imlmesh_runtime.discovery import MESHES, Discovery, Service
from imlmesh_runtime.link.address import address_of, address_text, is_address
from imlmesh_runtime.link.base import Address
from imlmesh_runtime.multicast import is_loopback
from imlmesh_runtime.trust import (
    PublicKey,
    join_name,
    public_pem,
    server_check,
    signer_of,
    unverified_context,
)

#: nobody answers where the mesh was, or somebody else does
_NOT_THERE = ("join.unreachable", "join.pin")
_PAPERS = {"node.pem", "root.pub", "trust"}


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants in: the id, the profile ("": what it is given), the token if there is one, and
    addresses of the mesh's endpoint that were given."""

    node: str
    profile: str
    token: JoinToken | None = None
    at: tuple[Address, ...] = ()

    @property
    def meant(self) -> "Meant | None":
        """The mesh that the token is of."""
        return Meant(self.token.mesh, self.token.pin) if self.token else None


@dataclass(frozen=True, slots=True)
class Meant:
    """A mesh and the hash of its root key: whoever has another one is not it."""

    mesh: str
    pin: bytes


@dataclass(frozen=True, slots=True)
class Door:
    """An endpoint whose mesh is known: its raw root key, and the context that lets nobody else in
    its place."""

    address: Address
    mesh: str
    root: bytes
    context: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class LetIn:
    """What a node that is in was told: where it belongs and what it may; `papers` by file name."""

    mesh: str
    orchestrator: str
    alias: str
    profile: str
    broker: str
    timing: str
    join: str
    papers: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Told:
    """Whom to tell what: that a person is waited for, with the code to compare ("" with a token);
    and what is wrong meanwhile, None when it is good again."""

    waits: Callable[[str, Door], None]
    trouble: Callable[[MeshError | None], None]


async def enter(wish: Wish, keys: NewKeys, told: Told) -> LetIn:
    """Ask until the node is in; MeshError when it is refused, or nobody is there."""
    door = await find_door(wish)
    while True:
        answer, code = await _ask(door, wish, keys)
        if answer["state"] == "in":
            return _let_in(door, answer)
        told.waits(code, door)
        door, found = await _wait(door, wish, keys, told)
        if found is not None:
            return _let_in(door, found)


async def find_door(wish: Wish) -> Door:
    """The endpoint of the token's mesh, or of the only one that is there.

    TrustError `join.pin`, LinkError `join.unreachable`, InputError `join.several`.
    """
    token = wish.token
    given = wish.at or (tuple(map(address_of, token.endpoints)) if token else ())
    door, failed = await _first_door(given, wish.meant)
    if door is None and not wish.at:
        door, failed = await _first_door(await _heard(wish.meant), wish.meant, failed)
    if door is None:
        raise failed or LinkError("join.unreachable", "no mesh was found")
    return door


async def _first_door(
    addresses: Sequence[Address], meant: Meant | None, failed: MeshError | None = None
) -> tuple[Door | None, MeshError | None]:
    """The first that is right, or why the first was not; a wrong root says more than silence."""
    for address in addresses:
        try:
            return await _door_at(address, meant), None
        except MeshError as exc:
            if failed is None or exc.code == "join.pin":
                failed = exc
    return None, failed


async def _door_at(address: Address, meant: Meant | None) -> Door:
    fields = Fields(await exchange(address, unverified_context(), "/v1/trust"))
    root, document = fields.take("root", bytes), fields.take("trust", bytes)
    if meant is not None and bytes.fromhex(root_hash(root)) != meant.pin:
        where = address_text(*address)
        raise TrustError("join.pin", f"{where} has another root key than the token says")
    public = PublicKey.of_raw(root)
    trust = Trust.open(document, lambda name: public.key if name == public.key_id else None)
    if meant is not None and trust.mesh != meant.mesh:
        raise TrustError("join.pin", f"{address_text(*address)} is the mesh {trust.mesh}")
    context = server_check(trust.control_cas, join_name(trust.mesh))
    return Door(address, trust.mesh, root, context)


async def _moved(door: Door) -> Door:
    """The same mesh where it was, with a certificate of a new CA, or at another place that mDNS tells of:
    an orchestrator whose port somebody else took comes back at the next one."""
    meant = Meant(door.mesh, bytes.fromhex(root_hash(door.root)))
    try:
        found, _ = await _first_door([door.address], meant)
        if found is None:
            found, _ = await _first_door(await _heard(meant), meant)
    except MeshError:
        return door
    return found or door


async def _heard(meant: Meant | None) -> list[Address]:
    """Endpoints that mDNS tells of: of the mesh that is meant as soon as one is heard."""
    discovery = Discovery(watched=MESHES)
    discovery.start()

    def ours() -> list[Service]:
        return [each for each in discovery.found.values() if _is_meant(each, meant)]

    try:
        wait_ms = limits.DISCOVERY_QUIET_MS if meant else limits.DISCOVERY_LISTEN_MS
        async with asyncio.timeout(wait_ms / 1000):
            await discovery.until(lambda: meant is not None and ours())
    except TimeoutError:
        pass
    finally:
        found, trouble = ours(), discovery.trouble
        await discovery.close()
    meshes = {(each.mesh, each.root) for each in found}
    if len(meshes) > 1:
        names = ", ".join(
            f"{each.mesh} at {address_text(each.addresses[0], each.join)}" for each in found
        )
        raise InputError("join.several", f"several meshes are here: {names}")
    if not found and trouble:
        raise LinkError("join.unreachable", f"mDNS does not work here: {trouble}")
    return [(address, each.join) for each in found for address in each.addresses]


def _is_meant(service: Service, meant: Meant | None) -> bool:
    if not service.join:
        return False
    return meant is None or (service.mesh, service.root) == (meant.mesh, meant.pin.hex()[:8])


async def _ask(door: Door, wish: Wish, keys: NewKeys) -> tuple[Mapping[str, Any], str]:
    """The first question, and the code that goes with it."""
    asked = JoinAsk(wish.node, wish.profile, keys.identity, keys.request, b"")
    if wish.token is not None:
        return await _send(door, replace(asked, token=wish.token.id), keys, wish.token), ""
    own = secrets.token_bytes(NONCE_BYTES)
    committed = {"commitment": commitment_of(own, keys.identity)}
    nonce = _nonce_of(await exchange(door.address, door.context, "/v1/nonce", lambda _: committed))
    code = code_of(door.root, keys.identity, own, nonce)
    return await _send(door, replace(asked, own=own, nonce=nonce), keys), code


async def _wait(
    door: Door, wish: Wish, keys: NewKeys, told: Told
) -> tuple[Door, Mapping[str, Any] | None]:
    """Where the mesh is by then, and its answer once a person let the node in; None when it must ask
    anew."""
    asked = JoinAsk(wish.node, wish.profile, keys.identity, keys.request, b"")
    away = False
    while True:
        await asyncio.sleep(limits.JOIN_POLL_MS / 1000)
        try:
            answer = await _send(door, asked, keys)
        except MeshError as exc:
            if exc.code == "join.expired":
                return door, None
            # a nonce of an orchestrator that has ended meanwhile, for one, means nothing; nor does
            # whoever sits in its place until it is back, and hears nothing of us
            if not CODES[exc.code].retry and exc.code != "join.pin":
                raise
            if not away:
                told.trouble(exc)
            away = True
            if exc.code in _NOT_THERE:
                door = await _moved(door)
            continue
        if away:
            told.trouble(None)
        away = False
        if answer["state"] == "in":
            return door, answer


async def _send(
    door: Door, asked: JoinAsk, keys: NewKeys, token: JoinToken | None = None
) -> Mapping[str, Any]:
    """Ask with a fresh nonce unless there is one, proved and signed for this very connection."""
    if not asked.nonce:
        nonce = _nonce_of(await exchange(door.address, door.context, "/v1/nonce"))
        asked = replace(asked, nonce=nonce)
    signer = signer_of(keys.identity_key)

    def made(certificate: bytes) -> Mapping[str, Any]:
        to_prove = asked.to_prove(door.mesh, certificate)
        proof = b"" if token is None else proof_of(token.key, to_prove)
        return replace(asked, proof=proof, signature=signer.sign(to_prove)).to_wire()

    answer = await exchange(door.address, door.context, "/v1/join", made)
    if type(answer) is not dict or answer.get("state") not in ("in", "waits"):
        raise ProtocolError("join.invalid", "the answer is none")
    return answer


def _nonce_of(answer: Any) -> bytes:
    return Fields(answer).blob("nonce", NONCE_BYTES)


def _let_in(door: Door, answer: Mapping[str, Any]) -> LetIn:
    fields = Fields(answer)
    papers = fields.take("papers", dict)
    profile, timing = fields.take("profile", str), fields.take("timing", str)
    broker = fields.take("broker", str)
    if (
        papers.keys() != _PAPERS
        or not all(type(each) is bytes for each in papers.values())
        or profile not in PROFILES
        or timing not in limits.TIMINGS
        or not is_address(broker)
    ):
        raise ProtocolError("join.invalid", "the answer is not what a node is told")
    host, port = address_of(broker)
    if is_loopback(host):
        # the orchestrator's own computer, which we know by another address
        broker = address_text(door.address[0], port)
    return LetIn(
        door.mesh,
        fields.name("orchestrator"),
        fields.name("alias"),
        profile,
        broker,
        timing,
        address_text(*door.address),
        # the root that was settled at the door, not what the answer says
        {**papers, "root.pub": public_pem(door.root)},
    )
