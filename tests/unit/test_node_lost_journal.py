"""An agent that began with a new journal in place of a lost one."""

from imlmesh_node.core import changes, commands, events
from imlmesh_node.core.agent import Agent
from imlmesh_node.core.config import AgentConfig
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.dispatches import Dispatch


def agent_of(*, lost: bool = True, forgot: bool = False) -> Agent:
    agent = Agent(AgentConfig(2_000, lost=lost))
    agent.handle(events.SessionOpened(0, 1, 1, forgot=forgot))
    return agent


def delegate(agent: Agent, seq: int, effect: Effect) -> list[commands.Command]:
    one = Dispatch(f"r/{effect}/pi/1", "m", "a", {}, effect, 60_000, 6_000, "finish")
    return agent.handle(events.DelegateArrived(0, (events.Arrival(one, b"h"),), 1, seq))[1]


def test_it_asks_for_a_person_in_every_session_until_a_beat_is_answered() -> None:
    agent = Agent(AgentConfig(2_000, lost=True))
    for session in (1, 2):
        asked = agent.handle(events.SessionOpened(0, session, 1))[1]
        kinds = [type(each) for each in asked]
        assert kinds == [commands.SendStatus, commands.Escalate, commands.SendHeartbeat]
        assert asked[1].fault.code == "journal.lost"  # type: ignore[union-attr]
        agent.handle(events.SessionClosed(0, "cut"))
    agent.handle(events.SessionOpened(0, 3, 1))
    decided, _ = agent.handle(events.AckArrived(0, 3, (), 1, 5))
    assert decided == [changes.LossTold()]
    asked = agent.handle(events.RebirthAsked(0))[1]
    assert commands.Escalate not in [type(each) for each in asked]
    assert agent.handle(events.AckArrived(0, 4, (), 1, 6))[0] == []


def test_until_then_it_is_silent_about_what_it_may_have_done_before() -> None:
    """A reject would say that it was never done, and send it to another node."""
    agent = agent_of()
    (refusal,) = delegate(agent, 1, Effect.ONCE)
    assert isinstance(refusal, commands.NoteRefusal)
    assert refusal.fault.code == "journal.lost"
    assert [type(c) for c in delegate(agent, 2, Effect.PHYSICAL)] == [commands.NoteRefusal]
    assert commands.RunDriver in [type(c) for c in delegate(agent, 3, Effect.IDEMPOTENT)]
    agent.handle(events.AckArrived(0, 1, (), 1, 4))
    assert commands.RunDriver in [type(c) for c in delegate(agent, 5, Effect.ONCE)]


def test_not_even_a_refusal_breaks_that_silence() -> None:
    agent = agent_of()
    one = Dispatch("r/a/pi/1", "m", "a", {}, Effect.ONCE, 60_000, 6_000, "finish")
    arrival = events.Arrival(one, b"h", Fault("journal.full", "no room"))
    asked = agent.handle(events.DelegateArrived(0, (arrival,), 1, 1))[1]
    assert [type(each) for each in asked] == [commands.NoteRefusal]


def test_nor_does_the_end_of_the_agent_or_what_it_cannot_read() -> None:
    agent = agent_of()
    delegate(agent, 1, Effect.IDEMPOTENT)  # it runs: no goodbye is said yet
    unread = (("r/b/pi/1", Fault("message.invalid", "no dispatch")),)
    assert agent.handle(events.DelegateArrived(0, (), 1, 2, "", unread))[1] == []
    agent.handle(events.ShutdownAsked(0, 60_000))
    assert delegate(agent, 3, Effect.ONCE) == []
    (reject,) = delegate(agent, 4, Effect.PURE)
    assert [id for id, _ in reject.refusals] == ["r/pure/pi/1"]  # type: ignore[union-attr]


def test_an_agent_that_lost_nothing_takes_everything_at_once() -> None:
    assert commands.RunDriver in [type(c) for c in delegate(agent_of(lost=False), 1, Effect.ONCE)]


def test_who_finds_no_journal_where_one_was_is_as_silent_and_asks_for_nobody() -> None:
    agent = agent_of(lost=False, forgot=True)
    (refusal,) = delegate(agent, 1, Effect.ONCE)
    assert isinstance(refusal, commands.NoteRefusal)
    assert [type(c) for c in delegate(agent, 2, Effect.PHYSICAL)] == [commands.NoteRefusal]
    assert commands.RunDriver in [type(c) for c in delegate(agent, 3, Effect.PURE)]
    asked = agent.handle(events.RebirthAsked(0))[1]
    assert commands.Escalate not in [type(each) for each in asked]
    # settled results are no word about the birth
    agent.handle(events.AckArrived(0, None, (), 1, 4))
    assert [type(c) for c in delegate(agent, 5, Effect.ONCE)] == [commands.NoteRefusal]
    decided, _ = agent.handle(events.AckArrived(0, 2, (), 1, 6))
    assert decided == []
    assert commands.RunDriver in [type(c) for c in delegate(agent, 7, Effect.ONCE)]


def test_each_session_says_it_anew() -> None:
    agent = agent_of(lost=False, forgot=True)
    agent.handle(events.SessionClosed(0, "cut"))
    agent.handle(events.SessionOpened(0, 2, 1))
    assert commands.RunDriver in [type(c) for c in delegate(agent, 1, Effect.ONCE)]
