"""Dispatches as bytes, and the table of fields."""

from typing import Any

import msgpack
import pytest

from imlmesh_protocol import limits
from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module, Undo, manifest_from_wire
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import messages, topics
from imlmesh_protocol.wire.dispatches import decode_dispatch, encode_dispatch


def encoded() -> bytes:
    return encode_dispatch(
        "r-1/a/pi/1",
        "iot",
        "digital_write",
        {"pin": 17},
        Effect.PHYSICAL,
        60_000,
        6_000,
        "finish",
        ("gpio:17",),
    )


def test_a_dispatch_comes_back_as_it_went() -> None:
    dispatch = decode_dispatch(encoded())
    assert dispatch.effect is Effect.PHYSICAL
    assert (dispatch.id, dispatch.params, dispatch.claims) == (
        "r-1/a/pi/1",
        {"pin": 17},
        ("gpio:17",),
    )
    assert (dispatch.timeout_ms, dispatch.lease_ms, dispatch.on_busy) == (60_000, 6_000, "wait")


def test_the_same_dispatch_has_the_same_bytes() -> None:
    assert encoded() == encoded()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 5),
        ("params", []),
        ("effect", "maybe"),
        ("timeout_ms", -1),
        ("timeout_ms", True),
        ("lease_ms", 1.5),
        ("when_cut_off", "explode"),
        ("claims", ["a", 1]),
        ("on_busy", None),
    ],
)
def test_a_dispatch_with_a_wrong_field_is_refused(name: str, value: object) -> None:
    body = {**msgpack.unpackb(encoded()), name: value}
    with pytest.raises(ProtocolError) as caught:
        decode_dispatch(msgpack.packb(body))
    assert caught.value.code == "message.invalid"


@pytest.mark.parametrize("change", [{"more": 1}, {"params": None}])
def test_a_dispatch_with_other_fields_is_refused(change: dict[str, object]) -> None:
    body = msgpack.unpackb(encoded())
    body.update(change)
    with pytest.raises(ProtocolError):
        decode_dispatch(msgpack.packb(body))


def test_every_kind_has_its_fields() -> None:
    assert set(messages.FIELDS) == set(topics.Kind)


def fields_of(kind: topics.Kind) -> dict[str, Any]:
    fault = {"code": "c", "message": "m"}
    done = {"id": "r/a/pi/1", "hash": b"h", "outcome": "completed", "duration_ms": 1}
    return {
        topics.Kind.COMPLETE: {"results": [done]},
        topics.Kind.REJECT: {"refusals": [{"id": "r/a/pi/1", **fault}]},
        topics.Kind.ACCEPT: {"dispatches": [["r/a/pi/1", b"h"]], "started": ["r/a/pi/1"]},
        topics.Kind.HEARTBEAT: {"beat": 1, "held": ["r/a/pi/1"], "health": {"load": 0.1}},
    }[kind]


HUGE_ID = "r/a/pi/" + "1" * limits.DISPATCH_ID_CHARS


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (topics.Kind.HEARTBEAT, "beat", limits.COUNT_MAX + 1),
        (topics.Kind.HEARTBEAT, "held", [HUGE_ID]),
        (topics.Kind.HEARTBEAT, "held", ["r/é/pi/1"]),
        (topics.Kind.HEARTBEAT, "health", {"disk_percent": "full"}),
        (topics.Kind.ACCEPT, "dispatches", [[HUGE_ID, b"h"]]),
        (topics.Kind.ACCEPT, "started", [HUGE_ID]),
        (topics.Kind.REJECT, "refusals", [{"id": HUGE_ID, "code": "c", "message": "m"}]),
    ],
)
def test_what_stores_views_and_answers_could_not_hold_is_refused(
    kind: topics.Kind, name: str, value: Any
) -> None:
    good = fields_of(kind)
    messages.check_fields(kind, good)
    with pytest.raises(ProtocolError) as caught:
        messages.check_fields(kind, {**good, name: value})
    assert caught.value.code == "message.invalid"


@pytest.mark.parametrize(
    "change", [{"duration_ms": limits.COUNT_MAX + 1}, {"error": 1}, {"id": HUGE_ID}]
)
def test_a_result_is_what_the_table_says(change: dict[str, Any]) -> None:
    (good,) = fields_of(topics.Kind.COMPLETE)["results"]
    with pytest.raises(ProtocolError):
        messages.check_fields(topics.Kind.COMPLETE, {"results": [{**good, **change}]})


def test_the_longest_dispatch_id_fits() -> None:
    longest = f"r-{10**12}-bcdf/{'a' * 64}/{'n' * 63}/{10**8}"
    assert len(longest) <= limits.DISPATCH_ID_CHARS
    messages.check_fields(topics.Kind.ACCEPT, {"dispatches": [[longest, b"h"]]})


@pytest.mark.parametrize("on_busy", ["wait", "fail"])
def test_claims_and_on_busy_travel_with_the_dispatch(on_busy: str) -> None:
    sent = encode_dispatch(
        *("r-1/a/pi/1", "iot", "digital_write", {}, Effect.PHYSICAL, 60_000, 6_000, "finish"),
        claims=("gpio:17", "pump"),
        on_busy=on_busy,
    )
    dispatch = decode_dispatch(sent)
    assert (dispatch.claims, dispatch.on_busy) == (("gpio:17", "pump"), on_busy)


