"""Permits on a node, rule by rule: when a run begins, how it goes on, what it survives, when it is told."""

import copy
from dataclasses import replace
from typing import Any

import pytest

from imlmesh_node.core import changes as c
from imlmesh_node.core import commands as k
from imlmesh_node.core import events as e
from imlmesh_node.core.agent import Agent
from imlmesh_node.core.config import AgentConfig
from imlmesh_node.core.invariants import check
from imlmesh_node.core.state import AgentState, apply
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import PERMITS_NODE_KEPT
from imlmesh_protocol.permits import CUT_OFF, EVERY, ON, Filling, Permit, PermitAction, Rule
from imlmesh_protocol.states import Effect
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_protocol.wire.permits import unreadable_permit

BEAT_MS, LOST_MS = 2_000, 6_000
#: mesh time when a session opens at 0 ms of the node's own
MESH_MS = 1_000_000
DAY_MS = 86_400_000


def act(name: str, *after: str, effect: Effect = Effect.ONCE, **more: Any) -> PermitAction:
    return PermitAction(name, "fake", "act", {}, effect, 60_000, after, **more)


def permit(*actions: PermitAction, rule: Rule | None = None, **more: Any) -> Permit:
    told = {"plan": "water", "digest": "d", "budget": 2, "from_ms": 0, "to_ms": MESH_MS + DAY_MS}
    told |= {"rule": rule or Rule(EVERY, 10_000), "actions": actions or (act("a"),)}
    return Permit(**{"mesh": "home", "id": "p-1-kq7x", "node": "pi", **told, **more})


class Node:
    """An agent and its journal: `crash` leaves the journal alone."""

    def __init__(self) -> None:
        self.journal = AgentState()
        self.now_ms = 0
        self.seq = 0
        self.start(0)

    def start(self, at_ms: int) -> None:
        """A new agent on the journal."""
        stored = copy.deepcopy(self.journal)
        config = AgentConfig(
            BEAT_MS,
            floor=stored.floor,
            quarantined=stored.quarantined,
            lost_ms=LOST_MS,
            permits=stored.permits,
            mesh_ms=stored.mesh_ms,
        )
        self.agent = Agent(config, list(stored.records.values()))
        #: drivers that run, by dispatch
        self.drivers: dict[str, Dispatch] = {}
        self.ran: list[str] = []
        self.told: list[str] = []
        self.refusal: Fault | None = None
        self.now_ms = at_ms
        self.does(Tick(at_ms))

    def does(self, event: Any) -> list[Any]:
        self.now_ms = event.at_ms
        decided, asked = self.agent.handle(event)
        for change in decided:
            apply(self.journal, change)
        assert self.journal == self.agent.state
        check(self.agent)
        for command in asked:
            if isinstance(command, k.CheckDispatch):
                arrival = e.Arrival(command.dispatch, command.hash, self.refusal)
                asked = [*asked, *self.does(e.DispatchChecked(self.now_ms, arrival))]
            elif isinstance(command, k.RunDriver):
                self.drivers[command.dispatch.id] = command.dispatch
                self.ran.append(command.dispatch.id)
            elif isinstance(command, k.SendComplete):
                self.told += [result.dispatch for result in command.results]
        return asked

    def open(self, at_ms: int, session: int = 1) -> None:
        self.does(e.SessionOpened(at_ms, session, 1, mesh_ms=MESH_MS + at_ms))

    def close(self, at_ms: int) -> None:
        self.does(e.SessionClosed(at_ms, "gone"))

    def hold(self, at_ms: int, *permits: Permit, drop: tuple[str, ...] = ()) -> list[Any]:
        self.seq += 1
        documents = tuple((one, b"signed") for one in permits)
        return self.does(e.PermitArrived(at_ms, documents, drop, 1, self.seq))

    def pass_time(self, to_ms: int) -> None:
        """Ticks at every deadline, each at its own time; drivers end at once."""
        for _ in range(1_000):
            due_ms = self.agent.next_deadline_ms()
            if due_ms is None or due_ms > to_ms:
                break
            self.does(Tick(max(due_ms, self.now_ms)))
            self.end_all()
        else:
            raise AssertionError("deadlines never end")
        self.now_ms = to_ms

    def end_all(self) -> None:
        while self.drivers:
            self.end(next(iter(self.drivers)))

    def end(self, id: str, outcome: str = "completed", result: Any = None, code: str = "") -> None:
        del self.drivers[id]
        fault = Fault(code, "as the test says") if code else None
        self.does(e.DriverFinished(self.now_ms, id, outcome, result, fault))

    def beats(self, to_ms: int) -> int:
        """In contact: each beat is answered; when the last one was."""
        answered_ms = self.now_ms
        while self.now_ms < to_ms:
            asked = self.does(Tick(min(to_ms, self.now_ms + 1_000)))
            for command in asked:
                if isinstance(command, k.SendHeartbeat):
                    self.seq += 1
                    self.does(e.AckArrived(self.now_ms, command.beat, (), 1, self.seq))
                    answered_ms = self.now_ms
            self.end_all()
        return answered_ms


