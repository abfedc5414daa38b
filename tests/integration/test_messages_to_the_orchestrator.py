"""Bad messages to the orchestrator, brought by a broker that lets everybody write everywhere.

The effect is what counts: a run that waits for one result stays as it is, and so does what is known of
another node, until the good result comes.
"""

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest

from imlmesh_broker import BrokerPlace
from imlmesh_broker.mosquitto import Mosquitto
from imlmesh_drivers.registry import shipped_manifest
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.limits import LAN, MESSAGE_EXPIRY_MS
from imlmesh_protocol.manifest import Manifest
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.envelope import Sealer, signing_input
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, NodeKeys
from orchestrator_mesh import ME, MESH, WITHIN_S, Mesh, action, plan

pytestmark = pytest.mark.mosquitto

PI, OTHER, THIRD = "pi", "other", "third"
BOOT = 1_000
BEAT = {"health": {}, "held": []}


class Unguarded(Mosquitto):
    """Mosquitto without access rules: the mailman whom nobody trusts."""

    def command(self) -> list[str]:
        command = super().command()
        conf = self.place.served / "mosquitto.conf"
        lines = conf.read_text().splitlines()
        dropped = ("acl_file", "use_username_as_clientid")
        conf.write_text("\n".join(line for line in lines if not line.startswith(dropped)) + "\n")
        return command


class Speaker:
    """Plays the node `pi`: comes, accepts, and then says whatever it is told to."""

    def __init__(self, mesh: Mesh) -> None:
        self.signers = {
            name: NodeKeys.load(mesh.home.node(name), MESH).signer for name in (PI, OTHER, THIRD)
        }
        self.sealer = self.speaker(PI)
        self.accepted = b""
        self.dispatch: list[tuple[str, bytes]] = []
        self.beats: asyncio.Queue[int] = asyncio.Queue()
        self._changed = asyncio.Event()
        self.nonce = "n-1"
        self.at_ms = 0
        context = NodeKeys.load(mesh.home.node(PI), MESH).context()
        wanted = topics.node_subscriptions(MESH, PI)
        self.link = MqttLink([("127.0.0.1", mesh.port)], PI, context, wanted)

    def speaker(
        self, name: str, *, signed_by: str = "", boot: int = BOOT, mesh: str = MESH
    ) -> Sealer:
        signer = self.signers[signed_by or name]
        made = Sealer(signer.sign, signer.key_id, mesh, name, Way.FROM)
        made.new_session(boot, 1)
        made._seq = 100_000 if signed_by or boot != BOOT else 0
        return made

    def will(self) -> None:
        return None

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self.say(Kind.REQUEST, {"what": "time", "nonce": self.nonce})

    def link_down(self, reason: str) -> None: ...

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        _, kind, _, body, _ = msgpack.unpackb(payload)
        fields = msgpack.unpackb(body)
        if kind == Kind.RESPONSE:
            self.at_ms = fields["at_ms"]
            self.say(Kind.STATUS, birth())
        elif kind == Kind.REQUEST:
            told = {"what": "inventory", "nonce": fields["nonce"], "held": [], "unsettled": []}
            self.say(Kind.RESPONSE, told)
        elif kind == Kind.DELEGATE and not self.dispatch:
            self._take(fields["dispatches"])
        elif kind == Kind.ACK and fields["beat"] is not None:
            self.beats.put_nowait(fields["beat"])
        self._changed.set()

    def _take(self, bins: list[bytes]) -> None:
        self.dispatch = [(msgpack.unpackb(one)["id"], sha256(one).digest()) for one in bins]
        self.accepted = self.say(Kind.ACCEPT, {"dispatches": [list(p) for p in self.dispatch]})

    def sealed(self, kind: Kind, fields: dict[str, Any], **more: Any) -> bytes:
        sealer: Sealer = more.get("sealer", self.sealer)
        life_ms = more.get("life_ms", MESSAGE_EXPIRY_MS)
        at_ms = self.at_ms + more.get("off_ms", 0)
        return sealer.seal(kind, more.get("aud", ME), fields, at_ms, life_ms)

    def say(self, kind: Kind, fields: dict[str, Any], **more: Any) -> bytes:
        envelope = self.sealed(kind, fields, **more)
        self.link.publish(topics.from_node(MESH, PI, kind), envelope)
        return envelope

    def result(self, **changes: Any) -> dict[str, Any]:
        """A result that would end the run."""
        name, digest = self.dispatch[0]
        one = {
            "id": name,
            "hash": digest,
            "outcome": "completed",
            "duration_ms": 1,
            "result": {"value": "bad"},
        }
        return {"results": [one | changes]}

    def complete(self, **more: Any) -> bytes:
        return self.sealed(Kind.COMPLETE, self.result(), **more)

    def signed(self, change: Callable[[dict[str, Any]], bytes]) -> bytes:
        _, kind, name, body, _ = msgpack.unpackb(self.complete())
        wanted = change(msgpack.unpackb(body))
        return pack([1, kind, name, wanted, self.signers[PI].sign(signing_input(kind, wanted))])

    async def heard(self, beat: int) -> None:
        """All that was published before is behind the orchestrator's answer to this beat."""
        self.say(Kind.HEARTBEAT, BEAT | {"beat": beat})
        async with asyncio.timeout(WITHIN_S):
            while await self.beats.get() != beat:
                pass

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not holds():
                self._changed.clear()
                await self._changed.wait()


