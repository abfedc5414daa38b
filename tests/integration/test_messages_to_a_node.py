"""Bad messages to a node, signed by the mesh's own keys where that makes them worse.

Each carries work that would leave a marker file. The effect is what counts: no marker, the count of
its reason, and a good message afterwards is still done.
"""

import math
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest
from nacl.signing import SigningKey

from imlmesh_broker import Broker
from imlmesh_protocol.limits import MESSAGE_BYTES, MESSAGE_DEPTH, MESSAGE_EXPIRY_MS
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.envelope import Sealer, signing_input
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.link import mqtt
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import Signer, key_id
from scripted_control import (
    ME,
    MESH,
    NODE,
    Control,
    NodeProcess,
    dispatch,
    is_birth,
    now_ms,
    opened_control,
    opened_home,
    opened_node,
    packed,
    results,
    wait_for,
)

EPOCH = 5
DELEGATE = topics.to_node(MESH, NODE, Kind.DELEGATE)
#: the point at infinity: under this "key" anybody can sign anything
WEAK_KEY = b"\x01" + bytes(31)
WEAK_SIGNATURE = WEAK_KEY + bytes(32)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[tuple[Home, Broker]]:
    async with opened_home(tmp_path) as made:
        yield made


@pytest.fixture
async def control(home: tuple[Home, Broker]) -> AsyncIterator[Control]:
    async with opened_control(*home) as made:
        made.begin_epoch(EPOCH, made.signer)
        yield made


@pytest.fixture
async def node(home: tuple[Home, Broker]) -> AsyncIterator[NodeProcess]:
    async with opened_node(*home) as made:
        yield made


