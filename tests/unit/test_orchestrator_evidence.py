"""Which messages speak against the node that signed them, and which say nothing about anybody."""

from typing import Any

import pytest
from nacl.signing import SigningKey

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.register import Register
from imlmesh_protocol import limits
from imlmesh_protocol.errors import TrustError
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.topics import Kind
from scheduler_stage import Stage
from test_orchestrator_messages import ME, MESH, NODE_KEY, Listening

ACCEPT = {"dispatches": []}


def evidence(listening: Listening) -> list[tuple[str, str]]:
    seen = (event for event in listening.events if isinstance(event, e.EvidenceSeen))
    return [(event.kind, event.mark) for event in seen if event.node == "pi-1"]


def know_time(listening: Listening) -> None:
    listening.say(Kind.REQUEST, what="time", nonce="n")
    listening.clock.advance(limits.TIME_KNOWN_MS + 1)


def test_a_fresh_message_that_nobody_of_ours_sends_speaks_against_its_node():
    listening = Listening()
    listening.say(Kind.ACCEPT, dispatches=[], surprise=1)
    listening.say(Kind.REQUEST, what="inventory", nonce="n")
    listening.say(Kind.EVENT, "log", dispatch="r-1-abcd/a/pi-9/1", line="not mine")
    assert evidence(listening) == [("malformed", f"3.1.{seq}") for seq in (1, 2, 3)]


def test_sent_again_by_anybody_it_counts_once():
    listening = Listening()
    bad = listening.sealed(Kind.ACCEPT, {"dispatches": [], "surprise": 1})
    for _ in range(50):
        listening.hear(Kind.ACCEPT, bad)
    assert len(evidence(listening)) == 1


def test_what_others_can_cause_speaks_against_nobody():
    listening = Listening()
    know_time(listening)
    good = listening.sealed(Kind.ACCEPT, ACCEPT)
    late = listening.sealed(Kind.ACCEPT, ACCEPT)
    listening.hear(Kind.ACCEPT, good)
    for payload in (
        good,  # repeated
        good[:-1] + bytes([good[-1] ^ 1]),  # changed on the way
        listening.speaker(SigningKey.generate()).seal(Kind.ACCEPT, ME, ACCEPT, 0, 60_000),
        pack([1, "accept", bytes(8), b"", bytes(64)]),
        b"noise",
    ):
        listening.hear(Kind.ACCEPT, payload)
    listening.hear(Kind.REJECT, listening.sealed(Kind.ACCEPT, ACCEPT))
    listening.inbound.message(topics.from_node(MESH, "pi-1", Kind.ACCEPT), late, retained=True)
    listening.clock.advance(limits.MESSAGE_EXPIRY_MS + 1)
    listening.hear(Kind.ACCEPT, late)  # held back by a broker
    listening.inbound.message(topics.from_node(MESH, "pi-2", Kind.ACCEPT), good)
    assert not [event for event in listening.events if isinstance(event, e.EvidenceSeen)]
    assert sum(listening.stream.refused.values()) == 9, "all of it is counted"


def ahead(listening: Listening) -> None:
    at_ms = listening.clock.now_ms() + limits.CLOCK_TOLERANCE_MS + 1_000
    listening.hear(Kind.ACCEPT, listening.sealer.seal(Kind.ACCEPT, ME, ACCEPT, at_ms, 60_000))


def test_who_was_told_the_time_and_writes_from_the_future_does_not_follow_it():
    listening = Listening()
    ahead(listening)
    assert not evidence(listening), "nobody told it the time: the clock that went back may be ours"
    listening.say(Kind.REQUEST, what="time", nonce="n")
    ahead(listening)
    assert not evidence(listening), "it may have written this before the answer came"
    listening.clock.advance(limits.TIME_KNOWN_MS + 1)
    ahead(listening)
    assert not evidence(listening), "the answer may be lost"
    listening.say(Kind.ACCEPT, **ACCEPT)
    ahead(listening)
    assert [kind for kind, _ in evidence(listening)] == ["ahead"]