def holding(*permits: Permit) -> Node:
    node = Node()
    node.open(0)
    node.hold(0, *permits)
    return node


def test_a_run_begins_when_the_node_is_cut_off_and_never_before() -> None:
    node = holding(permit())
    heard_ms = node.beats(60_000)
    assert node.ran == [], "it was in contact"
    node.pass_time(heard_ms + 9_999)
    assert node.ran == [], "ten seconds after it was last heard"
    node.pass_time(heard_ms + 10_000)
    assert node.ran == ["p-1-kq7x-1/a/pi/1"]


def test_a_session_without_answers_is_no_contact_and_a_broken_one_that_was_answered_is() -> None:
    node = holding(permit(rule=Rule(CUT_OFF, 0)))
    heard_ms = node.beats(20_000)
    node.close(20_500)
    node.pass_time(heard_ms + 5_999)
    assert node.ran == [], "the last answer was less than six seconds ago"
    node.pass_time(heard_ms + 6_000)
    assert len(node.ran) == 1
    again = holding(permit(rule=Rule(CUT_OFF, 0)))
    again.pass_time(10_000)  # its session stands, nobody answers
    assert len(again.ran) == 1


def test_the_budget_holds_across_restarts_and_whatever_is_sent_again() -> None:
    node = holding(permit(budget=3))
    node.close(1_000)
    node.pass_time(11_000)
    assert node.journal.permits["p-1-kq7x"].used == 1
    node.start(20_000)
    node.pass_time(31_000)
    node.open(32_000)
    node.hold(32_100, drop=("p-1-kq7x",))
    node.hold(32_200, permit(budget=3))
    node.close(33_000)
    node.pass_time(600_000)
    assert node.journal.permits["p-1-kq7x"].used == 3
    assert node.ran == [f"p-1-kq7x-{n}/a/pi/1" for n in (2, 3)]


def test_a_run_is_counted_in_the_commit_before_it_is_asked_for() -> None:
    node = holding(permit())
    node.close(100)
    decided, asked = node.agent.handle(Tick(10_000))
    assert [type(change) for change in decided] == [c.PermitRunBegun]
    assert [type(command) for command in asked] == [k.CheckDispatch]


def test_once_in_each_time_that_it_is_cut_off() -> None:
    node = holding(permit(rule=Rule(CUT_OFF, 8_000), budget=9))
    node.close(100)
    node.pass_time(100_000)
    node.start(110_000)
    node.pass_time(200_000)
    assert node.journal.permits["p-1-kq7x"].used == 1, "also after a restart"
    node.open(210_000)
    node.close(211_000)
    node.pass_time(300_000)
    assert node.journal.permits["p-1-kq7x"].used == 2