def birth(**changes: Any) -> dict[str, Any]:
    manifest = Manifest({"fake": shipped_manifest().modules["fake"]}).to_wire()
    return {
        "state": "online",
        "manifest": manifest,
        "facts": {},
        "profile": "local_worker",
        "heartbeat_ms": LAN.heartbeat_ms,
        "lost_ms": LAN.lost_ms,
    } | changes


def flipped(envelope: bytes, place: int) -> bytes:
    broken = bytearray(envelope)
    broken[place] ^= 1
    return bytes(broken)


def on(kind: Kind, node: str = PI) -> str:
    return topics.from_node(MESH, node, kind)


#: name: (code, the node that it counts against, topic, message)
Bad = tuple[str, str, str, Callable[[Speaker], bytes]]
DONE = on(Kind.COMPLETE)
BAD: dict[str, Bad] = {
    "nothing": ("message.invalid", "", DONE, lambda s: b""),
    "deep": ("message.invalid", "", DONE, lambda s: b"\x91" * 100_000),
    "trailing bytes": ("message.invalid", "", DONE, lambda s: s.complete() + b"\x00"),
    "a bit flipped": ("signature.invalid", "", DONE, lambda s: flipped(s.complete(), 90)),
    "a signature's bit flipped": (
        "signature.invalid",
        "",
        DONE,
        lambda s: flipped(s.complete(), -1),
    ),
    "signed by another node": (
        "signature.unknown_key",
        "",
        DONE,
        lambda s: s.complete(sealer=s.speaker(PI, signed_by=THIRD)),
    ),
    "written by another node": (
        "signature.unknown_key",
        "",
        DONE,
        lambda s: s.complete(sealer=s.speaker(THIRD)),
    ),
    "of another name": (
        "signature.invalid",
        "",
        DONE,
        lambda s: s.complete(sealer=s.speaker(THIRD, signed_by=PI)),
    ),
    "to another orchestrator": ("message.audience", "", DONE, lambda s: s.complete(aud="second")),
    "to everybody": ("message.audience", "", DONE, lambda s: s.complete(aud="*")),
    "of another mesh": (
        "message.audience",
        "",
        DONE,
        lambda s: s.complete(sealer=s.speaker(PI, signed_by=PI, mesh="away")),
    ),
    "too old": ("message.expired", "", DONE, lambda s: s.complete(off_ms=-2 * MESSAGE_EXPIRY_MS)),
    "too new": ("message.expired", PI, DONE, lambda s: s.complete(off_ms=2 * MESSAGE_EXPIRY_MS)),
    "good for a year": ("message.expired", "", DONE, lambda s: s.complete(life_ms=31_536_000_000)),
    "of an older boot": (
        "message.replayed",
        "",
        DONE,
        lambda s: s.complete(sealer=s.speaker(PI, boot=BOOT - 1)),
    ),
    "an accept again": ("message.replayed", "", on(Kind.ACCEPT), lambda s: s.accepted),
    "on the topic of another kind": ("message.kind", "", on(Kind.REJECT), lambda s: s.complete()),
    "of a kind for nodes": (
        "message.kind",
        "",
        f"imlmesh/1/{MESH}/from/{PI}/delegate",
        lambda s: s.complete(),
    ),
    "a key of bytes": (
        "message.invalid",
        "",
        DONE,
        lambda s: s.signed(lambda body: pack(body | {b"x": 1})),
    ),
    "an outcome that is none": (
        "message.invalid",
        PI,
        DONE,
        lambda s: s.sealed(Kind.COMPLETE, s.result(outcome="perhaps")),
    ),
    "of another dispatch's bytes": (
        "dispatch.hash",
        PI,
        DONE,
        lambda s: s.sealed(Kind.COMPLETE, s.result(hash=bytes(32))),
    ),
    "another node's result of it": (
        "dispatch.unknown",
        THIRD,
        on(Kind.COMPLETE, THIRD),
        lambda s: s.complete(sealer=s.speaker(THIRD)),
    ),
    "a goodbye in another's name": (
        "signature.unknown_key",
        "",
        on(Kind.STATUS, OTHER),
        lambda s: s.sealed(
            Kind.STATUS, {"state": "offline"}, sealer=s.speaker(OTHER, signed_by=PI, boot=2**50)
        ),
    ),
    "a will in another's name": (
        "signature.unknown_key",
        "",
        on(Kind.STATUS, OTHER),
        lambda s: s.sealed(
            Kind.STATUS, {"state": "gone"}, life_ms=0, sealer=s.speaker(OTHER, signed_by=PI)
        ),
    ),
    "a birth in another's name": (
        "signature.invalid",
        "",
        on(Kind.STATUS, OTHER),
        lambda s: flipped(s.sealed(Kind.STATUS, birth(), sealer=s.speaker(OTHER)), -1),
    ),
    "a beat in another's name": (
        "signature.unknown_key",
        "",
        on(Kind.HEARTBEAT, OTHER),
        lambda s: s.sealed(
            Kind.HEARTBEAT, BEAT | {"beat": 2**40}, sealer=s.speaker(OTHER, signed_by=PI)
        ),
    ),
}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    home = Home(tmp_path / "h")
    Authority.create(home, MESH, ME)
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = Unguarded(MESH, ME, place, ControlKeys.load(home.ca, MESH).context)
    await broker.start()
    made = Mesh(home, broker.port, broker.control_port)
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await made.http.aclose()
        for name in list(made.processes):
            await made.kill(name)
        await broker.stop()


