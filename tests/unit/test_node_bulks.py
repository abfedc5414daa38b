"""Large results leave the node's core chunk by chunk, and never hold up small ones."""

import hashlib

from imlmesh_node.core import commands, events
from imlmesh_node.core.agent import Agent
from imlmesh_node.core.bulks import Bulks
from imlmesh_node.core.commands import SendChunk, SendComplete, SendReject
from imlmesh_node.core.config import AgentConfig
from imlmesh_protocol.limits import (
    CHUNK_RESEND_MS,
    NODE_UNSETTLED_BYTES,
    RESULT_BYTES,
    RESULT_CHUNK_BYTES,
)
from imlmesh_protocol.states import Effect
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.dispatches import Dispatch

LARGE = b"x" * (2 * RESULT_CHUNK_BYTES + 1)


def test_one_chunk_is_under_way_at_a_time() -> None:
    bulks = Bulks()
    bulks.add("a", 10)
    bulks.add("b", 20)
    assert (bulks.size, bulks.due(0), bulks.due(1)) == (30, ("a", 0), None)
    bulks.wanted("a", 1)
    assert (bulks.due(2), bulks.due(3)) == (("a", 1), None)
    bulks.forget("a")
    assert (bulks.size, bulks.due(4)) == (20, ("b", 0))
    bulks.forget("b")
    assert (len(bulks), bulks.size, bulks.due(5)) == (0, 0, None)


def test_what_nobody_answers_lets_others_go_first() -> None:
    bulks = Bulks()
    bulks.add("a", 10)
    bulks.add("b", 20)
    assert bulks.due(0) == ("a", 0)
    assert bulks.due(CHUNK_RESEND_MS) == ("b", 0)
    bulks.wanted("a", 2)  # too late: b is under way
    assert bulks.due(CHUNK_RESEND_MS + 1) is None
    assert bulks.due(2 * CHUNK_RESEND_MS) == ("a", 0)


def test_a_new_session_goes_on_where_the_last_answer_was() -> None:
    bulks = Bulks()
    bulks.add("a", 10)
    bulks.due(0)
    bulks.wanted("a", 7)
    bulks.due(1)
    bulks.restart()
    assert bulks.due(2) == ("a", 7)


class Rig:
    """An agent with a session; `asked` is what it wanted last."""

    def __init__(self) -> None:
        self.agent = Agent(AgentConfig(2_000))
        self.at_ms = 0
        self.seq = 0
        self.asked: list[commands.Command] = []
        self.tell(events.SessionOpened(0, 1, 1))

    def tell(self, event: events.Event) -> list[commands.Command]:
        self.asked = self.agent.handle(event)[1]
        return self.asked

    def delegate(self, *numbers: int) -> None:
        self.seq += 1
        dispatches = tuple(events.Arrival(dispatch(n), b"h") for n in numbers)
        self.tell(events.DelegateArrived(self.at_ms, dispatches, 1, self.seq))

    def end(self, number: int, packed: bytes = b"") -> list[commands.Command]:
        event = events.DriverFinished(self.at_ms, dispatch(number).id, "completed", packed=packed)
        return self.tell(event)

    def ack(self, *settled: int, wants: tuple[tuple[int, int], ...] = ()) -> list[commands.Command]:
        self.seq += 1
        pairs = tuple((dispatch(number).id, index) for number, index in wants)
        ids = tuple(dispatch(number).id for number in settled)
        return self.tell(events.AckArrived(self.at_ms, None, ids, 1, self.seq, wants=pairs))


def dispatch(number: int) -> Dispatch:
    return Dispatch(f"r/a{number}/pi/1", "m", "a", {}, Effect.ONCE, 60_000, 6_000, "finish")


def chunks(asked: list[commands.Command]) -> list[tuple[str, int]]:
    return [(c.result.dispatch, c.index) for c in asked if isinstance(c, SendChunk)]


def test_a_large_result_is_named_by_its_hash_and_sent_as_it_is_wanted() -> None:
    rig = Rig()
    rig.delegate(1, 2)
    asked = rig.end(1, LARGE)
    result = rig.agent.state.records[dispatch(1).id].result
    assert result is not None
    assert result.bulk is not None
    assert (result.result, result.bulk.chunks) == (None, 3)
    assert result.bulk.sha256 == hashlib.sha256(LARGE).digest()
    assert chunks(asked) == [("r/a1/pi/1", 0)]
    # a small one goes past it
    small = [c for c in rig.end(2) if isinstance(c, SendComplete)]
    assert [r.dispatch for c in small for r in c.results] == ["r/a2/pi/1"]
    assert chunks(rig.ack(wants=((1, 1),))) == [("r/a1/pi/1", 1)]
    assert chunks(rig.ack(2, wants=((1, 2),))) == [("r/a1/pi/1", 2)]
    assert chunks(rig.ack(1)) == []
    assert rig.agent.unsettled_ids() == ()


def test_after_silence_and_in_a_new_session_it_comes_again() -> None:
    rig = Rig()
    rig.delegate(1)
    rig.end(1, LARGE)
    rig.ack(wants=((1, 1),))
    assert chunks(rig.tell(Tick(CHUNK_RESEND_MS - 1))) == []
    assert chunks(rig.tell(Tick(CHUNK_RESEND_MS))) == [("r/a1/pi/1", 1)]
    rig.tell(events.SessionClosed(CHUNK_RESEND_MS + 1, "cut"))
    assert chunks(rig.tell(Tick(9 * CHUNK_RESEND_MS))) == []
    opened = events.SessionOpened(9 * CHUNK_RESEND_MS, 2, 1)
    assert chunks(rig.tell(opened)) == [("r/a1/pi/1", 1)]


def test_an_agent_that_starts_again_sends_what_its_journal_holds() -> None:
    rig = Rig()
    rig.delegate(1)
    rig.end(1, LARGE)
    agent = Agent(AgentConfig(2_000), list(rig.agent.state.records.values()))
    _, asked = agent.handle(events.SessionOpened(1, 1, 1))
    assert chunks(asked) == [("r/a1/pi/1", 0)]


def test_so_many_bytes_nobody_settled_make_a_node_full() -> None:
    rig = Rig()
    count = NODE_UNSETTLED_BYTES // RESULT_BYTES
    for number in range(count):
        rig.delegate(number)
        rig.end(number, b"x" * RESULT_BYTES)
    rig.delegate(count)
    (reject,) = [c for c in rig.asked if isinstance(c, SendReject)]
    assert reject.refusals[0][1].code == "node.full"
    rig.ack(0)
    rig.delegate(count + 1)
    assert not [c for c in rig.asked if isinstance(c, SendReject)]
