"""Time requests that come out of order: answered, and believed in nothing else."""

from typing import Any

from nacl.signing import SigningKey

from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.inbound import Inbound
from imlmesh_orchestrator.stream import Stream
from imlmesh_protocol import limits
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import Opener, Sealer
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.clock import ManualClock

KEY = SigningKey(b"n" * 32)
KEY_ID = b"12345678"


class Asked:
    """An inbound that took a message of boot 9, session 4, and what it answers and posts."""

    def __init__(self, stored: int = 0) -> None:
        self.clock, self.stream, self.stored = ManualClock(), Stream(), stored
        self.answers: list[dict[str, Any]] = []
        self.events: list[e.Event] = []
        self.obeys: list[int] = []
        opener = Opener("home", "main", lambda _id, iss: KEY.verify_key if iss == "pi" else None)
        self.inbound = Inbound(opener, self.clock, self.stream, self)  # type: ignore[arg-type]
        self.ask(9, 4)

    def post(self, event: e.Event) -> None:
        self.events.append(event)

    def answer(self, node: str, kind: Kind, fields: dict[str, Any]) -> None:
        assert (node, kind) == ("pi", Kind.RESPONSE)
        self.answers.append(fields)

    def last_boot(self, node: str) -> int:
        return self.stored

    def asked(self, node: str, obeys: int) -> None:
        assert node == "pi"
        self.obeys.append(obeys)

    def sealed(
        self, boot: int, session: int, kind: Kind, fields: dict[str, Any], late_ms: int = 0
    ) -> bytes:
        sealer = Sealer(lambda data: KEY.sign(data).signature, KEY_ID, "home", "pi", Way.FROM)
        sealer.new_session(boot, session)
        at_ms = self.clock.now_ms() + late_ms
        return sealer.seal(kind, "main", fields, at_ms, limits.MESSAGE_EXPIRY_MS)

    def hear(self, kind: Kind, payload: bytes) -> None:
        self.inbound.message(topics.from_node("home", "pi", kind), payload)

    def ask(self, boot: int, session: int, late_ms: int = 0, **fields: Any) -> None:
        fields = {"what": "time", "nonce": "n"} | fields
        self.hear(Kind.REQUEST, self.sealed(boot, session, Kind.REQUEST, fields, late_ms))


def test_who_forgot_its_boots_is_told_the_highest_that_was_taken():
    asked = Asked()
    assert "boot" not in asked.answers[0]
    asked.ask(2, 1)
    asked.ask(9, 4)
    assert [answer["boot"] for answer in asked.answers[1:]] == [9, 9]
    asked.ask(10, 1)
    assert "boot" not in asked.answers[3]
    assert dict(asked.stream.refused) == {"message.replayed": 2}


def test_after_a_restart_the_stored_boot_counts():
    asked = Asked(stored=12)
    assert asked.answers[0]["boot"] == 12
    asked.ask(2, 1)
    asked.ask(12, 5)
    assert asked.answers[1]["boot"] == 12
    assert "boot" not in asked.answers[2]


def test_a_later_start_is_told_which_one_was_born_last():
    asked = Asked(stored=8)
    asked.ask(9, 5)
    assert [answer["boot"] for answer in asked.answers] == [8, 8]
    asked.stored = 9
    asked.ask(9, 6)
    assert "boot" not in asked.answers[2]


def test_nothing_else_that_is_out_of_order_is_heard():
    asked = Asked()
    for kind, fields in (
        (Kind.ACCEPT, {"dispatches": []}),
        (Kind.RESPONSE, {"what": "inventory", "nonce": "n"}),
    ):
        asked.hear(kind, asked.sealed(2, 1, kind, fields))
    asked.ask(2, 1, what="inventory")
    assert len(asked.answers) == 1
    assert asked.events == []
    assert dict(asked.stream.refused) == {"message.replayed": 3}


def test_a_late_question_moves_no_place():
    asked = Asked()
    asked.ask(2, 1)
    asked.hear(Kind.ACCEPT, asked.sealed(2, 2, Kind.ACCEPT, {"dispatches": []}))
    assert asked.events == []


def test_who_refused_an_older_epoch_says_which_one_it_obeys():
    asked = Asked()
    asked.ask(9, 5, obeys=70)
    asked.ask(9, 6)
    # out of order nothing is believed
    asked.ask(2, 1, obeys=71)
    assert asked.obeys == [0, 70, 0]


def test_a_second_machine_still_shows():
    asked = Asked()
    asked.ask(2, 1, late_ms=limits.TWO_SENDERS_MS + 1)
    asked.ask(2, 1, late_ms=limits.TWO_SENDERS_MS + 1)
    asked.ask(2, 2, late_ms=limits.TWO_SENDERS_MS + 1)
    seen = [event for event in asked.events if isinstance(event, e.EvidenceSeen)]
    assert [(event.kind, event.mark) for event in seen] == [
        ("takeover", "2.1"),
        ("takeover", "2.1"),
        ("takeover", "2.2"),
    ]


def test_repeated_questions_cost_a_bounded_number_of_answers():
    asked = Asked()
    for _ in range(200):
        asked.ask(2, 1)
    assert len(asked.answers) == 1 + limits.TIME_LATE_AT_ONCE
    asked.clock.advance(round(1_000 / limits.TIME_LATE_PER_S))
    asked.ask(2, 1)
    asked.ask(2, 1)
    assert len(asked.answers) == 2 + limits.TIME_LATE_AT_ONCE
    asked.ask(10, 1)
    assert "boot" not in asked.answers[-1]


def test_a_question_that_is_not_signed_or_has_no_expiry_is_not_answered():
    asked = Asked()
    good = asked.sealed(2, 1, Kind.REQUEST, {"what": "time", "nonce": "n"})
    asked.hear(Kind.REQUEST, good[:-1] + bytes((good[-1] ^ 1,)))
    sealer = Sealer(lambda data: KEY.sign(data).signature, KEY_ID, "home", "pi", Way.FROM)
    asked.hear(
        Kind.REQUEST, sealer.seal(Kind.REQUEST, "main", {"what": "time", "nonce": "n"}, 1, 0)
    )
    assert len(asked.answers) == 1
    assert dict(asked.stream.refused) == {"signature.invalid": 1, "message.invalid": 1}