class Forge:
    """Makes messages that look good but for one thing; each carries a marker of its own."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.stranger = Signer.of_key(SigningKey.generate())
        self.older = self.sealer(control.signer, epoch=EPOCH - 1)
        self.made = 0

    def sealer(
        self, signer: Signer, *, mesh: str = MESH, iss: str = ME, epoch: int = EPOCH
    ) -> Sealer:
        made = Sealer(signer.sign, signer.key_id, mesh, iss, Way.TO)
        made.new_session(epoch, 0)
        # all sequences rise with that of the orchestrator
        made._seq = self.control.sealer._seq
        return made

    def fields(self) -> dict[str, Any]:
        self.made += 1
        return {"dispatches": [packed(dispatch(100 + self.made, marker=f"bad-{self.made}"))]}

    def sealed(
        self,
        kind: Kind = Kind.DELEGATE,
        aud: str = NODE,
        at_ms: int = 0,
        life_ms: int = MESSAGE_EXPIRY_MS,
        sealer: Sealer | None = None,
    ) -> bytes:
        sealer = sealer or self.control.sealer
        return sealer.seal(kind, aud, self.fields(), now_ms() + at_ms, life_ms)

    def signed(self, change: Callable[[dict[str, Any]], bytes]) -> bytes:
        """Whatever `change` makes of a good body, under a signature that holds."""
        _, kind, name, body, _ = msgpack.unpackb(self.sealed())
        wanted = change(msgpack.unpackb(body))
        return pack([1, kind, name, wanted, self.control.signer.sign(signing_input(kind, wanted))])

    def with_signature(self, name: bytes, signature: bytes) -> bytes:
        _, kind, _, body, _ = msgpack.unpackb(self.sealed())
        return pack([1, kind, name, body, signature])


def flipped(envelope: bytes, place: int) -> bytes:
    broken = bytearray(envelope)
    broken[place] ^= 1
    return bytes(broken)


def twice(body: dict[str, Any]) -> bytes:
    """The body with its first key again at the end."""
    pairs = b"".join(pack(name) + pack(value) for name, value in body.items())
    return b"\x8a" + pairs + pack("mesh") + pack(body["mesh"])


def deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


BAD: dict[str, tuple[str, Callable[[Forge], bytes]]] = {
    # up to the signature
    "nothing": ("message.invalid", lambda f: b""),
    "no envelope": ("message.invalid", lambda f: b"nonsense"),
    "without a signature": ("message.invalid", lambda f: f.with_signature(b"k" * 8, b"")),
    "unsigned": (
        "signature.invalid",
        lambda f: f.with_signature(f.control.signer.key_id, bytes(64)),
    ),
    "a bit of the body flipped": ("signature.invalid", lambda f: flipped(f.sealed(), 100)),
    "a bit of the signature flipped": ("signature.invalid", lambda f: flipped(f.sealed(), -1)),
    "a bit of the key's name flipped": ("signature.unknown_key", lambda f: flipped(f.sealed(), 14)),
    "a bit of the kind flipped": ("message.invalid", lambda f: flipped(f.sealed(), 4)),
    "by a stranger": (
        "signature.unknown_key",
        lambda f: f.sealed(sealer=f.sealer(f.stranger)),
    ),
    "by the roster key": (
        "signature.unknown_key",
        lambda f: f.sealed(sealer=f.sealer(f.control.keys.roster)),
    ),
    "by the ledger key": (
        "signature.unknown_key",
        lambda f: f.sealed(sealer=f.sealer(f.control.keys.ledger)),
    ),
    "by a stranger under the plan key's name": (
        "signature.invalid",
        lambda f: f.sealed(sealer=f.sealer(replace(f.stranger, key_id=f.control.signer.key_id))),
    ),
    "by a key of small order": (
        "signature.unknown_key",
        lambda f: f.with_signature(key_id(WEAK_KEY), WEAK_SIGNATURE),
    ),
    "signed as by a key of small order": (
        "signature.invalid",
        lambda f: f.with_signature(f.control.signer.key_id, WEAK_SIGNATURE),
    ),
    "trailing bytes": ("message.invalid", lambda f: f.sealed() + b"\x00"),
    "cut short": ("message.invalid", lambda f: f.sealed()[:-1]),
    "deep without a signature": ("message.invalid", lambda f: b"\x91" * 100_000),
    "empty maps without a signature": ("message.invalid", lambda f: b"\x80" * MESSAGE_BYTES),
    "too large": ("message.too_large", lambda f: f.sealed() + bytes(MESSAGE_BYTES)),
    "another version": ("message.invalid", lambda f: b"\x95\x02" + f.sealed()[2:]),
    "of another kind": (
        "message.kind",
        lambda f: f.control.sealer.seal(
            Kind.COMMAND, NODE, {"do": "rebirth"}, now_ms(), MESSAGE_EXPIRY_MS
        ),
    ),
    # signed, but not for here and now
    "to another node": ("message.audience", lambda f: f.sealed(aud="pi-2")),
    "to everybody": ("message.audience", lambda f: f.sealed(aud="*")),
    "of another mesh": (
        "message.audience",
        lambda f: f.sealed(sealer=f.sealer(f.control.signer, mesh="away")),
    ),
    "of another orchestrator": (
        "signature.invalid",
        lambda f: f.sealed(sealer=f.sealer(f.control.signer, iss="second")),
    ),
    "too old": ("message.expired", lambda f: f.sealed(at_ms=-2 * MESSAGE_EXPIRY_MS)),
    "too new": ("message.expired", lambda f: f.sealed(at_ms=2 * MESSAGE_EXPIRY_MS)),
    "good for a year": ("message.expired", lambda f: f.sealed(life_ms=365 * 86_400_000)),
    "without an end": ("message.invalid", lambda f: f.sealed(life_ms=0)),
    "of an older epoch": ("message.epoch", lambda f: f.sealed(sealer=f.older)),
    # signed, and broken inside
    "a key twice": ("message.invalid", lambda f: f.signed(twice)),
    "an ext type": (
        "message.invalid",
        lambda f: f.signed(lambda body: msgpack.packb(body | {"id": msgpack.ExtType(5, b"x")})),
    ),
    "a timestamp": (
        "message.invalid",
        lambda f: f.signed(lambda body: msgpack.packb(body | {"id": msgpack.Timestamp(5)})),
    ),
    "bytes behind the body": ("message.invalid", lambda f: f.signed(lambda b: pack(b) + b"\x00")),
    "a deep body": (
        "message.invalid",
        lambda f: f.signed(lambda body: pack(body | {"dispatches": deep(MESSAGE_DEPTH)})),
    ),
    "a bottomless body": ("message.invalid", lambda f: f.signed(lambda body: b"\x91" * 200_000)),
    "a body of empty maps": (
        "message.invalid",
        lambda f: f.signed(lambda body: b"\xdd\x00\x03\x00\x00" + b"\x80" * 0x30000),
    ),
    "NaN": ("message.invalid", lambda f: f.signed(lambda b: pack(b | {"iat": math.nan}))),
    "a key of bytes": ("message.invalid", lambda f: f.signed(lambda b: pack(b | {b"x": 1}))),
    "a key of a number": (
        "message.invalid",
        lambda f: f.signed(lambda b: msgpack.packb(b | {1: 1})),
    ),
    "no map": ("message.invalid", lambda f: f.signed(lambda body: pack([body]))),
    "a header that lacks": (
        "message.invalid",
        lambda f: f.signed(lambda body: pack({k: v for k, v in body.items() if k != "epoch"})),
    ),
    "a number below 0": ("message.invalid", lambda f: f.signed(lambda b: pack(b | {"seq": -1}))),
    "another field": ("message.invalid", lambda f: f.signed(lambda b: pack(b | {"more": 1}))),
    "no dispatch": ("message.invalid", lambda f: f.signed(lambda b: pack(b | {"dispatches": []}))),
    "a dispatch of nonsense": (
        "message.invalid",
        lambda f: f.signed(lambda body: pack(body | {"dispatches": [b"\xc1"]})),
    ),
}


def told(message: Message, counts: Counter[str]) -> bool:
    """Whether a node's report has exactly these counts."""
    return message.channel == topics.REFUSALS and message.fields["values"] == dict(counts)