@pytest.mark.parametrize("how", ["orchestrator restarts", "deaf", "a permit comes"])
def test_a_time_cut_off_may_end_within_one_session(how: str) -> None:
    node = holding(permit(rule=Rule(CUT_OFF, 8_000), budget=9))
    for used in (1, 2, 3):
        node.pass_time(node.now_ms + 60_000)  # the session stands, and nobody answers
        assert node.journal.permits["p-1-kq7x"].used == used, "once in each"
        if how == "orchestrator restarts":
            node.does(e.RebirthAsked(node.now_ms, 1 + used))
        elif how == "a permit comes":
            node.hold(node.now_ms + 500, permit(id=f"p-{used + 1}-kq7x", budget=1))
        node.beats(node.now_ms + 20_000)
        assert node.journal.permits["p-1-kq7x"].used == used
        assert not node.journal.permits["p-1-kq7x"].spent, "and the journal knows that it ended"


def test_what_a_source_tells_starts_a_run_while_cut_off_and_one_at_a_time() -> None:
    node = holding(permit(rule=Rule(ON, source="gpio-17", value=1), budget=9))
    assert node.agent.permits.hears("gpio-17")
    assert not node.agent.permits.hears("gpio-18")
    tells = lambda at_ms, value: node.does(e.SourceTold(at_ms, "gpio-17", {"value": value}))  # noqa: E731
    tells(1_000, 1)
    assert node.ran == [], "in contact"
    tells(10_000, 0)
    assert node.ran == [], "another value"
    tells(11_000, 1)
    tells(12_000, 1)
    assert node.ran == ["p-1-kq7x-1/a/pi/1"], "the first still goes on"
    node.end_all()
    tells(13_000, 1)
    assert len(node.ran) == 2


def test_actions_follow_each_other_with_what_earlier_ones_returned() -> None:
    note = replace(
        act("b", "a", fillings=(Filling(("t",), ("x=", ("a", "x"))),)), params={"t": "{{…}}"}
    )
    node = holding(permit(act("a"), note))
    node.close(100)
    node.does(Tick(10_000))
    node.end("p-1-kq7x-1/a/pi/1", result={"x": 7})
    assert node.drivers["p-1-kq7x-1/b/pi/1"].params == {"t": "x=7"}


def test_results_are_told_when_the_run_is_over_and_until_they_are_settled() -> None:
    node = holding(permit(act("a"), act("b", "a")))
    node.close(100)
    node.does(Tick(10_000))
    node.end("p-1-kq7x-1/a/pi/1")
    node.open(20_000, 2)
    assert node.told == [], "the run goes on, and its first result waits for it"
    node.end("p-1-kq7x-1/b/pi/1")
    both = ["p-1-kq7x-1/a/pi/1", "p-1-kq7x-1/b/pi/1"]
    assert node.told == both
    node.beats(27_000)
    assert node.told[2:] == both, "again, for nobody settled them"
    node.seq += 1
    node.does(e.AckArrived(27_500, None, tuple(both), 1, node.seq))
    node.told.clear()
    node.beats(60_000)
    assert node.told == []
    assert node.ran == both, "no run began while it was in contact"


def test_after_a_power_cut_only_what_may_be_repeated_is_done_again() -> None:
    node = holding(permit(act("look", effect=Effect.PURE), act("send", "look")))
    node.close(100)
    node.does(Tick(10_000))
    node.start(12_000)
    assert node.ran == ["p-1-kq7x-1/look/pi/2"]
    node.end("p-1-kq7x-1/look/pi/2")
    assert node.ran[-1] == "p-1-kq7x-1/send/pi/1"
    node.start(14_000)
    assert node.ran == [], "nobody knows whether it was sent"
    record = node.journal.permits["p-1-kq7x"]
    assert (record.open, record.used) == (False, 1)
    result = node.journal.records["p-1-kq7x-1/send/pi/1"].result
    assert result is not None
    assert result.outcome == "unknown"


def test_an_action_that_ends_its_machine_is_not_tried_for_ever() -> None:
    node = holding(permit(act("look", effect=Effect.PURE), budget=1))
    node.close(100)
    node.does(Tick(10_000))
    for at_ms in (20_000, 30_000, 40_000, 50_000):
        node.start(at_ms)
    assert node.ran == []
    assert not node.journal.permits["p-1-kq7x"].open