CONDITIONS = [["bus if "], [" if pin"], ["bus if {pin}"], ["bus if pin=1=2"], ["bus if pin is 1"]]


@pytest.mark.parametrize(
    "claims", [["{pin.real}"], ["{pin[0]}"], ["{pin!r}"], ["{"], [""], [17], *CONDITIONS]
)
def test_a_manifest_with_claims_that_are_no_patterns_is_refused(claims: list[Any]) -> None:
    action = {
        "params": {},
        "returns": [],
        "effect": "pure",
        "permission": "readonly",
        "impact": 0.1,
        "claims": ["gpio:{pin}"],
    }
    module = {"version": "1", "actions": {"read": action}}
    manifest = manifest_from_wire({"modules": {"iot": module}})
    assert manifest.modules["iot"].actions["read"].claims_for({"pin": 4}) == ("gpio:4",)
    action["claims"] = claims
    with pytest.raises(ProtocolError):
        manifest_from_wire({"modules": {"iot": module}})


@pytest.mark.parametrize(
    "undo",
    [
        {
            "action": "write",
            "params": {"pin": "{{params.pin}}", "was": ["{{result.0.x}}", "{{result}}"]},
        },
        None,
    ],
)
def test_an_undo_comes_back_from_the_wire(undo: dict[str, Any] | None) -> None:
    wire = Manifest({"iot": Module("1", {"write": writing(undo)})}).to_wire()
    assert wire["modules"]["iot"]["actions"]["write"]["undo"] == undo
    assert manifest_from_wire(wire).modules["iot"].actions["write"] == writing(undo)


@pytest.mark.parametrize(
    "undo",
    [
        {"action": "erase", "params": {}},
        {"action": "write", "params": {"pin": "{{node.id}}"}},
        {"action": "write", "params": {"pin": ["{{result.x"]}},
        {"action": "write", "params": {"pin": "{{resultx}}"}},
        {"action": "write", "params": 5},
        {"action": "write"},
        "write",
    ],
)
def test_a_manifest_with_an_undo_that_is_none_is_refused(undo: Any) -> None:
    wire = Manifest({"iot": Module("1", {"write": writing(None)})}).to_wire()
    wire["modules"]["iot"]["actions"]["write"]["undo"] = undo
    with pytest.raises(ProtocolError):
        manifest_from_wire(wire)


def writing(undo: dict[str, Any] | None) -> ActionSpec:
    found = undo and Undo(undo["action"], undo["params"])
    return ActionSpec("iot", "write", {}, (), Effect.PHYSICAL, "readonly", 0.5, undo=found)


FULL = b"x" * limits.RESULT_CHUNK_BYTES
CHUNK: dict[str, Any] = {"index": 0, "count": 2, "hash": b"s" * 32, "data": FULL}


def in_chunks(chunk: Any, **more: Any) -> dict[str, Any]:
    item = {"id": "r/a/pi/1", "hash": b"h", "outcome": "completed", "duration_ms": 1}
    return {"results": [{**item, "chunk": chunk, **more}]}


def test_a_chunk_of_a_result_says_which_and_of_what() -> None:
    messages.check_fields(topics.Kind.COMPLETE, in_chunks(CHUNK))
    messages.check_fields(topics.Kind.COMPLETE, in_chunks({**CHUNK, "index": 1, "data": b"x"}))
    last = {**CHUNK, "index": limits.RESULT_CHUNKS - 1, "count": limits.RESULT_CHUNKS}
    messages.check_fields(topics.Kind.COMPLETE, in_chunks(last))


@pytest.mark.parametrize(
    "wrong",
    [
        {"index": -1},
        {"index": 2},
        {"index": True},
        {"index": None},
        {"count": 1},
        {"count": limits.RESULT_CHUNKS + 1},
        {"count": 2.0},
        {"hash": b"s"},
        {"hash": "s" * 32},
        {"data": b""},
        {"data": "x"},
        {"data": FULL[1:]},
        {"data": FULL + b"x"},
        {"more": 1},
    ],
)
def test_a_chunk_that_fits_nowhere_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        messages.check_fields(topics.Kind.COMPLETE, in_chunks({**CHUNK, **wrong}))
    assert caught.value.code == "message.invalid"


@pytest.mark.parametrize(
    "item",
    [
        in_chunks([]),
        in_chunks({}),
        in_chunks(CHUNK, result=1),
        in_chunks(CHUNK, outcome="failed", error={"code": "driver.failed", "message": ""}),
    ],
)
def test_a_chunk_belongs_to_a_result_that_is_not_there(item: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        messages.check_fields(topics.Kind.COMPLETE, item)


@pytest.mark.parametrize("wants", [[["r/a/pi/1", 0]], []])
def test_an_ack_may_want_chunks(wants: Any) -> None:
    fields = {"beat": None, "settled": [], "wants": wants}
    messages.check_fields(topics.Kind.ACK, fields)


@pytest.mark.parametrize("wants", [{}, [["r/a/pi/1"]], [["r/a/pi/1", -1]], [[1, 1]], [1]])
def test_an_ack_wants_nothing_else(wants: Any) -> None:
    fields = {"beat": None, "settled": [], "wants": wants}
    with pytest.raises(ProtocolError):
        messages.check_fields(topics.Kind.ACK, fields)
