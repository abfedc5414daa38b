"""What leaves and what comes in: order, merging, refusals, watchers."""

import asyncio
import math
from collections import Counter
from typing import Any

import pytest
from nacl.signing import SigningKey

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.inbound import Inbound
from imlmesh_orchestrator.outbound import Outbound
from imlmesh_orchestrator.stream import Notice, Stream
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, LinkError, StoreError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.envelope import Opener, Sealer
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.clock import ManualClock
from imlmesh_runtime.trust import Signer

MESH, ME = "home", "orchestra"
PLAN_KEY, NODE_KEY = SigningKey.generate(), SigningKey.generate()


class FakeLink:
    connected, unacked, faults, last_error = True, 0, 0, None

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes, bool]] = []
        #: how many messages had been handed over at the last flush
        self.flushed = 0
        self.error: LinkError | None = None

    def start(self, events: Any) -> None: ...

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        if self.error:
            raise self.error
        self.sent.append((topic, payload, retain))

    def flush(self) -> None:
        self.flushed = len(self.sent)

    async def close(self) -> None: ...


class Speaking:
    """An outbound, and nodes that open what it sends; a wrong order would be refused."""

    def __init__(self) -> None:
        signer = Signer.of_key(PLAN_KEY)
        self.link, self.clock, self.stream = FakeLink(), ManualClock(), Stream()
        sealer = Sealer(signer.sign, signer.key_id, MESH, ME, Way.TO)
        sealer.new_session(1, 0)
        #: how many messages had been handed over when watchers were told
        self.told: list[int] = []
        self.before_seq = 41
        self.out = Outbound(MESH, ME, sealer, self.link, self.clock, self.stream, self)

    def tell(self) -> None:
        self.told.append(len(self.link.sent))

    def heard(self, node: str = "pi-1") -> list[Message]:
        opener = Opener(MESH, node, lambda key_id, iss: PLAN_KEY.verify_key)
        mine = (topics.to_node(MESH, node, Kind.ACK).rpartition("/")[0], f"imlmesh/1/{MESH}/all")
        return [
            opener.open(topics.parse(topic), payload, self.clock.now_ms())
            for topic, payload, _ in self.link.sent
            if topic.startswith(mine)
        ]


def test_nothing_leaves_before_release_and_then_in_order():
    speaking = Speaking()
    speaking.out.prepare(
        [
            k.SendDispatch("pi-1", "d1", b"1"),
            k.SendAck("pi-1", None, ("x",)),
            k.SendDispatch("pi-2", "d2", b"2"),
            k.SendAck("pi-1", 4, ()),
            k.SendAck("pi-1", 3, ("y",)),
            k.SendDispatch("pi-1", "d3", b"3"),
            k.AskRebirth(""),
        ]
    )
    speaking.out.send("pi-1", Kind.RESPONSE, {"what": "time", "nonce": "n", "at_ms": 1})
    assert speaking.link.sent == []
    speaking.out.release()
    assert speaking.told == [len(speaking.link.sent)], "who watches hears of it last"
    assert speaking.link.flushed >= 4
    first = speaking.heard()
    assert [message.kind for message in first] == [
        Kind.DELEGATE,
        Kind.COMMAND,
        Kind.RESPONSE,
        Kind.ACK,
    ]
    assert first[0].fields == {"dispatches": [b"1", b"3"]}
    assert first[3].fields == {"beat": 4, "settled": ["x", "y"]}
    assert next(message.fields for message in speaking.heard("pi-2")) == {"dispatches": [b"2"]}
    speaking.out.send("pi-1", Kind.COMMAND, {"do": "rebirth"})
    assert speaking.heard()[-1].fields == {"do": "rebirth"}, "nothing is held any more"


async def test_results_are_settled_together_a_moment_later(monkeypatch):
    monkeypatch.setattr(limits, "ACK_WAIT_MS", 0)
    speaking = Speaking()
    speaking.out.prepare([k.SendAck("pi-1", None, ("x",))])
    assert speaking.heard() == [], "its commit has not ended"
    speaking.out.release()
    speaking.out.prepare([k.SendAck("pi-1", None, ("y",))])
    speaking.out.release()
    assert speaking.heard() == [], "it waits for others"
    async with asyncio.timeout(5):
        while not speaking.heard():  # noqa: ASYNC110 - the timer is what is tested
            await asyncio.sleep(0)
    assert [message.fields["settled"] for message in speaking.heard()] == [["x", "y"]]