def test_the_guard_has_its_word_on_every_dispatch() -> None:
    node = holding(permit(act("a", on_error="continue"), act("b", "a")))
    node.refusal = Fault("policy.path", "not there")
    node.close(100)
    node.pass_time(11_000)
    assert node.ran == []
    results = [record.result for record in node.journal.records.values()]
    assert [r and r.error and r.error.code for r in results] == ["policy.path"] * 2
    assert not node.journal.permits["p-1-kq7x"].open


@pytest.mark.parametrize("how", ["withdrawn", "quarantined", "over"])
def test_of_a_run_that_goes_on_nothing_more_begins(how: str) -> None:
    to_ms = MESH_MS + 15_000
    node = holding(permit(act("a"), act("b", "a", effect=Effect.PURE), to_ms=to_ms))
    node.close(100)
    node.does(Tick(10_000))
    if how == "withdrawn":
        node.hold(11_000, drop=("p-1-kq7x",))
    elif how == "quarantined":
        node.seq += 1
        node.does(e.QuarantineArrived(11_000, True, 1, node.seq))
    else:
        node.now_ms = 16_000
    node.end("p-1-kq7x-1/a/pi/1")
    assert node.ran == ["p-1-kq7x-1/a/pi/1"]
    result = node.journal.records["p-1-kq7x-1/b/pi/1"].result
    code = {"withdrawn": "permit.withdrawn", "quarantined": "node.quarantined"}
    assert result is not None
    assert result.error is not None
    assert result.error.code == code.get(how, "permit.expired")
    node.pass_time(200_000)
    assert len(node.ran) == 1


def test_who_is_in_quarantine_stops_or_has_lost_a_journal_begins_none() -> None:
    node = holding(permit())
    node.seq += 1
    node.does(e.QuarantineArrived(50, True, 1, node.seq))
    node.close(100)
    node.pass_time(100_000)
    assert node.ran == []
    other = holding(permit())
    other.close(100)
    other.does(e.ShutdownAsked(200, 60_000))
    other.pass_time(60_000)
    assert other.ran == []


def test_a_permit_that_no_key_vouches_for_any_more_is_not_run_and_not_told() -> None:
    node = holding(permit())
    node.close(100)
    stored = copy.deepcopy(node.journal.permits)
    stored["p-1-kq7x"].refusal = Fault("permit.untrusted", "its key is gone")
    agent = Agent(AgentConfig(BEAT_MS, lost_ms=LOST_MS, permits=stored, mesh_ms=MESH_MS))
    agent.handle(Tick(1_000))
    decided, asked = agent.handle(Tick(200_000))
    assert (decided, asked) == ([], [])
    assert agent.permits.held() == {}


def test_of_a_run_whose_permit_cannot_be_read_any_more_the_results_are_told() -> None:
    node = holding(permit(act("a"), act("b", "a"), budget=5))
    node.close(100)
    node.does(Tick(10_000))
    node.end("p-1-kq7x-1/a/pi/1")
    record = node.journal.permits["p-1-kq7x"]
    record.permit, record.refusal = (
        unreadable_permit("p-1-kq7x", b"?"),
        Fault("permit.untrusted", "?"),
    )
    node.start(12_000)
    node.open(13_000, 2)
    assert node.told == ["p-1-kq7x-1/a/pi/1", "p-1-kq7x-1/b/pi/1"]
    record = node.journal.permits["p-1-kq7x"]
    assert (record.open, record.used) == (False, 1)
    node.close(14_000)
    node.pass_time(600_000)
    assert node.ran == []
    node.open(601_000, 3)
    node.hold(601_000, permit(act("a"), act("b", "a"), budget=2))
    node.close(602_000)
    node.pass_time(1_000_000)
    assert node.ran == ["p-1-kq7x-2/a/pi/1", "p-1-kq7x-2/b/pi/1"], "its count went on"