def speak_as_clone(listening: Listening, boot: int, session: int, many: int = 1) -> None:
    clone = listening.speaker(NODE_KEY)
    clone.new_session(boot, session)
    for _ in range(many):
        now_ms = listening.clock.now_ms()
        listening.hear(Kind.ACCEPT, clone.seal(Kind.ACCEPT, ME, ACCEPT, now_ms, 60_000))


def test_an_older_start_that_writes_later_is_a_second_machine_a_sighting_each_session():
    listening = Listening()
    for session in range(1, 4):
        listening.say(Kind.ACCEPT, **ACCEPT)
        listening.clock.advance(limits.TWO_SENDERS_MS + 1)
        speak_as_clone(listening, 2, session, many=5)
    assert {*evidence(listening)} == {("takeover", f"2.{session}") for session in (1, 2, 3)}
    assert listening.stream.refused == {"message.two_senders": 15}


def test_a_node_that_restarts_or_whose_clock_is_set_is_no_second_machine():
    listening = Listening()
    old = [listening.sealed(Kind.ACCEPT, ACCEPT) for _ in range(3)]
    listening.clock.advance(10_000)
    listening.sealer.new_session(4, 1)  # a new start of the agent
    listening.say(Kind.ACCEPT, **ACCEPT)
    for payload in old:
        listening.hear(Kind.ACCEPT, payload)  # a broker that kept them back
    now_ms = listening.clock.now_ms()
    for step_ms in (0, -1_000, 900, -limits.TWO_SENDERS_MS):
        sealed = listening.sealer.seal(Kind.ACCEPT, ME, ACCEPT, now_ms + step_ms, 60_000)
        listening.hear(Kind.ACCEPT, sealed)
        listening.hear(Kind.ACCEPT, sealed)  # a repeat of QoS 1
    assert not evidence(listening)


def test_what_a_broker_kept_back_while_the_node_started_with_a_clock_that_is_behind_blames_nobody():
    listening = Listening()
    kept = []
    for session in range(1, 4):
        listening.sealer.new_session(3, session)
        kept.append(listening.sealed(Kind.ACCEPT, ACCEPT))
        listening.clock.advance(10_000)
    listening.sealer.new_session(4, 1)
    asked = {"what": "time", "nonce": "n"}
    for behind_ms in (50 * 365 * 86_400_000, 20_000):
        iat_ms = max(0, listening.clock.now_ms() - behind_ms)
        sealed = listening.sealer.seal(Kind.REQUEST, ME, asked, iat_ms, 60_000)
        listening.hear(Kind.REQUEST, sealed)
        for payload in kept:
            listening.hear(Kind.ACCEPT, payload)
    assert listening.stream.refused == {"message.replayed": 6}
    assert not evidence(listening)


def test_a_status_that_was_cleared_at_the_broker_is_nothing():
    listening = Listening()
    listening.hear(Kind.STATUS, b"")
    assert not listening.stream.refused
    assert not listening.events


def test_the_signature_of_a_removed_node_counts_no_more():
    stage = Stage()
    key = NODE_KEY.verify_key
    told: dict[str, Any] = {"alias": "roof", "identity": bytes(key), "profile": "readonly"}
    stage.post(e.EnrolAsked, node="pi-1", by="eve", serial="7", not_after_ms=1 << 50, **told)
    register = Register(stage.state)
    assert tuple(map(stage.state.find_id, ("roof", "pi-1", "x"))) == (
        "pi-1",
        "pi-1",
        None,
    )
    key_id = Listening().speaker(NODE_KEY)._key_id
    assert register.find_key(key_id, "pi-1") == key
    asked = {"node": "pi-1", "reason": "stolen", "by": "eve"}
    stage.post(e.AdmissionAsked, admission=Admission.QUARANTINED, **asked)
    assert register.find_key(key_id, "pi-1") == key, "it may answer its probes"
    stage.post(e.AdmissionAsked, admission=Admission.REVOKED, **asked)
    with pytest.raises(TrustError) as caught:
        register.find_key(key_id, "pi-1")
    assert caught.value.code == "node.revoked"
