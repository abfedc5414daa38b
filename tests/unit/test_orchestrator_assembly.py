"""Results that come in chunks: whole or nothing, and never more than there is room for."""

import hashlib
from functools import cache
from typing import Any

import pytest

from imlmesh_orchestrator.assembly import Assembly
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, ProtocolError
from imlmesh_protocol.wire.codec import pack

CHUNK = limits.RESULT_CHUNK_BYTES


def items(packed: bytes, number: int = 1, node: str = "pi", **more: Any) -> list[dict[str, Any]]:
    count, digest = -(-len(packed) // CHUNK), sha256(packed)
    chunks = [
        {
            "index": index,
            "count": count,
            "hash": digest,
            "data": packed[index * CHUNK : (index + 1) * CHUNK],
            **more,
        }
        for index in range(count)
    ]
    return [{"id": f"r/a{number}/{node}/1", "hash": b"h" * 32, "chunk": chunk} for chunk in chunks]


@cache
def sha256(packed: bytes) -> bytes:
    return hashlib.sha256(packed).digest()


@cache
def largest(letter: str = "x") -> bytes:
    return pack(letter * (limits.RESULT_BYTES - 5))


def test_chunks_in_any_order_make_the_result():
    value = {"text": "x" * 3 * CHUNK, "rows": [1, None]}
    first, second, third, fourth = items(pack(value))
    assembly = Assembly()
    assert assembly.take("pi", third, 1) == 0
    assert assembly.take("pi", first, 2) == 1
    assert assembly.take("pi", first, 3) == 1
    assert assembly.take("pi", fourth, 4) == 1
    assert assembly.take("pi", second, 5) is None
    assert assembly.value("pi", second) == value


def test_the_last_chunk_again_gives_the_result_again():
    assembly = Assembly()
    chunks = items(largest())
    for item in chunks:
        assembly.take("pi", item, 1)
    assert assembly.take("pi", chunks[-1], 1 + limits.ASSEMBLY_MS - 1) is None
    assert len(assembly.value("pi", chunks[-1])) == limits.RESULT_BYTES - 5


def test_chunks_that_do_not_make_the_announced_result_are_thrown_away():
    assembly = Assembly()
    first, second = items(pack("x" * (CHUNK + 9)))
    second["chunk"]["data"] = b"y" * len(second["chunk"]["data"])
    assembly.take("pi", first, 1)
    assert assembly.take("pi", second, 1) is None
    with pytest.raises(ProtocolError) as caught:
        assembly.value("pi", second)
    assert (caught.value.code, assembly.size) == ("message.invalid", 0)


def test_more_than_a_result_may_have_is_refused_when_it_is_whole():
    assembly = Assembly()
    chunks = items(b"x" * limits.RESULT_CHUNKS * CHUNK)
    for item in chunks:
        assembly.take("pi", item, 1)
    with pytest.raises(ProtocolError) as caught:
        assembly.value("pi", chunks[0])
    assert (caught.value.code, assembly.size) == ("message.too_large", 0)


def test_another_result_of_that_name_begins_anew():
    assembly = Assembly()
    assert assembly.take("pi", items(largest("x"))[0], 1) == 1
    assert assembly.take("pi", items(largest("y"))[1], 2) == 0


def test_nodes_and_attempts_are_told_apart():
    assembly = Assembly()
    one, other = items(largest())[0], items(largest())[0] | {"hash": b"o" * 32}
    assert [assembly.take("pi", one, 1), assembly.take("pi", other, 1)] == [1, 1]
    assert assembly.take("pi-2", one, 1) == 1
    assert assembly.size == 3 * limits.RESULT_CHUNKS * CHUNK


def test_what_nobody_goes_on_with_is_forgotten():
    assembly = Assembly()
    for number in range(3):
        assembly.take("pi", items(largest(), number)[0], number)
    assembly.expire(limits.ASSEMBLY_MS + 1)
    assert assembly.size == limits.RESULT_CHUNKS * CHUNK
    assert assembly.take("pi", items(largest(), 0)[1], limits.ASSEMBLY_MS + 2) == 0


def test_a_node_that_begins_many_loses_its_own_oldest():
    assembly = Assembly()
    honest = items(largest(), node="pi-2")
    assembly.take("pi-2", honest[0], 1)
    for number in range(100):
        assembly.take("pi", items(largest(), number)[0], 1)
    assert assembly.size <= limits.ASSEMBLY_NODE_BYTES + limits.RESULT_CHUNKS * CHUNK
    assert assembly.take("pi-2", honest[1], 1) == 2
    assert assembly.take("pi", items(largest(), 0)[1], 1) == 0


def test_a_fleet_that_reports_at_once_takes_turns_and_what_began_can_end():
    assembly = Assembly()
    begun, waits = [], []
    for number in range(50):
        node = f"pi-{number}"
        try:
            assembly.take(node, items(largest(), node=node)[0], 1)
            begun.append(node)
        except LinkError:
            waits.append(node)
    assert begun
    assert waits
    assert assembly.size <= limits.ASSEMBLY_BYTES
    for node in begun:
        chunks = items(largest(), node=node)
        assert [assembly.take(node, item, 2) for item in chunks][-1] is None
    # what is whole is dispensable
    assert assembly.take(waits[0], items(largest(), node=waits[0])[0], 3) == 1


def test_a_newcomer_displaces_who_has_more_than_one():
    assembly = Assembly()
    for name in ("bad-1", "bad-2", "bad-3", "bad-4", "bad-5"):
        for number in range(3):
            assembly.take(name, items(largest(), number, name)[0], 1)
    assert assembly.take("pi", items(largest())[0], 2) == 1
    assert assembly.size <= limits.ASSEMBLY_BYTES