def test_no_accept_tells_of_what_a_permit_began() -> None:
    push = act("a", effect=Effect.PHYSICAL, claims=("pin:1",))
    node = holding(permit(push), permit(push, id="p-2-kq7x"))
    node.close(100)
    node.does(Tick(10_000))
    assert node.ran == ["p-1-kq7x-1/a/pi/1"], "the other one waits for the pin"
    node.open(20_000, 2)
    del node.drivers["p-1-kq7x-1/a/pi/1"]
    ended = e.DriverFinished(20_100, "p-1-kq7x-1/a/pi/1", "completed", None, None)
    asked = node.does(ended)
    assert node.ran[1:] == ["p-2-kq7x-1/a/pi/1"]
    assert not [command for command in asked if isinstance(command, k.SendAccept)]


def test_a_clock_that_is_behind_goes_on_from_what_was_noted() -> None:
    """No real-time clock: after the restart its own time begins in 1970."""
    node = holding(permit(to_ms=MESH_MS + 60_000, budget=9))
    node.close(100)
    node.pass_time(31_000)
    assert node.journal.permits["p-1-kq7x"].used == 3
    node.start(5)
    node.pass_time(400_000)
    used = node.journal.permits["p-1-kq7x"].used
    assert used == 5, "30 of the 60 seconds were left"


def test_a_clock_that_is_ahead_costs_runs_and_gives_none() -> None:
    node = holding(permit(budget=3))
    node.close(100)
    node.pass_time(11_000)
    node.start(MESH_MS + 10 * DAY_MS)
    node.pass_time(node.now_ms + 100_000)
    assert node.journal.permits["p-1-kq7x"].used == 1, "it would be over by then"
    node.does(e.SessionOpened(node.now_ms + 10, 2, 1, mesh_ms=MESH_MS + 200_000))
    assert "p-1-kq7x" in node.journal.permits, "by the orchestrator's time it is not over"
    node.close(node.now_ms + 10)
    node.pass_time(node.now_ms + 300_000)
    assert node.journal.permits["p-1-kq7x"].used == 3


def test_what_is_over_is_discarded_with_its_reason_when_the_orchestrator_says_the_time() -> None:
    node = holding(permit(to_ms=MESH_MS + 5_000))
    node.close(100)
    node.pass_time(50_000)
    assert "p-1-kq7x" in node.journal.permits
    asked = node.does(e.SessionOpened(60_000, 2, 1, mesh_ms=MESH_MS + 60_000))
    assert node.journal.permits == {}
    codes = [command.fault.code for command in asked if isinstance(command, k.NoteRefusal)]
    assert codes == ["permit.expired"]


def test_an_old_command_is_refused_also_after_a_restart() -> None:
    node = holding(permit())
    node.hold(20, drop=("p-1-kq7x",))
    replayed = e.PermitArrived(30, ((permit(), b"signed"),), (), 1, 1)
    for _ in range(2):
        asked = node.does(replace(replayed, at_ms=node.now_ms))
        codes = [command.fault.code for command in asked if isinstance(command, k.NoteRefusal)]
        assert codes == ["message.replayed"]
        assert node.journal.permits["p-1-kq7x"].dropped
        node.start(100)


def test_a_node_keeps_so_many_and_no_more() -> None:
    node = holding()
    many = [permit(id=f"p-{n}-kq7x") for n in range(PERMITS_NODE_KEPT + 1)]
    asked = node.hold(10, *many)
    codes = [command.fault.code for command in asked if isinstance(command, k.NoteRefusal)]
    assert codes == ["permit.too_many"]
    assert len(node.journal.permits) == PERMITS_NODE_KEPT


def test_a_birth_tells_what_is_held_and_how_often_it_ran() -> None:
    node = holding(permit())
    [told] = [a for a in node.hold(20, permit(id="p-2-kq7x")) if isinstance(a, k.SendStatus)]
    assert told.permits == {"p-1-kq7x": 0, "p-2-kq7x": 0}
