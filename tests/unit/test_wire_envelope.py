"""Envelopes: what was signed is believed once, by whom it was meant for, in time."""

from typing import Any

import msgpack
import pytest
from nacl.signing import SigningKey, VerifyKey

from imlmesh_protocol.errors import MeshError
from imlmesh_protocol.limits import MESSAGE_BYTES
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import EVERYBODY, Opener, Sealer
from imlmesh_protocol.wire.topics import Kind, Way

KEY_ID = b"12345678"
NOW_MS = 1_000_000
LIFE_MS = 60_000
UP = topics.parse(topics.from_node("home", "pi", Kind.COMPLETE))
BEAT = topics.parse(topics.from_node("home", "pi", Kind.HEARTBEAT))
STATUS = topics.parse(topics.from_node("home", "pi", Kind.STATUS))
DOWN = topics.parse(topics.to_node("home", "pi", Kind.ACK))
RESULTS = {
    "results": [
        {"id": "r/a/pi/1", "hash": b"h" * 32, "outcome": "completed", "duration_ms": 1, "result": 1}
    ]
}
HEARTBEAT: dict[str, Any] = {"beat": 1, "held": [], "health": {}}


class Ends:
    """A node that writes and an orchestrator that reads; `key` is the node's."""

    def __init__(self, *, iss: str = "pi", mesh: str = "home") -> None:
        self.key = SigningKey.generate()
        self.sealer = Sealer(
            lambda data: self.key.sign(data).signature, KEY_ID, mesh, iss, Way.FROM
        )
        self.sealer.new_session(1, 1)
        self.opener = Opener("home", "main", self.find)

    def find(self, key_id: bytes, iss: str) -> VerifyKey | None:
        return self.key.verify_key if (key_id, iss) == (KEY_ID, "pi") else None

    def seal(self, kind: Kind = Kind.COMPLETE, fields: Any = RESULTS, **more: Any) -> bytes:
        return self.sealer.seal(
            kind,
            more.get("aud", "main"),
            fields,
            more.get("at_ms", NOW_MS),
            more.get("life_ms", LIFE_MS),
        )

    def refused(self, topic: topics.Topic, data: bytes, now_ms: int | None = NOW_MS) -> str:
        with pytest.raises(MeshError) as caught:
            self.opener.open(topic, data, now_ms)
        return caught.value.code


def test_a_sealed_message_is_opened() -> None:
    ends = Ends()
    message = ends.opener.open(UP, ends.seal(), NOW_MS)
    assert (message.iss, message.term, message.session, message.seq) == ("pi", 1, 1, 1)
    assert message.fields == RESULTS
    assert message.id == "pi.1.1.1"


def test_every_flipped_bit_is_refused() -> None:
    ends = Ends()
    sealed = ends.seal()
    for place in range(len(sealed)):
        broken = bytearray(sealed)
        broken[place] ^= 1
        assert ends.refused(UP, bytes(broken)).split(".")[0] in ("message", "signature")
    assert ends.opener.open(UP, sealed, NOW_MS).seq == 1


def test_another_key_is_refused() -> None:
    ends, stranger = Ends(), Ends()
    assert ends.refused(UP, stranger.seal()) == "signature.invalid"


def test_an_unknown_key_is_refused() -> None:
    ends = Ends()
    other = topics.parse(topics.from_node("home", "pj", Kind.COMPLETE))
    assert ends.refused(other, ends.seal()) == "signature.unknown_key"


def test_writing_as_another_is_refused() -> None:
    ends = Ends(iss="pj")
    assert ends.refused(UP, ends.seal()) == "signature.invalid"


def test_a_message_seen_before_is_refused() -> None:
    ends = Ends()
    sealed = ends.seal()
    ends.opener.open(UP, sealed, NOW_MS)
    assert ends.refused(UP, sealed) == "message.replayed"


def test_an_overtaken_message_is_refused() -> None:
    ends = Ends()
    first, second = ends.seal(), ends.seal()
    ends.opener.open(UP, second, NOW_MS)
    assert ends.refused(UP, first) == "message.replayed"


