"""One real envelope of each kind and way, the same every time: `python tests/contract/envelope_corpus.py`
writes them to tests/data/envelopes.

They are saved so that a change of the format shows, and as seeds of the mutation tests.
"""

from pathlib import Path
from typing import Any

from nacl.signing import SigningKey, VerifyKey

from imlmesh_protocol.limits import MESSAGE_EXPIRY_MS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.dispatches import encode_dispatch
from imlmesh_protocol.wire.envelope import EVERYBODY, Opener, Sealer
from imlmesh_protocol.wire.topics import Kind, Topic, Way
from imlmesh_runtime.trust import Signer, key_id

FOLDER = Path(__file__).parents[1] / "data" / "envelopes"
MESH, NODE, CONTROL = "home", "pi", "main"
NOW_MS = 1_800_000_000_000
KEYS = {NODE: SigningKey(b"n" * 32), CONTROL: SigningKey(b"c" * 32)}
NAME = f"r-7-k3fq/water/{NODE}/1"
HASH = bytes(range(32))
BIN = encode_dispatch(
    NAME,
    "iot",
    "digital_write",
    {"pin": 17, "value": 1, "note": "grün", "curve": [0.5, -1, None, {"deep": True}]},
    Effect.PHYSICAL,
    60_000,
    6_000,
    "stop",
    ("gpio:17",),
)
FAULT = {"code": "driver.failed", "message": "it did not"}
DONE = {"id": NAME, "hash": HASH, "outcome": "completed", "duration_ms": 3, "result": {"value": 1}}
CHUNK = {"chunk": {"index": 1, "count": 2, "hash": HASH, "data": b"the end of it"}}
BIRTH = {
    "state": "online",
    "manifest": {"modules": {"fake": {"version": "1", "actions": []}}},
    "facts": {"os": "linux", "cpu": 4, "memory_mb": 512.5},
    "profile": "readonly",
    "heartbeat_ms": 2_000,
    "lost_ms": 6_000,
    "journal_since": 7,
    "permits": {"p-3-kq7x": 2},
}

DOWN: dict[str, tuple[Kind, dict[str, Any]]] = {
    "delegate": (Kind.DELEGATE, {"dispatches": [BIN, BIN.replace(b"water", b"drain")]}),
    "ack": (Kind.ACK, {"beat": 4, "settled": [NAME], "wants": [[NAME, 3]]}),
    "command": (Kind.COMMAND, {"do": "cancel", "dispatches": [NAME]}),
    "command-permit": (Kind.COMMAND, {"do": "permit", "doc": b"signed", "drop": ["p-3-kq7x"]}),
    "request": (Kind.REQUEST, {"what": "inventory", "nonce": "n-1"}),
    "response": (Kind.RESPONSE, {"what": "time", "nonce": "n-1", "at_ms": NOW_MS, "boot": 41}),
}
UP: dict[str, tuple[Kind, str, dict[str, Any]]] = {
    "accept": (Kind.ACCEPT, "", {"dispatches": [[NAME, HASH]], "started": [NAME]}),
    "reject": (Kind.REJECT, "", {"refusals": [{"id": NAME, **FAULT}]}),
    "complete": (
        Kind.COMPLETE,
        "",
        {"results": [DONE, {**DONE, "outcome": "failed", "error": FAULT}]},
    ),
    "complete-chunk": (
        Kind.COMPLETE,
        "",
        {"results": [{name: value for name, value in DONE.items() if name != "result"} | CHUNK]},
    ),
    "escalate": (Kind.ESCALATE, "", {"code": "journal.lost", "message": "it is gone"}),
    "request": (Kind.REQUEST, "", {"what": "time", "nonce": "n-2", "obeys": 9}),
    "response": (
        Kind.RESPONSE,
        "",
        {"what": "inventory", "nonce": "n-1", "held": [NAME], "unsettled": []},
    ),
    "event-log": (Kind.EVENT, "log", {"dispatch": NAME, "line": "wet\u2026", "stream": "stdout"}),
    "event-progress": (
        Kind.EVENT,
        "progress",
        {"dispatch": NAME, "fraction": 0.25, "message": "half of a half"},
    ),
    "event-telemetry": (
        Kind.EVENT,
        "telemetry/iot",
        {"readings": {"iot.soil": [[NOW_MS, NOW_MS + 1], [0.25, 7]]}, "units": {"iot.soil": "%"}},
    ),
    "event-source": (Kind.EVENT, "source/pin-17", {"values": {"level": 1, "edge": "rising"}}),
    "status": (Kind.STATUS, "", BIRTH),
    "heartbeat": (
        Kind.HEARTBEAT,
        "",
        {"beat": 4, "held": [NAME], "health": {"load": 0.5, "temperature_c": None}},
    ),
}


def sealer(way: Way) -> Sealer:
    """Of the node or of the orchestrator, at its first message."""
    iss = NODE if way is Way.FROM else CONTROL
    signer = Signer.of_key(KEYS[iss])
    made = Sealer(signer.sign, signer.key_id, MESH, iss, way)
    made.new_session(9, 1)
    return made


def opener(way: Way) -> Opener:
    """Of who reads what goes this way; it has seen nothing yet."""
    return Opener(MESH, CONTROL if way is Way.FROM else NODE, find_key)


def find_key(name: bytes, _iss: str) -> VerifyKey | None:
    """Of anybody here."""
    keys = [key.verify_key for key in KEYS.values()]
    return next((key for key in keys if key_id(bytes(key)) == name), None)


def corpus() -> dict[str, tuple[Topic, bytes]]:
    """By name: where it travels, and its bytes."""
    made: dict[str, tuple[Topic, bytes]] = {}
    for name, (kind, fields) in DOWN.items():
        topic = topics.parse(topics.to_node(MESH, NODE, kind))
        made[f"to-{name}"] = (topic, _seal(topic, NODE, fields))
    for name, (kind, channel, fields) in UP.items():
        topic = topics.parse(topics.from_node(MESH, NODE, kind, channel))
        made[f"from-{name}"] = (topic, _seal(topic, CONTROL, fields))
    to_all = topics.parse(topics.to_all(MESH, Kind.COMMAND))
    made["all-command"] = (to_all, _seal(to_all, EVERYBODY, {"do": "rebirth"}))
    status = topics.parse(topics.orchestrator_status(MESH, CONTROL))
    made["orchestrator-status"] = (status, _seal(status, EVERYBODY, {"state": "online"}))
    will = topics.parse(topics.from_node(MESH, NODE, Kind.STATUS))
    made["from-will"] = (will, _seal(will, CONTROL, {"state": "gone"}, 0))
    return made


def _seal(
    topic: Topic, aud: str, fields: dict[str, Any], life_ms: int = MESSAGE_EXPIRY_MS
) -> bytes:
    way = Way.FROM if topic.way is Way.FROM else Way.TO
    return sealer(way).seal(topic.kind, aud, fields, NOW_MS, life_ms)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, (_, envelope) in corpus().items():
        (FOLDER / f"{name}.bin").write_bytes(envelope)