@contextlib.asynccontextmanager
async def speaking(mesh: Mesh) -> AsyncIterator[Speaker]:
    await mesh.until("health", lambda health: health["broker"]["connected"])
    for name in (PI, OTHER, THIRD):
        await mesh.let_in(name)
    speaker = Speaker(mesh)
    speaker.link.start(speaker)
    yield speaker
    await speaker.link.close()


async def lasting(mesh: Mesh, node: str) -> dict[str, Any]:
    """What is known of a node, without what moves by itself."""
    found = await mesh.get(f"nodes/{node}")
    moving = {"last_heard_ms", "beats", "health", "since_ms"}
    return {name: value for name, value in found.items() if name not in moving}


async def test_bad_messages_change_no_run_and_no_other_node(mesh: Mesh) -> None:
    await mesh.orchestrator()
    await mesh.node(OTHER)
    await mesh.online(OTHER)
    async with speaking(mesh) as speaker:
        await mesh.online(PI)
        work = action("a", "act", target_node=PI, params={"value": "good"})
        run = (await mesh.submit(plan(work)))["run"]
        await speaker.until(lambda: bool(speaker.dispatch))
        await speaker.heard(1)
        before, other = await mesh.get(f"runs/{run}"), await lasting(mesh, OTHER)
        counted = Counter((await mesh.get("health"))["messages"]["refused"])
        assert before["actions"][0]["state"] == "running"
        for _, _, topic, make in BAD.values():
            speaker.link.publish(topic, make(speaker))
        await speaker.heard(2)
        after = await mesh.get(f"runs/{run}")
        assert (after["state"], after["actions"]) == (before["state"], before["actions"])
        assert await lasting(mesh, OTHER) == other
        refused = Counter((await mesh.get("health"))["messages"]["refused"]) - counted
        assert refused == Counter(code for code, _, _, _ in BAD.values())
        assert other["refused"]["sent"] == {}
        sent = Counter(code for code, blamed, _, _ in BAD.values() if blamed == PI)
        assert (await mesh.get(f"nodes/{PI}"))["refused"] == {"received": {}, "sent": sent}
        speaker.say(Kind.COMPLETE, speaker.result(result={"value": "good"}))
        ended = await mesh.ended(run)
        assert ended["state"] == "completed"
        assert "bad" not in str(ended)


async def test_what_the_broker_had_kept_ends_nothing(mesh: Mesh) -> None:
    await mesh.orchestrator()
    async with speaking(mesh) as speaker:
        await mesh.online(PI)
        run = (await mesh.submit(plan(action("a", "act", target_node=PI))))["run"]
        await speaker.until(lambda: bool(speaker.dispatch))
        await speaker.heard(1)
        await mesh.kill(ME, signal.SIGKILL)
        speaker.link.publish(DONE, speaker.complete(), retain=True)
        await mesh.orchestrator()
        found = await mesh.until("health", lambda health: health["messages"]["refused"])
        assert found["messages"]["refused"] == {"message.retained": 1}
        assert (await mesh.get(f"runs/{run}"))["state"] not in ("completed", "failed")


async def test_after_a_kill_nothing_recorded_changes_what_ended(mesh: Mesh) -> None:
    await mesh.orchestrator()
    async with speaking(mesh) as speaker:
        await mesh.online(PI)
        run = (await mesh.submit(plan(action("a", "act", target_node=PI))))["run"]
        await speaker.until(lambda: bool(speaker.dispatch))
        fault = {"code": "driver.failed", "message": "not now"}
        failed = speaker.result(outcome="failed", error=fault)
        del failed["results"][0]["result"]
        recorded = [
            (DONE, speaker.say(Kind.COMPLETE, failed)),
            (on(Kind.ACCEPT), speaker.accepted),
        ]
        before = await mesh.ended(run)
        await mesh.kill(ME, signal.SIGKILL)
        await mesh.orchestrator()
        await mesh.until("health", lambda health: health["broker"]["connected"])
        for topic, envelope in reversed(recorded):
            speaker.link.publish(topic, envelope)
        speaker.link.publish(DONE, b"the last")
        await mesh.until("health", lambda health: health["messages"]["refused"])
        after = await mesh.get(f"runs/{run}")
        assert after | {"seq": 0} == before | {"seq": 0}, "its seq is that of the whole store"
        assert before["state"] == "failed"