def test_heartbeats_may_be_opened_behind_later_results() -> None:
    ends = Ends()
    beat = ends.seal(Kind.HEARTBEAT, HEARTBEAT)
    ends.opener.open(UP, ends.seal(), NOW_MS)
    assert ends.opener.open(BEAT, beat, NOW_MS).fields["beat"] == 1
    assert ends.refused(BEAT, beat) == "message.replayed"


def test_a_log_line_that_overtakes_a_result_does_not_void_it() -> None:
    ends = Ends()
    result = ends.seal()
    line = ends.seal(Kind.EVENT, {"line": "quick", "stream": "log"})
    log = topics.parse(topics.from_node("home", "pi", Kind.EVENT, "log"))
    ends.opener.open(log, line, NOW_MS)
    assert ends.opener.open(UP, result, NOW_MS).fields == RESULTS


def test_an_old_session_is_refused_after_a_newer_one() -> None:
    ends = Ends()
    old = ends.seal()
    ends.sealer.new_session(1, 2)
    ends.opener.open(UP, ends.seal(), NOW_MS)
    assert ends.refused(UP, old) == "message.replayed"


@pytest.mark.parametrize(
    ("now_ms", "fits"), [(NOW_MS + LIFE_MS, True), (NOW_MS + LIFE_MS + 1, False)]
)
def test_expiry_is_kept_to_the_millisecond(now_ms: int, fits: bool) -> None:
    ends = Ends()
    sealed = ends.seal()
    if fits:
        assert ends.opener.open(UP, sealed, now_ms).seq == 1
    else:
        assert ends.refused(UP, sealed, now_ms) == "message.expired"


def test_a_message_from_the_future_is_refused() -> None:
    ends = Ends()
    assert ends.refused(UP, ends.seal(at_ms=NOW_MS + 60_000)) == "message.expired"


def test_first_contact_has_no_age() -> None:
    ends = Ends()
    assert ends.opener.open(UP, ends.seal(at_ms=5), None).iat == 5


def test_only_a_will_lives_for_ever() -> None:
    ends = Ends()
    assert ends.refused(UP, ends.seal(life_ms=0)) == "message.invalid"
    will = ends.seal(Kind.STATUS, {"state": "gone"}, life_ms=0)
    assert ends.opener.open(STATUS, will, NOW_MS + 10**9).fields["state"] == "gone"


@pytest.mark.parametrize("aud", ["pj", "", "mainx"])
def test_a_message_for_another_is_refused(aud: str) -> None:
    ends = Ends()
    assert ends.refused(UP, ends.seal(aud=aud)) == "message.audience"


def test_a_message_of_another_mesh_is_refused() -> None:
    ends = Ends(mesh="away")
    assert ends.refused(UP, ends.seal()) == "message.audience"


def test_a_kind_on_the_topic_of_another_is_refused() -> None:
    ends = Ends()
    assert ends.refused(BEAT, ends.seal()) == "message.kind"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"results": []},
        {"results": [{"id": 1}]},
        {**RESULTS, "extra": 1},
        {"results": [{**RESULTS["results"][0], "outcome": "perhaps"}]},
        {"results": [{**RESULTS["results"][0], "outcome": "failed"}]},
        {"results": [{**RESULTS["results"][0], "hash": "text"}]},
    ],
)
def test_a_body_that_is_not_of_its_kind_is_refused(fields: dict[str, Any]) -> None:
    ends = Ends()
    assert ends.refused(UP, ends.seal(fields=fields)) == "message.invalid"


@pytest.mark.parametrize("data", [b"", b"\xc0", msgpack.packb([2, "complete", KEY_ID, b"", b""])])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    assert Ends().refused(UP, data) == "message.invalid"


