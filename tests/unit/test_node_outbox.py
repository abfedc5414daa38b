"""What leaves a node: in order, and in messages that every receiver can take."""

from typing import Any

import pytest

from imlmesh_node.core.changes import ResultRecord
from imlmesh_node.outbox import Address, Letter, Outbox
from imlmesh_node.shell import batches
from imlmesh_node.sizes import check_result, measure
from imlmesh_protocol.errors import DriverError, Fault, LinkError
from imlmesh_protocol.limits import (
    BATCH_BYTES,
    MESSAGE_BYTES,
    MESSAGE_DEPTH,
    MESSAGE_VALUES,
    RESULT_BYTES,
    RESULT_CHUNK_BYTES,
)
from imlmesh_protocol.wire.codec import pack, unpack
from imlmesh_protocol.wire.envelope import Sealer
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.link.base import LinkEvents


class Wire:
    """A link that keeps what is published, or refuses it."""

    def __init__(self) -> None:
        self.connected = True
        self.full = False
        self.unacked = 0
        self.faults = 0
        self.last_error = None
        self.sent: list[tuple[str, dict[str, Any]]] = []
        #: how many messages had been handed over at the last flush
        self.flushed = 0

    def start(self, events: LinkEvents) -> None: ...

    async def close(self) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if self.full:
            raise LinkError("link.full", "too much waits")
        self.sent.append((topic, unpack(unpack(payload)[3])))

    def flush(self) -> None:
        self.flushed = len(self.sent)

    @property
    def numbers(self) -> list[int]:
        return [body["seq"] for _, body in self.sent]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def outbox(wire: Wire) -> Outbox:
    sealer = Sealer(lambda data: b"s" * 64, b"k" * 8, "home", "pi", Way.FROM)
    made = Outbox(Address("home", "pi", "control"), sealer, wire, ManualClock())
    made.new_session(7, 1)
    return made


def beat(number: int) -> Letter:
    return Letter(Kind.HEARTBEAT, {"beat": number, "held": [], "health": {}})


def question(nonce: str) -> Letter:
    return Letter(Kind.REQUEST, {"what": "time", "nonce": nonce})


def test_nothing_prepared_leaves_before_its_release(outbox: Outbox, wire: Wire) -> None:
    outbox.prepare([beat(1)])
    assert wire.sent == []
    outbox.release()
    assert [topic for topic, _ in wire.sent] == ["imlmesh/1/home/from/pi/heartbeat"]


def test_what_is_sent_meanwhile_queues_behind_in_order_of_its_number(
    outbox: Outbox, wire: Wire
) -> None:
    outbox.send(question("a"))
    outbox.prepare([beat(1), beat(2)])
    outbox.send(question("b"))
    outbox.release()
    outbox.send(question("c"))
    assert [body.get("nonce", body.get("beat")) for _, body in wire.sent] == ["a", 1, 2, "b", "c"]
    assert wire.numbers == sorted(wire.numbers)


def test_messages_leave_at_once_but_log_lines_may_gather(outbox: Outbox, wire: Wire) -> None:
    outbox.prepare([beat(1), beat(2)])
    outbox.release()
    assert wire.flushed == 2
    outbox.send(Letter(Kind.EVENT, {"line": "hello"}, "log", qos=0))
    assert (len(wire.sent), wire.flushed) == (3, 2)
    outbox.send(question("a"))
    assert wire.flushed == 4


def test_a_will_belongs_to_its_session_and_never_expires(outbox: Outbox) -> None:
    will = outbox.new_session(7, 2)
    body = unpack(unpack(will.payload)[3])
    assert will.topic == "imlmesh/1/home/from/pi/status"
    assert (body["boot"], body["session"], body["exp"], body["state"]) == (7, 2, 0, "gone")


def test_a_link_that_is_down_or_full_costs_the_message_alone(outbox: Outbox, wire: Wire) -> None:
    wire.connected = False
    outbox.send(beat(1))
    wire.connected, wire.full = True, True
    outbox.prepare([beat(2)])
    outbox.release()
    wire.full = False
    outbox.send(beat(3))
    assert [body["beat"] for _, body in wire.sent] == [3]


