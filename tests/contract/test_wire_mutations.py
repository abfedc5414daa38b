"""Whatever is done to the bytes of a message: the reader gives it back unharmed or a code, soon, from
little memory, and never anything else."""

import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envelope_corpus import FOLDER, KEYS, MESH, NODE, NOW_MS, corpus, opener, sealer
from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.limits import MESSAGE_BYTES, MESSAGE_EXPIRY_MS
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.dispatches import Dispatch, decode_dispatch
from imlmesh_protocol.wire.envelope import signing_input
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import KINDS, Kind, Topic, Way

CORPUS = corpus()
NAMES = sorted(CORPUS)
#: bytes that mean something to msgpack: maps, arrays, texts, bins and exts of every size, NaN
MARKS = [
    *(bytes((mark,)) for mark in (0x80, 0x81, 0x90, 0x91, 0xA1, *range(0xC0, 0xE0))),
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\xff",
    b"\xcb" + struct.pack(">d", float("nan")),
    b"\xd7\xff" + b"\xff" * 8,
    b"\x91" * 40,
    b"\x81\xa1x" * 40,
]
# of the processor, for a message whose every byte is looked at
WITHIN_S = 1.0
#: a reader may need so many times the bytes of the largest message
MEMORY_BYTES = 120 * MESSAGE_BYTES


def opened(topic: Topic, data: bytes) -> Message | str:
    """The message, or the code of its refusal. Anything else that is raised fails the test."""
    found: Message | str = read(lambda: opener(topic.way).open(topic, data, NOW_MS))
    return found


def read(make: Callable[[], Any]) -> Any:
    """What `make` gives, or the code of its refusal."""
    try:
        return make()
    except MeshError as exc:
        return exc.code