def test_an_oversized_envelope_is_neither_made_nor_read() -> None:
    ends = Ends()
    big = {"results": [{**RESULTS["results"][0], "result": "x" * MESSAGE_BYTES}]}
    with pytest.raises(MeshError) as caught:
        ends.seal(fields=big)
    assert caught.value.code == "message.too_large"
    assert ends.refused(UP, b"\x00" * (MESSAGE_BYTES + 1)) == "message.too_large"


def test_an_orchestrator_signs_with_its_epoch() -> None:
    key = SigningKey.generate()
    sealer = Sealer(lambda data: key.sign(data).signature, KEY_ID, "home", "main", Way.TO)
    sealer.new_session(7, 0)
    opener = Opener("home", "pi", lambda key_id, name: key.verify_key)
    sealed = sealer.seal(Kind.ACK, "pi", {"beat": None, "settled": ["x"]}, NOW_MS, LIFE_MS)
    message = opener.open(DOWN, sealed, NOW_MS)
    assert (message.term, message.session) == (7, 0)


def down(*, epoch: int = 7, aud: str = "pi", topic: topics.Topic = DOWN) -> str:
    """How a node that has met epoch 7 takes an ack: ok, or the code."""
    key = SigningKey.generate()
    sealer = Sealer(lambda data: key.sign(data).signature, KEY_ID, "home", "main", Way.TO)
    sealer.new_session(epoch, 0)
    opener = Opener("home", "pi", lambda key_id, name: key.verify_key)
    opener.floors["main", ""] = (7, 0, 0)
    sealed = sealer.seal(Kind.ACK, aud, {"beat": None, "settled": []}, NOW_MS, LIFE_MS)
    try:
        opener.open(topic, sealed, NOW_MS)
    except MeshError as exc:
        return exc.code
    return "ok"


@pytest.mark.parametrize(("epoch", "code"), [(6, "message.epoch"), (7, "ok"), (8, "ok")])
def test_an_older_epoch_has_a_code_of_its_own(epoch: int, code: str) -> None:
    assert down(epoch=epoch) == code


def test_only_topics_of_the_reader_are_read_whatever_a_broker_brings() -> None:
    other = topics.parse(topics.to_node("home", "pj", Kind.ACK))
    away = topics.parse(topics.to_node("away", "pi", Kind.ACK))
    assert [down(topic=topic) for topic in (other, away)] == ["message.audience"] * 2


def test_what_is_for_one_is_not_for_all_and_the_other_way_round() -> None:
    assert down(aud=EVERYBODY) == "message.audience"


@pytest.mark.parametrize("life_ms", [LIFE_MS + 1, 10**9, -1])
def test_no_message_lives_longer_than_messages_do(life_ms: int) -> None:
    ends = Ends()
    assert ends.refused(UP, ends.seal(life_ms=life_ms)) == "message.expired"
    assert ends.refused(UP, ends.seal(life_ms=life_ms), None) == "message.expired"


def test_a_fault_of_the_sender_s_own_names_it_and_what_others_can_bring_does_not() -> None:
    ends = Ends()
    blamed = []
    malformed = ends.seal(fields={"results": []})
    for data in (malformed, malformed, ends.seal(aud="pj"), ends.seal(at_ms=5), b""):
        with pytest.raises(MeshError) as caught:
            ends.opener.open(UP, data, NOW_MS)
        blamed.append((caught.value.code, caught.value.sender))
    assert blamed == [
        ("message.invalid", "pi"),
        ("message.replayed", ""),
        ("message.audience", ""),
        ("message.expired", ""),
        ("message.invalid", ""),
    ]


@pytest.mark.parametrize("body_bytes", [0, 1, 255, 256, 65_535, 65_536, MESSAGE_BYTES - 400])
def test_bodies_of_every_size_are_cut_out_whole(body_bytes: int) -> None:
    ends = Ends()
    result = {**RESULTS["results"][0], "result": "x" * body_bytes}
    opened = ends.opener.open(UP, ends.seal(fields={"results": [result]}), NOW_MS)
    assert opened.fields["results"][0]["result"] == "x" * body_bytes