async def good(control: Control, node: NodeProcess, number: int) -> None:
    """A good message is done: its marker appears, once."""
    one = dispatch(number, marker=f"good-{number}")
    control.delegate(one)
    assert (await control.result(one))["outcome"] == "completed"
    assert (node.folder / "files" / f"good-{number}").read_text() == f"{one.id}\n"


def markers(node: NodeProcess) -> set[str]:
    return {path.name for path in (node.folder / "files").iterdir()}


async def test_nothing_of_a_bad_message_is_done_each_is_counted_and_good_ones_go_on(
    control: Control, node: NodeProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await control.wait(is_birth)
    # ours would not let a message out that is too large; others are not so kind
    monkeypatch.setattr(mqtt, "check_size", lambda topic, payload: None)
    forge = Forge(control)
    seen = dispatch(1, marker="seen")
    again = control.delegate(seen)
    await control.result(seen)
    for _, make in BAD.values():
        control.link.publish(DELEGATE, make(forge))
    control.link.publish(DELEGATE, again)
    # what is in no row of the topic table the broker delivers to nobody
    control.link.publish(topics.to_node(MESH, NODE, Kind.HEARTBEAT), forge.sealed())
    control.link.publish(topics.to_all(MESH, Kind.DELEGATE), forge.sealed(aud="*"))
    expected = Counter(code for code, _ in BAD.values())
    expected += Counter({"message.replayed": 1})
    await good(control, node, 2)
    assert markers(node) == {"seen", "good-2"}
    assert (node.folder / "files" / "seen").read_text() == f"{seen.id}\n", "not a second time"
    await control.wait(lambda message: told(message, expected))
    rejected = [m for m in control.heard if m.kind is Kind.REJECT]
    assert rejected == [], "nobody is told of what cannot be named"


async def test_a_dispatch_that_cannot_be_read_is_rejected_by_name(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    ids = []
    for number, change in enumerate(
        ({"effect": "perhaps"}, {"params": {"value": math.nan}}, {"more": 1}, {"claims": [1]})
    ):
        one = msgpack.unpackb(packed(dispatch(number, marker=f"bad-{number}")))
        ids.append(one["id"])
        control.say(Kind.DELEGATE, {"dispatches": [msgpack.packb(one | change)]})
    await good(control, node, 9)
    told = [m for m in control.heard if m.kind is Kind.REJECT]
    refusals = [item for message in told for item in message.fields["refusals"]]
    assert [(item["id"], item["code"]) for item in refusals] == [
        (name, "message.invalid") for name in ids
    ]
    assert markers(node) == {"good-9"}


@pytest.fixture
def keeps_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that keeps what it is told to; the embedded one keeps a status alone."""
    monkeypatch.setenv("IMLMESH_BROKER", "mosquitto")


@pytest.mark.mosquitto
async def test_what_the_broker_had_kept_is_not_done(
    keeps_anything: None, control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    await node.end(signal.SIGKILL)
    kept = [
        (DELEGATE, Forge(control).sealed()),
        (
            topics.to_all(MESH, Kind.COMMAND),
            control.sealer.seal(Kind.COMMAND, "*", {"do": "rebirth"}, now_ms(), MESSAGE_EXPIRY_MS),
        ),
    ]
    for topic, envelope in kept:
        control.link.publish(topic, envelope, retain=True)
    control.heard.clear()
    await node.start()
    await control.wait(is_birth)
    await good(control, node, 2)
    assert markers(node) == {"good-2"}
    await control.wait(lambda message: told(message, Counter({"message.retained": 2})))


async def test_after_a_kill_nothing_recorded_is_done_again(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    recorded: list[tuple[Kind, bytes]] = []
    once, pure = dispatch(1, marker="once"), dispatch(2, "noop", "pure")
    strange = dispatch(3, "no_such", marker="refused")
    held = dispatch(4, marker="held", hang=True)
    for one in (once, pure):
        recorded.append((Kind.DELEGATE, control.delegate(one)))
        await control.result(one)
    recorded.append((Kind.DELEGATE, control.delegate(strange)))
    await control.wait(lambda m: m.kind is Kind.REJECT)
    recorded.append((Kind.COMMAND, control.say(Kind.COMMAND, {"do": "cancel", "dispatches": []})))
    recorded.append((Kind.ACK, control.say(Kind.ACK, {"beat": None, "settled": [held.id]})))
    recorded.append((Kind.DELEGATE, control.delegate(held)))
    await wait_for((node.folder / "files" / "held").exists)
    await node.end(signal.SIGKILL)
    control.heard.clear()
    await node.start()
    await control.wait(is_birth)
    unknown = await control.result(held)
    assert unknown["outcome"] == "unknown", "what the replayed ack names is not settled by it"
    control.heard.clear()
    for kind, envelope in recorded:
        control.link.publish(topics.to_node(MESH, NODE, kind), envelope)
    await good(control, node, 9)
    for name, one in (("once", once), ("held", held)):
        assert (node.folder / "files" / name).read_text() == f"{one.id}\n"
    assert markers(node) == {"once", "held", "good-9"}
    assert not any(results(m, one) for m in control.heard for one in (once, pure, strange, held))
    await control.wait(lambda m: told(m, Counter({"message.replayed": len(recorded)})))


async def test_a_dispossessed_orchestrator_is_not_heard_after_a_kill(
    control: Control, node: NodeProcess
) -> None:
    """It answers the nonce in time, with the right key: only the epoch tells."""
    await control.wait(is_birth)
    await node.end(signal.SIGKILL)
    control.begin_epoch(EPOCH - 1, control.signer)
    control.heard.clear()
    await node.start()
    await control.wait(lambda m: m.kind is Kind.REQUEST)
    control.delegate(dispatch(1, marker="bad"))
    await wait_for(lambda: '"code": "message.epoch"' in node.log.read_text())
    assert not any(is_birth(message) for message in control.heard)
    control.begin_epoch(EPOCH + 1, control.signer)
    await control.wait(is_birth)
    await good(control, node, 2)
    assert markers(node) == {"good-2"}