def mutated(data: bytes, dice: random.Random) -> bytes:
    """One to four changes: a bit, a byte, a mark, a slice cut out, doubled or moved, another's part."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(changed) + 1)
        to = min(len(changed), at + dice.choice((1, 2, 8, 64)))
        other = CORPUS[dice.choice(NAMES)][1]
        part = other[dice.randrange(len(other)) :][: dice.choice((1, 8, 64))]
        changed[at : dice.choice((at, to))] = dice.choice(
            (b"", dice.randbytes(1), dice.choice(MARKS), bytes(changed[at:to]) * 2, part)
        )
        if changed and dice.random() < 0.5:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def resigned(name: str, body: bytes) -> tuple[Topic, bytes]:
    """A body under a signature that holds: what its reader meets behind it."""
    topic, envelope = CORPUS[name]
    _, kind, key_id, _, _ = msgpack.unpackb(envelope)
    key = KEYS[NODE if topic.way is Way.FROM else "main"]
    return topic, pack([1, kind, key_id, body, key.sign(signing_input(kind, body)).signature])


def body_of(name: str) -> bytes:
    body: bytes = msgpack.unpackb(CORPUS[name][1])[3]
    return body


def test_the_corpus_is_the_wire_of_today_and_has_every_kind() -> None:
    saved = {path.stem: path.read_bytes() for path in FOLDER.glob("*.bin")}
    made = {name: envelope for name, (_, envelope) in CORPUS.items()}
    assert saved == made, "run: python tests/contract/envelope_corpus.py"
    covered = {(topic.way, topic.kind) for topic, _ in CORPUS.values()}
    assert covered == {(way, kind) for way, kinds in KINDS.items() for kind in kinds}


@pytest.mark.parametrize("name", NAMES)
def test_every_bit_counts(name: str) -> None:
    topic, envelope = CORPUS[name]
    original = opened(topic, envelope)
    assert isinstance(original, Message)
    changed = bytearray(envelope)
    for place in range(len(changed)):
        for bit in range(8):
            changed[place] ^= 1 << bit
            code = opened(topic, bytes(changed))
            assert isinstance(code, str), (place, bit)
            assert code in ("message.invalid", "message.kind") or code.startswith("signature.")
            changed[place] ^= 1 << bit


@pytest.mark.parametrize("name", NAMES)
def test_no_beginning_of_a_message_and_no_more_than_it_is_one(name: str) -> None:
    topic, envelope = CORPUS[name]
    for end in range(len(envelope)):
        assert opened(topic, envelope[:end]) in ("message.invalid", "message.kind")
    assert opened(topic, envelope + b"\x00") == "message.invalid"
    assert opened(topic, envelope + envelope) == "message.invalid"


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32))
def test_a_changed_message_is_the_same_or_refused(name: str, seed: int) -> None:
    topic, envelope = CORPUS[name]
    dice = random.Random(seed)
    for _ in range(10):
        data = mutated(envelope, dice)
        found = opened(topic, data)
        assert isinstance(found, str) or data == envelope


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32))
def test_a_changed_body_that_is_signed_is_read_or_refused(name: str, seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(10):
        topic, data = resigned(name, mutated(body_of(name), dice))
        found = opened(topic, data)
        if isinstance(found, Message) and topic.kind is Kind.DELEGATE:
            for packed in found.fields["dispatches"]:
                one = read(lambda packed=packed: decode_dispatch(packed))
                assert isinstance(one, Dispatch) or one == "message.invalid"


@given(st.binary(max_size=300), st.sampled_from(NAMES))
def test_any_bytes_are_refused(data: bytes, name: str) -> None:
    assert isinstance(opened(CORPUS[name][0], data), str)


@given(seed=st.integers(0, 2**32))
def test_a_changed_dispatch_is_read_or_refused(seed: int) -> None:
    dice = random.Random(seed)
    packed = unpack(body_of("to-delegate"))["dispatches"][0]
    for _ in range(10):
        found = read(lambda: decode_dispatch(mutated(packed, dice)))
        assert found == "message.invalid" or (isinstance(found, Dispatch) and found.timeout_ms >= 0)


BOMBS: dict[str, Callable[[int], bytes]] = {
    "empty maps": lambda size: b"\xdd" + struct.pack(">I", size - 5) + b"\x80" * (size - 5),
    "empty lists": lambda size: b"\xdd" + struct.pack(">I", size - 5) + b"\x90" * (size - 5),
    "lists of empty maps": lambda size: (
        b"\xdc\x00\x20" + (b"\xdc" + struct.pack(">H", size // 33) + b"\x80" * (size // 33)) * 32
    )[:size],
    "lists in lists": lambda size: b"\x91" * size,
    "maps in maps": lambda size: b"\x81\xa0" * (size // 2),
    "a map of many": lambda size: (
        b"\xdf" + struct.pack(">I", size // 2) + b"\xa0\x80" * (size // 2)
    ),
    "a list that promises more": lambda size: b"\xdd\xff\xff\xff\xff" * (size // 5),
    "a map that promises more": lambda size: b"\xdf\xff\xff\xff\xff" * (size // 5),
    "small numbers": lambda size: b"\xdd" + struct.pack(">I", size - 5) + b"\x01" * (size - 5),
    "a text": lambda size: b"\xdb" + struct.pack(">I", size - 5) + b"x" * (size - 5),
}


def measured(make: Callable[[], object]) -> tuple[object, float, int]:
    """(what it gave, seconds of the processor, the most bytes that it held)."""
    began = time.process_time()
    make()
    took_s = time.process_time() - began
    tracemalloc.start()  # which makes everything slower by far
    try:
        return make(), took_s, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_that_nobody_signed_costs_nothing(name: str) -> None:
    topic, _ = CORPUS["to-delegate"]
    for size in (MESSAGE_BYTES, 4 * MESSAGE_BYTES):
        bomb = BOMBS[name](size)
        code, took_s, held = measured(lambda bomb=bomb: opened(topic, bomb))
        assert code in ("message.invalid", "message.too_large")
        assert held < 64 * 1024, "not even a copy is made of it"
        assert took_s < WITHIN_S


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_that_is_signed_costs_little(name: str) -> None:
    topic, data = resigned("to-delegate", BOMBS[name](MESSAGE_BYTES - 200))
    code, took_s, held = measured(lambda: opened(topic, data))
    assert code == "message.invalid"
    assert held < MEMORY_BYTES
    assert took_s < WITHIN_S


class CountedKey:
    """A public key that counts how often it is used."""

    def __init__(self) -> None:
        self.verified = 0

    def verify(self, data: bytes, signature: bytes) -> bytes:
        self.verified += 1
        return KEYS["main"].verify_key.verify(data, signature)


def test_fifty_dispatches_are_signed_and_verified_once() -> None:
    key = CountedKey()
    reading = opener(Way.TO)
    reading._find_key = lambda name, iss: key  # type: ignore[assignment,return-value]
    packed = unpack(body_of("to-delegate"))["dispatches"][0]
    bins = [packed.replace(b"water", b"a%04d" % number) for number in range(50)]
    writing = sealer(Way.TO)
    signed: list[bytes] = []
    sign = writing._sign
    writing._sign = lambda data: signed.append(data) or sign(data)  # type: ignore[func-returns-value]
    envelope = writing.seal(Kind.DELEGATE, NODE, {"dispatches": bins}, NOW_MS, MESSAGE_EXPIRY_MS)
    topic = topics.parse(topics.to_node(MESH, NODE, Kind.DELEGATE))
    message = reading.open(topic, envelope, NOW_MS)
    assert len({decode_dispatch(one).id for one in message.fields["dispatches"]}) == 50
    assert (len(signed), key.verified) == (1, 1)
