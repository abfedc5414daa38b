"""What believing a message costs a node: from the bytes of a delegate to the event for its core.

Everything of docs/PROTOCOL.md, "Acceptance", up to the core: topic, shape, key, signature, parse, age,
order, each dispatch, the policy. Beside it, in turns, the signature of the same bytes alone.
"""

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack

from bench.figures import line
from imlmesh_drivers.base import Site
from imlmesh_drivers.registry import shipped_manifest
from imlmesh_node.config import Policy
from imlmesh_node.core.events import DelegateArrived, Event
from imlmesh_node.guard import Guard
from imlmesh_node.inbox import Inbox, Refusals
from imlmesh_node.journal import Loaded
from imlmesh_node.outbox import Address, Outbox
from imlmesh_node.presence import Clocks, Presence
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.limits import MESSAGE_EXPIRY_MS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.dispatches import encode_dispatch
from imlmesh_protocol.wire.envelope import Opener, Sealer, signing_input
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.link.memory import MemoryHub, MemoryLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys

MESH, NODE, CONTROL = "bench", "n0", "main"
TOPIC = topics.to_node(MESH, NODE, Kind.DELEGATE)
ROUNDS = 25
MESSAGES = 200


class Side:
    """A node's way in, and the orchestrator that signs for it."""

    def __init__(self, keys: ControlKeys, folder: Path) -> None:
        self.events: list[Event] = []
        self.clocks = Clocks()
        signer = keys.signer
        self.sealer = Sealer(signer.sign, signer.key_id, MESH, CONTROL, Way.TO)
        self.sealer.new_session(1, 0)
        self.opener = Opener(MESH, NODE, lambda key_id, _iss: keys.held.plan_key(key_id))
        up = Sealer(signer.sign, signer.key_id, MESH, NODE, Way.FROM)
        link = MemoryLink(MemoryHub(random.Random(0)), NODE, ())
        outbox = Outbox(Address(MESH, NODE, CONTROL), up, link, self.clocks.mesh)
        loaded = Loaded((), boot=1, floor=(1, 0), quarantined=False)
        presence = Presence(
            outbox, self.clocks, self.events.append, loaded, lambda boot, done: done(None)
        )
        presence.is_open = True
        self.refusals = Refusals(lambda counts: True)
        self.inbox = Inbox(
            self.opener,
            presence,
            Guard(Policy("readonly", ("fake",), Site(str(folder))), shipped_manifest()),
            lambda module, action: True,
            self.events.append,
            self.refusals,
            {},
        )
        key = keys.held.plan_key(signer.key_id)
        if key is None:
            raise RuntimeError("the plan key is not in the trust document")
        self.key = key

    def sealed(self, dispatches: int) -> list[bytes]:
        now_ms = self.clocks.mesh.now_ms()
        bins = [_bin(number) for number in range(dispatches)]
        fields = {"dispatches": bins}
        return [
            self.sealer.seal(Kind.DELEGATE, NODE, fields, now_ms, MESSAGE_EXPIRY_MS)
            for _ in range(MESSAGES)
        ]

    def take(self, envelopes: list[bytes]) -> float:
        """Seconds for all of them."""
        take = self.inbox.take
        self.events.clear()
        began = time.perf_counter()
        for envelope in envelopes:
            take(TOPIC, envelope, False)
        took_s = time.perf_counter() - began
        if self.refusals.counts or len(self.events) != len(envelopes):
            raise RuntimeError(f"not all were believed: {self.refusals.counts}")
        return took_s

    def verify(self, envelopes: list[bytes]) -> float:
        """Seconds for the signatures alone, of bytes that are cut out already."""
        parts = [msgpack.unpackb(envelope) for envelope in envelopes]
        signed = [(signing_input(kind, body), signature) for _, kind, _, body, signature in parts]
        verify = self.key.verify
        began = time.perf_counter()
        for data, signature in signed:
            verify(data, signature)
        return time.perf_counter() - began


def _bin(number: int) -> bytes:
    name = f"r-1042-k3fq/a{number}/{NODE}/1"
    return encode_dispatch(name, "fake", "noop", {}, Effect.PURE, 60_000, 6_000, "finish")


async def _measure(folder: Path, dispatches: int) -> dict[str, Any]:
    home = Home(folder / f"home-{dispatches}")
    Authority.create(home, MESH, CONTROL)
    side = Side(ControlKeys.load(home.ca, MESH), folder)
    ours, bare, ratios = [], [], []
    for _ in range(ROUNDS):
        envelopes = side.sealed(dispatches)
        bare.append(side.verify(envelopes))
        ours.append(side.take(envelopes))
        ratios.append(ours[-1] / bare[-1])
    if not all(isinstance(event, DelegateArrived) for event in side.events):
        raise RuntimeError("something else than delegates arrived")
    scale = 1e6 / MESSAGES
    return line(
        "verify",
        dispatches=dispatches,
        bytes=len(envelopes[0]),
        us_per_message=round(statistics.median(ours) * scale, 1),
        us_per_dispatch=round(statistics.median(ours) * scale / dispatches, 1),
        bare_us=round(statistics.median(bare) * scale, 1),
        ratio=round(statistics.median(ratios), 2),
    )


async def _all() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return [await _measure(Path(folder), dispatches) for dispatches in (1, 50)]


def run() -> list[dict[str, Any]]:
    return asyncio.run(_all())