async def test_many_results_are_settled_at_once():
    speaking = Speaking()
    names = tuple(f"d{number}" for number in range(limits.ACK_GATHERED))
    speaking.out.prepare([k.SendAck("pi-1", None, names)])
    speaking.out.release()
    assert [len(message.fields["settled"]) for message in speaking.heard()] == [len(names)]


def test_delegates_keep_within_count_and_size():
    speaking = Speaking()
    small = [k.SendDispatch("pi-1", str(n), b"x") for n in range(limits.BATCH_DISPATCHES + 1)]
    large = [k.SendDispatch("pi-2", str(n), bytes(limits.BATCH_BYTES // 2 + 1)) for n in range(3)]
    speaking.out.prepare([*small, *large])
    speaking.out.release()
    assert [len(m.fields["dispatches"]) for m in speaking.heard()] == [limits.BATCH_DISPATCHES, 1]
    assert [len(m.fields["dispatches"]) for m in speaking.heard("pi-2")] == [1, 1, 1]


def test_what_the_link_refuses_is_counted_and_not_kept():
    speaking = Speaking()
    speaking.link.error = LinkError("link.down", "gone")
    speaking.out.prepare([k.SendDispatch("pi-1", "d", b"1"), k.SendCancel("pi-1", ("d",))])
    speaking.out.release()
    assert speaking.out.unsent == 2
    speaking.link.error = None
    speaking.out.release()
    assert speaking.link.sent == []


async def test_requests_are_answered_after_the_commit():
    speaking = Speaking()
    good, bad = speaking.out.expect("q-1"), speaking.out.expect("q-2")
    speaking.out.prepare(
        [
            k.Reply("q-1", "r-1"),
            k.Refuse("q-2", Fault("run.not_found", "no run")),
            k.Reply("q-3", 1),
        ]
    )
    assert not good.done()
    speaking.out.release()
    assert good.result() == ("r-1", 41)
    assert bad.exception().code == "run.not_found"
    lost = speaking.out.expect("q-4")
    speaking.out.fail_all(StoreError("store.failed", "disk"))
    assert lost.exception().code == "store.failed"


class Listening:
    """An inbound, and a node that speaks to it."""

    def __init__(self) -> None:
        self.clock, self.stream = ManualClock(), Stream()
        self.events: list[e.Event] = []
        self.births: list[tuple[str, str]] = []
        self.answers: list[tuple[str, Kind, dict[str, Any]]] = []
        self.beats: list[e.HeartbeatArrived] = []
        self.seals: list[tuple[str, bytes | None]] = []
        self.quiet: list[Any] = []
        self.waiting: list[tuple[topics.Topic, bytes]] = []
        self.readings: list[tuple[str, str, Any]] = []
        self.live = False
        opener = Opener(
            MESH, ME, lambda key_id, iss: NODE_KEY.verify_key if iss == "pi-1" else None
        )
        self.inbound = Inbound(opener, self.clock, self.stream, self)
        self.sealer = self.speaker(NODE_KEY)

    def speaker(self, key: SigningKey) -> Sealer:
        signer = Signer.of_key(key)
        sealer = Sealer(signer.sign, signer.key_id, MESH, "pi-1", Way.FROM)
        sealer.new_session(3, 1)
        return sealer

    def post(self, event: e.Event) -> None:
        self.events.append(event)

    def post_quiet(self, make_event: Any) -> None:
        self.quiet.append(make_event)

    def answer(self, node: str, kind: Kind, fields: dict[str, Any]) -> None:
        self.answers.append((node, kind, fields))

    def alias(self, node: str) -> str:
        return f"{node}-alias"

    def last_boot(self, node: str) -> int:
        return 0

    def asked(self, node: str, obeys: int) -> None: ...

    def is_live(self, node: str) -> bool:
        return self.live

    def born(self, node: str, fields: Any) -> None:
        self.births.append((node, fields["profile"]))

    def beat(self, event: e.HeartbeatArrived) -> None:
        self.beats.append(event)

    def witnessed(self, node: str, seal: bytes | None) -> None:
        self.seals.append((node, seal))

    def telemetry_came(self, topic: topics.Topic, payload: bytes) -> None:
        self.waiting.append((topic, payload))

    def measured(self, node: str, name: str, fields: Any, at_ms: int) -> None:
        self.readings.append((node, name, fields))

    def look(self) -> None:
        """At the telemetry that came."""
        for topic, payload in self.waiting:
            self.inbound.telemetry(topic, payload)

    def sealed(self, kind: Kind, fields: dict[str, Any], lifetime_ms: int = 60_000) -> bytes:
        return self.sealer.seal(kind, ME, fields, self.clock.now_ms(), lifetime_ms)

    def hear(self, kind: Kind, payload: bytes, channel: str = "") -> None:
        self.inbound.message(topics.from_node(MESH, "pi-1", kind, channel), payload)

    def say(self, kind: Kind, channel: str = "", **fields: Any) -> None:
        self.hear(kind, self.sealed(kind, fields), channel)


BIRTH = {
    "state": "online",
    "manifest": {"modules": {}},
    "facts": {"os": "linux"},
    "profile": "readonly",
    "heartbeat_ms": 2_000,
    "lost_ms": 6_000,
}


def test_births_wills_and_goodbyes_become_events():
    listening = Listening()
    listening.say(Kind.STATUS, **BIRTH)
    listening.hear(Kind.STATUS, listening.sealed(Kind.STATUS, {"state": "gone"}, 0))
    listening.say(Kind.STATUS, state="offline")
    born, gone, left = listening.events
    assert isinstance(born, e.NodeBirth)
    assert (born.node, born.alias, born.boot, born.session) == ("pi-1", "pi-1-alias", 3, 1)
    assert (type(gone), type(left)) == (e.NodeGone, e.NodeLeft)
    assert listening.stream.refused == {}


@pytest.mark.parametrize("change", [{"profile": "king"}, {"lost_ms": 2_000}, {"heartbeat_ms": 0}])
def test_a_birth_that_makes_no_sense_is_refused(change):
    listening = Listening()
    listening.say(Kind.STATUS, **{**BIRTH, **change})
    assert [type(event) for event in listening.events] == [e.EvidenceSeen]
    assert dict(listening.stream.refused) == {"message.invalid": 1}


def test_results_come_as_the_node_told_them():
    listening = Listening()
    good = {"id": "r/a/pi-1/1", "hash": b"h", "outcome": "completed", "duration_ms": 3, "result": 1}
    error = {"code": "driver.failed", "message": "no"}
    bad = {"id": "r/b/pi-1/1", "hash": b"h", "outcome": "failed", "duration_ms": 3, "error": error}
    listening.say(Kind.COMPLETE, results=[good, bad])
    listening.say(Kind.ACCEPT, dispatches=[["r/a/pi-1/1", b"h"]], started=["r/a/pi-1/1"])
    listening.say(Kind.REJECT, refusals=[{"id": "r/c/pi-1/1", **error}])
    results, accepted, rejected = listening.events
    assert results.results[0] == e.Result("r/a/pi-1/1", b"h", "completed", 3, 1, None)
    assert results.results[1].error == Fault("driver.failed", "no")
    assert (accepted.dispatches, accepted.started) == ((("r/a/pi-1/1", b"h"),), ("r/a/pi-1/1",))
    assert rejected.refusals == (("r/c/pi-1/1", Fault("driver.failed", "no")),)


def test_the_time_is_told_whatever_the_asker_s_clock_says():
    listening = Listening()
    asked = listening.sealer.seal(Kind.REQUEST, ME, {"what": "time", "nonce": "n"}, 5, 1)
    listening.hear(Kind.REQUEST, asked)
    now_ms = listening.clock.now_ms()
    told = {"what": "time", "nonce": "n", "at_ms": now_ms}
    assert listening.answers == [("pi-1", Kind.RESPONSE, told)]
    listening.say(Kind.REQUEST, what="inventory", nonce="n")
    assert dict(listening.stream.refused) == {"message.kind": 1}


def test_what_a_probe_says_to_the_broker_is_no_news():
    listening = Listening()
    for name, wanted in (("probe-a", 0), ("probe-b", 0), ("probe-c", 1)):
        listening.inbound.message(topics.from_node(MESH, name, Kind.ACCEPT), b"own")
        assert sum(listening.stream.refused.values()) == wanted
    assert listening.events == []


def test_heartbeats_are_verified_late_and_kept():
    listening = Listening()
    beat = {"beat": 9, "held": ["r/a/pi-1/1"], "health": {"load": 0.1}}
    listening.say(Kind.HEARTBEAT, **beat)
    forged = listening.speaker(PLAN_KEY).seal(Kind.HEARTBEAT, ME, beat, 0, 60_000)
    listening.hear(Kind.HEARTBEAT, forged)
    assert listening.beats == []
    first, second = [make() for make in listening.quiet]
    assert (first.beat, first.held, second) == (9, ("r/a/pi-1/1",), None)
    assert listening.beats == [first]
    assert listening.seals == [("pi-1", None)]
    assert dict(listening.stream.refused) == {"signature.invalid": 1}


def test_a_flood_of_heartbeats_drowns_nobody_but_its_own_node():
    listening = Listening()
    flood = bytes(limits.MESSAGE_BYTES)
    for _ in range(1_000):
        listening.hear(Kind.HEARTBEAT, flood)
    assert len(listening.quiet) == limits.HEARTBEATS_WAITING_NODE
    other = topics.from_node(MESH, "pi-2", Kind.HEARTBEAT)
    listening.inbound.message(other, b"")
    assert len(listening.quiet) == limits.HEARTBEATS_WAITING_NODE + 1
    for make in listening.quiet:
        assert make() is None
    listening.quiet.clear()
    listening.say(Kind.HEARTBEAT, beat=1, held=[], health={})
    assert [make().beat for make in listening.quiet] == [1]
    room = limits.HEARTBEATS_WAITING_BYTES // len(flood)
    for number in range(room + 50):
        listening.inbound.message(topics.from_node(MESH, f"n{number}", Kind.HEARTBEAT), flood)
    assert len(listening.quiet) == 1 + room


def test_beats_that_waited_long_here_are_no_silence_of_anybody():
    listening = Listening()
    for beat in range(1, 4):
        listening.say(Kind.HEARTBEAT, beat=beat, held=[], health={})
    listening.clock.advance(999)
    listening.quiet.pop(0)()
    assert listening.events == []
    listening.clock.advance(1)
    for make in listening.quiet:
        make()
    # once is enough for all of them
    assert listening.events == [e.StoodStill(listening.clock.now_ms(), "beats", 1_000)]


def test_what_the_broker_kept_of_nodes_needs_no_answer_for_all_are_asked():
    listening = Listening()
    listening.live = False
    old = listening.sealed(Kind.STATUS, {"state": "online"})
    listening.clock.advance(10 * limits.MESSAGE_EXPIRY_MS)
    topic = topics.from_node(MESH, "pi-1", Kind.STATUS)
    listening.inbound.message(topic, old, True)
    assert listening.answers == []
    listening.inbound.message(topic, old, False)
    assert listening.answers == [("pi-1", Kind.COMMAND, {"do": "rebirth"})]
    assert not listening.stream.refused


def test_what_is_not_believed_is_counted_by_code_and_shown():
    listening = Listening()
    watching = listening.stream.subscribe()
    completed = listening.sealed(Kind.COMPLETE, {"results": [{"id": 1}]})
    listening.hear(Kind.COMPLETE, completed)
    listening.hear(Kind.ACCEPT, b"")
    listening.hear(Kind.ACCEPT, bytes(limits.MESSAGE_BYTES + 1))
    listening.hear(Kind.REJECT, completed)
    listening.inbound.message("imlmesh/1/home/from/pi-1/shout", b"")
    listening.inbound.message(
        "imlmesh/1/home/from/pi-2/accept", pack([1, "accept", bytes(8), b"", bytes(64)])
    )
    again = listening.sealed(Kind.COMPLETE, {"results": [_result()]})
    listening.hear(Kind.COMPLETE, again)
    listening.hear(Kind.COMPLETE, again)
    assert dict(listening.stream.refused) == {
        "message.invalid": 2,
        "message.too_large": 1,
        "message.kind": 2,
        "signature.unknown_key": 1,
        "message.replayed": 1,
    }
    assert [type(event) for event in listening.events] == [e.EvidenceSeen, e.ResultsArrived]
    assert len(watching._items) == 7


def _result() -> dict[str, Any]:
    return {"id": "r/a/pi-1/1", "hash": b"h", "outcome": "completed", "duration_ms": 1}


def test_an_old_status_is_a_hint_and_asks_for_a_birth():
    listening = Listening()
    old = listening.sealed(Kind.STATUS, BIRTH, 1)
    listening.clock.advance(1_000)
    listening.hear(Kind.STATUS, old)
    assert listening.answers == [("pi-1", Kind.COMMAND, {"do": "rebirth"})]
    listening.live = True
    listening.hear(Kind.STATUS, old)
    assert (len(listening.answers), listening.events) == (1, [])
    assert listening.stream.refused == {}


def test_log_lines_reach_watchers_of_their_run_alone():
    listening = Listening()
    mine, other = listening.stream.subscribe("r-1-x"), listening.stream.subscribe("r-2-x")
    listening.say(Kind.EVENT, "log", dispatch="r-1-x/a/pi-1/1", line="hello", stream="stdout")
    listening.say(Kind.EVENT, "progress", dispatch="r-1-x/a/pi-1/1", fraction=0.5, message="half")
    listening.say(Kind.EVENT, "log", dispatch="r-1-x/a/pi-9/1", line="not mine")
    assert [(item.kind, item.data["action"]) for item in mine._items] == [
        ("log", "a"),
        ("progress", "a"),
    ]
    assert not other._items
    assert [line["line"] for line in listening.stream.logs("r-1-x").lines] == ["hello"]
    assert dict(listening.stream.refused) == {"dispatch.unknown": 1}


def test_what_a_node_refused_is_shown_and_only_known_codes_count():
    listening = Listening()
    everything = listening.stream.subscribe(None)
    values = {"signature.invalid": 3, "made.up": 1, "message.kind": "many"}
    listening.say(Kind.EVENT, "telemetry/refusals", values=values)
    listening.look()
    assert [(item.kind, item.data["node"], item.data["code"]) for item in everything._items] == [
        ("refusal", "pi-1", "signature.invalid")
    ]
    assert dict(listening.stream.refused) == {"signature.invalid": 1}


def test_what_a_source_saw_reaches_watchers():
    listening = Listening()
    everything, of_a_run = listening.stream.subscribe(), listening.stream.subscribe("r-1-x")
    listening.say(Kind.EVENT, "source/gpio-4", values={"pin": 4, "edge": "rising"})
    [item] = everything._items
    assert item.kind == "source"
    assert (item.data["node"], item.data["source"]) == ("pi-1", "gpio-4")
    assert item.data["values"] == {"pin": 4, "edge": "rising"}
    assert not of_a_run._items


@pytest.mark.parametrize(
    "values",
    [
        {"deep": {"a": 1}},
        {"text": "x" * (limits.SOURCE_TEXT_CHARS + 1)},
        {str(number): number for number in range(limits.SOURCE_VALUES + 1)},
    ],
)
def test_a_source_that_says_too_much_is_refused(values):
    listening = Listening()
    everything = listening.stream.subscribe()
    listening.say(Kind.EVENT, "source/gpio-4", values=values)
    assert [item.kind for item in everything._items] == ["refusal"]
    assert dict(listening.stream.refused) == {"message.invalid": 1}


def test_telemetry_waits_until_it_is_looked_at():
    listening = Listening()
    readings = {"iot.soil": [[5, 6], [1, 2.5]]}
    listening.say(Kind.EVENT, "telemetry/iot", readings=readings, units={"iot.soil": "%"})
    # what is sent later at QoS 0 and looked at earlier is not held against it
    listening.say(Kind.EVENT, "log", dispatch="r/a/pi-1/1", line="hello")
    assert listening.readings == []
    listening.look()
    fields = {"readings": readings, "units": {"iot.soil": "%"}}
    assert listening.readings == [("pi-1", "iot", fields)]
    assert listening.stream.refused == {}
    listening.look()
    assert dict(listening.stream.refused) == {"message.replayed": 1}


@pytest.mark.parametrize(
    "readings",
    [
        {"iot.soil": [[5], ["hot"]]},
        {"iot.soil": [[5], [True]]},
        {"iot.soil": [[5], [None]]},
        {"iot.soil": [[5.5], [1]]},
        {"iot.soil": [[5], [1, 2]]},
        {"iot.soil": [[], []]},
        {"iot.soil": [[5], [math.nan]]},
        {"iot.soil": [[5], [math.inf]]},
        {"iot.soil": 7},
        {"iot.soil": [5, 1]},
        ["iot.soil"],
    ],
)
def test_what_is_no_reading_is_refused_and_shown(readings):
    listening = Listening()
    watching = listening.stream.subscribe()
    listening.say(Kind.EVENT, "telemetry/iot", readings=readings)
    listening.say(Kind.EVENT, "telemetry/iot", readings={"iot.soil": [[5], [1]]})
    listening.look()
    assert dict(listening.stream.refused) == {"message.invalid": 1}
    (shown,) = watching._items
    assert shown.kind == "refusal"
    assert shown.data["topic"].endswith("/from/pi-1/event/telemetry/iot")
    assert len(listening.readings) == 1, "the next message counts"


def test_nobody_measures_in_the_name_of_another():
    listening = Listening()
    sealed = listening.sealed(Kind.EVENT, {"readings": {"iot.soil": [[5], [1]]}})
    foreign = topics.from_node(MESH, "pi-2", Kind.EVENT, "telemetry/iot")
    listening.inbound.message(foreign, sealed)
    listening.say(Kind.EVENT, "telemetry/iot")
    listening.hear(Kind.EVENT, sealed, "source/iot")
    listening.look()
    assert listening.readings == []
    assert dict(listening.stream.refused) == {"signature.unknown_key": 1, "message.invalid": 1}


async def test_a_slow_watcher_is_told_and_bounded():
    stream = Stream()
    slow = stream.subscribe()
    for number in range(limits.EVENT_QUEUE + 5):
        stream.heartbeat({"beat": number})
    assert slow.lagged
    assert len(await slow.take()) == limits.EVENT_QUEUE
    assert await slow.take() == []
    stream.unsubscribe(slow)
    for _ in range(limits.EVENT_SUBSCRIBERS):
        stream.subscribe()
    with pytest.raises(StoreError):
        stream.subscribe()


def test_logs_and_refusals_are_bounded():
    stream = Stream()
    watching = stream.subscribe()
    for number in range(limits.RUN_LOG_LINES + 3):
        line = {"at_ms": 1, "action": "a", "node": "n", "stream": "log", "line": str(number)}
        stream.log_line("r-1-x", line)
    kept = stream.logs("r-1-x")
    assert (len(kept.lines), kept.dropped, kept.lines[0]["line"]) == (limits.RUN_LOG_LINES, 3, "3")
    assert [line["n"] for line in kept.lines[:2]] == [4, 5]
    for _ in range(limits.REFUSALS_PER_S + 7):
        stream.refusal(5_000, {"node": "n"}, "message.invalid", "no")
    shown = [i for i in watching._items if isinstance(i, Notice) and i.kind == "refusal"]
    assert len(shown) == limits.REFUSALS_PER_S
    assert stream.refused["message.invalid"] == limits.REFUSALS_PER_S + 7


def test_few_lines_of_one_action_outlive_thousands_of_another():
    stream = Stream()
    for action, count in (("few", 5), ("many", limits.RUN_LOG_LINES), ("late", 5)):
        for _ in range(count):
            line = {"at_ms": 1, "action": action, "node": "n", "stream": "log", "line": ""}
            stream.log_line("r-1-x", line)
    kept = stream.logs("r-1-x")
    assert kept.dropped == 10
    assert Counter(line["action"] for line in kept.lines) == {
        "few": 5,
        "many": limits.RUN_LOG_LINES - 10,
        "late": 5,
    }
    assert [line["n"] for line in kept.lines] == sorted(line["n"] for line in kept.lines)


def test_a_run_that_still_writes_keeps_its_lines_while_many_others_begin():
    stream = Stream()
    line = {"at_ms": 1, "action": "a", "node": "n", "stream": "log", "line": ""}
    stream.log_line("r-0-x", line)
    stream.log_line("r-0-silent", line)
    for number in range(1, limits.RUN_LOGS):
        stream.log_line(f"r-{number}-x", line)
        stream.log_line("r-0-x", line)
    assert len(stream.logs("r-0-x").lines) == limits.RUN_LOGS
    assert stream.logs("r-0-silent").lines == []


def test_more_actions_than_lines_are_kept_have_the_latest_lines():
    stream = Stream()
    for number in range(limits.RUN_LOG_LINES + 2):
        line = {"at_ms": 1, "action": f"a{number}", "node": "n", "stream": "log", "line": ""}
        stream.log_line("r-1-x", line)
    kept = stream.logs("r-1-x")
    assert [line["action"] for line in kept.lines[:1]] == ["a2"]
    assert (len(kept.lines), kept.dropped) == (limits.RUN_LOG_LINES, 2)


@pytest.mark.parametrize("kind", [Kind.DELEGATE, Kind.RESPONSE, Kind.REQUEST])
def test_only_what_nodes_may_write_is_heard(kind):
    listening = Listening()
    signer = Signer.of_key(NODE_KEY)
    down = Sealer(signer.sign, signer.key_id, MESH, "pi-9", Way.TO)
    down.new_session(3, 1)
    fields = {
        Kind.DELEGATE: {"dispatches": [b"x"]},
        Kind.RESPONSE: {"what": "inventory", "nonce": "n"},
        Kind.REQUEST: {"what": "time", "nonce": "n"},
    }[kind]
    payload = down.seal(kind, ME, fields, listening.clock.now_ms(), 60_000)
    listening.inbound.message(topics.to_node(MESH, "pi-1", kind), payload)
    assert (listening.events, listening.answers) == ([], [])
    assert dict(listening.stream.refused) == {"message.kind": 1}


def test_what_is_kept_of_a_node_s_words_is_bounded():
    listening = Listening()
    watching = listening.stream.subscribe()
    name, long = "r-1-x/a/pi-1/1", "x" * 100_000
    listening.say(Kind.EVENT, "log", dispatch=name, line=long)
    listening.say(Kind.EVENT, "progress", dispatch=name, message=long)
    listening.say(Kind.EVENT, "log", dispatch="r-1-x/a/pi-1/²", line="hello")
    assert len(listening.stream.logs("r-1-x").lines[0]["line"]) == limits.LOG_LINE_BYTES
    _, progress, refusal = watching._items
    assert (len(progress.data["message"]), refusal.kind) == (limits.PROGRESS_CHARS, "refusal")


def test_refusals_count_against_who_provably_sent_them_and_nobody_else():
    listening = Listening()
    listening.say(Kind.COMPLETE, results=[{"id": 1}])
    listening.say(Kind.STATUS, **{**BIRTH, "profile": "king"})
    listening.hear(Kind.COMPLETE, b"garbage")
    listening.inbound.message(topics.from_node(MESH, "pi-1", Kind.COMPLETE), b"", True)
    again = listening.sealed(Kind.COMPLETE, {"results": [_result()]})
    listening.hear(Kind.COMPLETE, again)
    listening.hear(Kind.COMPLETE, again)
    sent = listening.stream.refused_of("pi-1")["sent"]
    assert sent == {"message.invalid": 2}
    assert dict(listening.stream.refused) == {
        "message.invalid": 3,
        "message.retained": 1,
        "message.replayed": 1,
    }


def test_what_a_node_refused_is_kept_as_it_says_and_shown_when_it_changed():
    listening = Listening()
    watching = listening.stream.subscribe()
    for counts in (
        {"message.retained": 2, "signature.invalid": 1, "no.such.code": 5, "message.epoch": "x"},
        {"message.retained": 4, "signature.invalid": 1},
    ):
        listening.say(Kind.EVENT, topics.REFUSALS, values=counts)
    listening.look()
    known = {"message.retained": 4, "signature.invalid": 1}
    assert listening.stream.refused_of("pi-1") == {"sent": {}, "received": known}
    assert listening.stream.refused_of("pi-2") == {"sent": {}, "received": {}}
    shown = [(item.data["node"], item.data["code"]) for item in watching._items]
    assert shown == [
        ("pi-1", "message.retained"),
        ("pi-1", "signature.invalid"),
        ("pi-1", "message.retained"),
    ]