def result(number: int, value: Any) -> ResultRecord:
    return ResultRecord(f"r/a{number}/pi/1", b"h" * 32, "completed", value, None, 3)


def test_results_travel_in_messages_that_fit() -> None:
    results = [result(n, {"text": "x" * 50_000}) for n in range(10)]
    made = batches(results)
    assert [item["id"] for batch in made for item in batch] == [r.dispatch for r in results]
    assert len(made) > 1
    assert all(len(pack(batch)) <= BATCH_BYTES for batch in made)


def test_results_of_many_values_travel_in_messages_that_can_be_read() -> None:
    results = [result(n, {"row": [0] * 6_000}) for n in range(10)]
    made = batches(results)
    assert sum(len(batch) for batch in made) == 10
    for batch in made:
        assert unpack(pack({"results": batch})) == {"results": batch}


def test_the_largest_result_of_one_message_fits_it_alone() -> None:
    value, in_chunks = check_result({"text": "x" * (RESULT_CHUNK_BYTES - 100)})
    assert in_chunks == b""
    made = batches([result(1, value), result(2, value)])
    assert [len(batch) for batch in made] == [1, 1]
    assert len(pack({"results": made[0]})) < MESSAGE_BYTES - 4_096


def test_a_failure_travels_as_code_and_message() -> None:
    failed = ResultRecord("r/a/pi/1", b"h", "failed", None, Fault("driver.busy", "held"), 0)
    assert batches([failed])[0][0]["error"] == {"code": "driver.busy", "message": "held"}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"a": 1, "b": "text", "c": None, "d": True, "e": 0.5},
        {"long": "é" * 1_000},
        [1, [2, {"x": b"bytes"}]],
        {"rows": [0] * (MESSAGE_VALUES - 200)},
        nested(MESSAGE_DEPTH - 3),
        "text",
    ],
)
def test_plain_results_pass_and_can_be_read(value: Any) -> None:
    checked, in_chunks = check_result(value)
    assert (checked, in_chunks) == (value, b"")
    assert unpack(pack({"results": [{"result": checked}]}))["results"][0]["result"] == value


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"text": "x" * RESULT_BYTES}, "result.too_large"),
        ({"rows": [0] * MESSAGE_VALUES}, "result.too_large"),
        ({"rows": [0] * (MESSAGE_VALUES - 50)}, "result.too_large"),
        (nested(MESSAGE_DEPTH - 2), "result.too_large"),
        (nested(MESSAGE_DEPTH + 1), "result.too_large"),
        ({1: "a"}, "driver.failed"),
        ({"a": {2: "b"}}, "driver.failed"),
        ({"a": float("nan")}, "driver.failed"),
        ({"a": float("inf"), "b": [1]}, "driver.failed"),
        ({"a": 1 << 64}, "driver.failed"),
        ({"a": -(1 << 64)}, "driver.failed"),
        ({"a": object()}, "driver.failed"),
        ({"a": {1, 2}}, "driver.failed"),
        ("\udcff", "driver.failed"),
        ({"a": "\udcff"}, "driver.failed"),
    ],
)
def test_what_nobody_could_read_is_refused_here(value: Any, code: str) -> None:
    with pytest.raises(DriverError) as caught:
        check_result(value)
    assert caught.value.code == code


def test_a_tuple_becomes_the_list_that_it_travels_as() -> None:
    assert check_result({"pair": (1, 2)}) == ({"pair": [1, 2]}, b"")


def test_a_result_that_needs_several_messages_stays_packed() -> None:
    value = {"text": "x" * (RESULT_BYTES - 100)}
    checked, in_chunks = check_result(value)
    assert checked is None
    assert unpack(in_chunks, max_bytes=RESULT_BYTES) == value


def test_values_are_counted_as_receivers_do() -> None:
    assert measure(3) == (1, 1)
    assert measure({"a": [1, 2], "b": {}}) == (3, 5)
