"""The rules of the agent's core, one by one, in virtual time."""

import hashlib
from typing import Any

import pytest

from imlmesh_node.core import changes, commands, events
from imlmesh_node.core.agent import Agent
from imlmesh_node.core.changes import ResultRecord
from imlmesh_node.core.commands import KillReason
from imlmesh_node.core.config import AgentConfig
from imlmesh_node.core.state import AgentState, JournalRecord, apply
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.limits import RESEND_MS, SETTLED_KEPT_MS, START_MS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.dispatches import Dispatch

BEAT_MS = 2_000
LEASE_MS = 6_000


def dispatch(number: int = 1, effect: Effect = Effect.ONCE, **fields: Any) -> Dispatch:
    wanted: dict[str, Any] = {
        "id": f"r-1-abcd/a{number}/pi/1",
        "module": "fake",
        "action": "act",
        "params": {},
        "effect": effect,
        "timeout_ms": 10_000,
        "lease_ms": LEASE_MS,
        "when_cut_off": "finish",
    }
    return Dispatch(**(wanted | fields))


def arrival(one: Dispatch, **fields: Any) -> events.Arrival:
    return events.Arrival(one, hashlib.sha256(one.id.encode()).digest(), **fields)


class World:
    """An agent with a session at 0 ms, and all that it decided."""

    def __init__(self, records: tuple[JournalRecord, ...] = (), **config: Any) -> None:
        self.agent = Agent(AgentConfig(BEAT_MS, **{"floor": (1, 0), **config}), records)
        self.changes: list[Any] = []
        self.seq = 0
        self.does(events.SessionOpened(0, 1, 1))

    def does(self, event: events.Event) -> list[Any]:
        decided, asked = self.agent.handle(event)
        self.changes += decided
        return asked

    def delegate(self, at_ms: int, *arrivals: events.Arrival) -> list[Any]:
        self.seq += 1
        return self.does(events.DelegateArrived(at_ms, arrivals, 1, self.seq))

    def finish(self, at_ms: int, one: Dispatch, outcome: str = "completed") -> list[Any]:
        fault = None if outcome == "completed" else Fault("driver.failed", "it did not")
        return self.does(events.DriverFinished(at_ms, one.id, outcome, None, fault))

    def tick(self, at_ms: int) -> list[Any]:
        return self.does(Tick(at_ms))

    def result(self, one: Dispatch) -> ResultRecord:
        found = self.agent.state.records[one.id].result
        assert found is not None
        return found


def of(kind: type, decided: list[Any]) -> list[Any]:
    return [item for item in decided if type(item) is kind]


def kinds(decided: list[Any]) -> list[type]:
    return [type(item) for item in decided]


def test_a_long_action_is_taken_accepted_and_started_in_one_step() -> None:
    world = World()
    one = dispatch()
    asked = world.delegate(10, arrival(one))
    assert kinds(world.changes) == [
        changes.DispatchTaken,
        changes.IntentRecorded,
        changes.FloorRaised,
    ]
    assert asked == [
        commands.RunDriver(one, early=False),
        commands.SendAccept(((one.id, arrival(one).hash),), (one.id,)),
    ]


@pytest.mark.parametrize("effect", [Effect.PURE, Effect.IDEMPOTENT])
def test_repeatable_work_may_run_before_its_commit(effect: Effect) -> None:
    one = dispatch(effect=effect)
    asked = World().delegate(10, arrival(one))
    assert of(commands.RunDriver, asked) == [commands.RunDriver(one, early=True)]


def test_what_ends_at_once_is_answered_by_its_result_alone() -> None:
    world = World()
    one = dispatch(effect=Effect.PURE)
    asked = world.delegate(10, arrival(one, instant=True))
    assert kinds(asked) == [commands.RunDriver]
    asked = world.finish(10, one)
    assert asked == [commands.SendComplete((world.result(one),), early=True)]


@pytest.mark.parametrize("effect", [Effect.ONCE, Effect.PHYSICAL])
def test_how_an_effect_ended_is_told_when_the_journal_holds_it(effect: Effect) -> None:
    world = World()
    one = dispatch(effect=effect)
    world.delegate(10, arrival(one, instant=True))
    assert world.finish(10, one) == [commands.SendComplete((world.result(one),), early=False)]


def test_a_dispatch_seen_before_is_accepted_again_and_never_run_again() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    before = list(world.changes)
    asked = world.delegate(5_010, arrival(one))
    assert kinds(asked) == [commands.SendAccept]
    assert world.changes == before


def test_a_finished_dispatch_is_answered_with_its_result() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    world.finish(20, one)
    asked = world.delegate(30, arrival(one))
    assert asked == [commands.SendComplete((world.result(one),))]


def test_another_dispatch_of_a_known_name_is_rejected() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    asked = world.delegate(20, events.Arrival(one, b"other"))
    assert asked[0].refusals[0][1].code == "dispatch.hash"
    assert len(asked) == 1


def test_the_guards_refusal_is_rejected_and_not_remembered() -> None:
    world = World()
    one = dispatch()
    fault = Fault("policy.path", "not there")
    asked = world.delegate(10, arrival(one, refusal=fault))
    assert asked == [commands.SendReject(((one.id, fault),))]
    assert world.changes == [changes.FloorRaised(1, 1)], "it is refused after a restart, too"


def test_a_full_node_rejects_until_something_is_finished() -> None:
    world = World(held=2)
    many = [dispatch(number, Effect.PURE) for number in range(3)]
    asked = world.delegate(10, *(arrival(one, instant=True) for one in many))
    refused = of(commands.SendReject, asked)
    assert [fault.code for _, fault in refused[0].refusals] == ["node.full"]
    assert of(commands.SendReject, world.delegate(20, arrival(many[2], instant=True)))
    world.finish(30, many[0])
    assert not of(commands.SendReject, world.delegate(40, arrival(many[2], instant=True)))


def test_results_that_nobody_settles_fill_a_node_too() -> None:
    world = World()
    for number in range(limits.NODE_UNSETTLED):
        one = dispatch(number, Effect.PURE)
        world.delegate(number + 10, arrival(one, instant=True))
        world.finish(number + 10, one)
    more = arrival(dispatch(limits.NODE_UNSETTLED, Effect.PURE), instant=True)
    assert of(commands.SendReject, world.delegate(2_000, more))
    world.does(events.AckArrived(2_001, None, (dispatch(0, Effect.PURE).id,)))
    assert not of(commands.SendReject, world.delegate(2_002, more))


def test_slots_bound_what_runs_and_the_oldest_goes_first() -> None:
    world = World(slots=2)
    many = [dispatch(number) for number in range(4)]
    asked = world.delegate(10, *(arrival(one) for one in many))
    assert [run.dispatch for run in of(commands.RunDriver, asked)] == many[:2]
    accept = of(commands.SendAccept, asked)[0]
    assert len(accept.pairs) == 4
    assert accept.started == (many[0].id, many[1].id)
    asked = world.finish(20, many[1])
    assert [run.dispatch for run in of(commands.RunDriver, asked)] == [many[2]]
    assert of(commands.SendAccept, asked)[0].started == (many[2].id,)


def test_what_ends_at_once_takes_no_slot() -> None:
    world = World(slots=1)
    long, short = dispatch(1), dispatch(2)
    world.delegate(10, arrival(long))
    asked = world.delegate(20, arrival(short, instant=True))
    assert [run.dispatch for run in of(commands.RunDriver, asked)] == [short]


def test_a_claim_has_one_holder_and_nobody_overtakes() -> None:
    world = World()
    first, second, third, other = (
        dispatch(number, claims=claims)
        for number, claims in enumerate([("pin",), ("pin", "bus"), ("bus",), ("lamp",)])
    )
    asked = world.delegate(10, *(arrival(one) for one in (first, second, third, other)))
    assert [run.dispatch for run in of(commands.RunDriver, asked)] == [first, other]
    asked = world.finish(20, first)
    assert [run.dispatch for run in of(commands.RunDriver, asked)] == [second]
    asked = world.finish(30, second)
    assert [run.dispatch for run in of(commands.RunDriver, asked)] == [third]


def test_on_busy_fail_names_the_holder() -> None:
    world = World()
    first = dispatch(1, claims=("pin",))
    second = dispatch(2, claims=("pin",), on_busy="fail")
    world.delegate(10, arrival(first))
    asked = world.delegate(20, arrival(second))
    assert kinds(asked) == [commands.SendComplete]
    assert world.result(second).error == Fault("driver.busy", f"held by {first.id}")


def test_waiting_too_long_is_reported_as_not_started() -> None:
    world = World(slots=1)
    first, second = dispatch(1, timeout_ms=10 * START_MS), dispatch(2)
    world.delegate(10, arrival(first), arrival(second))
    assert not of(commands.SendComplete, world.tick(START_MS + 9))
    asked = world.tick(START_MS + 10)
    assert of(commands.SendComplete, asked) == [commands.SendComplete((world.result(second),))]
    assert world.result(second).error.code == "action.not_started"  # type: ignore[union-attr]


def test_a_timeout_kills_and_is_reported_when_the_kill_is_confirmed() -> None:
    world = World()
    one = dispatch(timeout_ms=1_000, claims=("pin",))
    world.delegate(10, arrival(one))
    assert not of(commands.KillDriver, world.tick(1_009))
    assert of(commands.KillDriver, world.tick(1_010)) == [
        commands.KillDriver(one, KillReason.TIMEOUT)
    ]
    assert not of(commands.KillDriver, world.tick(1_500))
    assert world.agent.slots.claims.held() == {"pin": one.id}
    outcome, fault = commands.killed(one, KillReason.TIMEOUT)
    asked = world.does(events.DriverFinished(1_600, one.id, outcome, None, fault))
    assert asked[0].results[0].outcome == "timed_out"
    assert asked[0].results[0].error.code == "driver.timeout"
    assert world.agent.slots.claims.held() == {}


def test_cancel_ends_what_waits_kills_what_runs_and_repeats_what_is_done() -> None:
    world = World(slots=1)
    done, runs, waits = (dispatch(number) for number in range(3))
    world.delegate(10, arrival(done))
    world.finish(20, done)
    world.delegate(30, arrival(runs), arrival(waits))
    asked = world.does(events.CancelArrived(40, (done.id, runs.id, waits.id, "r-9/unknown/pi/1")))
    assert asked == [
        commands.SendComplete((world.result(done),)),
        commands.KillDriver(runs, KillReason.CANCEL),
        commands.SendComplete((world.result(waits),)),
    ]
    assert world.result(waits).outcome == "cancelled"


def test_a_beat_is_repeated_under_its_number_after_a_third_until_it_is_answered() -> None:
    world = World()
    third = BEAT_MS // 3
    for at_ms in (third, 2 * third):
        assert world.agent.next_deadline_ms() == at_ms
        assert of(commands.SendHeartbeat, world.tick(at_ms)) == [commands.SendHeartbeat(1, ())]
    world.does(events.AckArrived(2 * third + 5, 1, ()))
    assert world.agent.next_deadline_ms() == BEAT_MS
    assert of(commands.SendHeartbeat, world.tick(BEAT_MS)) == [commands.SendHeartbeat(2, ())]


def test_a_beat_names_what_is_held_and_not_what_is_finished() -> None:
    world = World()
    done, runs = dispatch(1), dispatch(2)
    world.delegate(10, arrival(done), arrival(runs))
    world.finish(20, done)
    assert of(commands.SendHeartbeat, world.tick(BEAT_MS))[0].held == (runs.id,)


def test_cut_off_stop_work_ends_at_nine_tenths_of_its_lease() -> None:
    world = World()
    stop = dispatch(1, when_cut_off="stop", timeout_ms=100_000)
    finish = dispatch(2, timeout_ms=100_000)
    world.delegate(100, arrival(stop), arrival(finish))
    assert not of(commands.KillDriver, world.tick(5_399))
    killed = of(commands.KillDriver, world.tick(5_400))
    assert killed == [commands.KillDriver(stop, KillReason.LEASE)]


def test_a_late_arrival_does_not_lengthen_a_lease() -> None:
    world = World()
    stop = dispatch(1, when_cut_off="stop", timeout_ms=100_000)
    world.delegate(5_000, arrival(stop))
    assert of(commands.KillDriver, world.tick(5_400))


def test_an_answered_beat_renews_from_its_sending() -> None:
    world = World()
    stop = dispatch(1, when_cut_off="stop", timeout_ms=100_000)
    world.delegate(100, arrival(stop))
    world.does(events.AckArrived(200, 1, ()))
    beat = of(commands.SendHeartbeat, world.tick(2_000))[0].beat
    world.does(events.SessionClosed(2_100, "link.down"))
    world.does(events.AckArrived(4_000, beat, ()))
    assert world.agent.next_deadline_ms() == 2_000 + 5_400
    assert not of(commands.KillDriver, world.tick(7_399))
    assert of(commands.KillDriver, world.tick(7_400))


def test_a_repeated_beat_renews_from_its_first_sending() -> None:
    """What was answered may have been the first of them."""
    world = World()
    stop = dispatch(1, when_cut_off="stop", timeout_ms=100_000)
    world.delegate(100, arrival(stop))
    for at_ms in (700, 1_400, 2_100):
        world.tick(at_ms)
    world.does(events.AckArrived(2_200, 1, ()))
    world.does(events.SessionClosed(2_300, "link.down"))
    assert world.agent.next_deadline_ms() == 5_400


def test_who_heard_nothing_for_long_tells_at_once_that_it_hears_again() -> None:
    world = World()
    for at_ms in range(700, 4_300, 700):
        world.tick(at_ms)
    world.does(events.AckArrived(4_300, 1, ()))
    assert world.agent.next_deadline_ms() == BEAT_MS  # the first answer is of the session's begin
    assert of(commands.SendHeartbeat, world.tick(4_300)) == [commands.SendHeartbeat(2, ())]
    for at_ms in range(5_000, 9_000, 700):
        world.tick(at_ms)
    world.does(events.AckArrived(9_000, 2, ()))
    assert world.agent.next_deadline_ms() <= 9_000
    assert of(commands.SendHeartbeat, world.tick(9_000)) == [commands.SendHeartbeat(3, ())]


def test_a_new_session_begins_with_a_beat_of_its_own() -> None:
    """An unanswered one of the old session would look as if nothing were heard in the new one."""
    world = World()
    world.tick(BEAT_MS // 3)
    world.does(events.SessionClosed(1_000, "link.down"))
    asked = world.does(events.SessionOpened(2_000, 2, 1))
    assert of(commands.SendHeartbeat, asked) == [commands.SendHeartbeat(2, ())]


def test_an_old_beat_does_not_renew_what_came_later() -> None:
    world = World()
    stop = dispatch(1, when_cut_off="stop", timeout_ms=100_000)
    world.delegate(100, arrival(stop))
    world.does(events.AckArrived(5_000, 1, ()))
    assert of(commands.KillDriver, world.tick(5_500))


def test_a_new_session_renews_no_lease_before_a_beat_of_it_is_answered() -> None:
    """Its birth may never arrive: then the orchestrator has heard nothing since the last answer."""
    world = World()
    stop = dispatch(1, when_cut_off="stop", timeout_ms=100_000)
    world.delegate(100, arrival(stop))
    world.does(events.SessionClosed(4_000, "link.down"))
    world.does(events.SessionOpened(5_000, 2, 1))
    new = dispatch(2, when_cut_off="stop", timeout_ms=100_000)
    world.delegate(5_100, arrival(new))
    assert of(commands.KillDriver, world.tick(5_400)) == [
        commands.KillDriver(stop, commands.KillReason.LEASE)
    ]
    # what came in this session was given by who had heard of it
    assert not of(commands.KillDriver, world.tick(10_300))
    assert of(commands.KillDriver, world.tick(10_400))


def test_what_waited_while_the_node_stood_still_does_not_begin() -> None:
    """The end of a driver is heard before the tick: others have the work by now."""
    world = World(slots=1)
    first, second = dispatch(1, timeout_ms=100_000), dispatch(2, when_cut_off="stop")
    world.delegate(0, arrival(first), arrival(second))
    asked = world.finish(30_000, first)
    assert not of(commands.RunDriver, asked)
    assert world.result(second).error.code == "action.lease_lost"  # type: ignore[union-attr]


def test_what_lay_in_the_socket_while_the_node_stood_still_does_not_begin() -> None:
    world = World()
    stop, finish = dispatch(1, when_cut_off="stop"), dispatch(2)
    asked = world.delegate(30_000, arrival(stop), arrival(finish))
    assert [each.dispatch for each in of(commands.RunDriver, asked)] == [finish]
    assert world.result(stop).error.code == "action.lease_lost"  # type: ignore[union-attr]


def test_a_waiting_dispatch_loses_its_lease_without_a_kill() -> None:
    world = World(slots=1)
    first, second = dispatch(1, timeout_ms=100_000), dispatch(2, when_cut_off="stop")
    world.delegate(0, arrival(first), arrival(second))
    asked = world.tick(5_400)
    assert not of(commands.KillDriver, asked)
    assert world.result(second).error.code == "action.lease_lost"  # type: ignore[union-attr]


def test_results_are_sent_again_until_they_are_settled() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    world.finish(20, one)
    assert not of(commands.SendComplete, world.tick(20 + RESEND_MS - 1))
    again = commands.SendComplete((world.result(one),))
    assert of(commands.SendComplete, world.tick(20 + RESEND_MS)) == [again]
    assert of(commands.SendComplete, world.tick(20 + 2 * RESEND_MS)) == [again]
    world.does(events.AckArrived(20 + 2 * RESEND_MS, None, (one.id,)))
    assert not of(commands.SendComplete, world.tick(20 + 3 * RESEND_MS))


def test_without_a_session_results_are_kept_and_sent_when_one_opens() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    world.does(events.SessionClosed(20, "link.down"))
    assert world.finish(30, one) == []
    assert world.tick(60_000) == []
    asked = world.does(events.SessionOpened(70_000, 2, 1))
    assert kinds(asked) == [commands.SendStatus, commands.SendHeartbeat, commands.SendComplete]
    assert asked[2].results == (world.result(one),)


def test_settled_rows_go_with_the_next_result_and_raise_the_floor() -> None:
    world = World()
    first, second = dispatch(1), dispatch(2)
    world.delegate(10, arrival(first), arrival(second))
    world.finish(20, first)
    world.changes.clear()
    world.does(events.AckArrived(30, None, (first.id, "r-9/unknown/pi/1"), 1, 7))
    assert world.changes == []
    world.finish(40, second)
    assert world.changes == [
        changes.DispatchSettled(first.id),
        changes.FloorRaised(1, 7),
        changes.ResultRecorded(world.result(second)),
    ]
    assert first.id not in world.agent.state.records


def test_settled_rows_do_not_wait_for_ever() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    world.finish(20, one)
    world.does(events.AckArrived(30, None, (one.id,)))
    world.does(events.SessionClosed(40, "link.down"))
    assert world.agent.next_deadline_ms() == 30 + SETTLED_KEPT_MS
    world.tick(30 + SETTLED_KEPT_MS)
    assert world.agent.state.records == {}


def test_a_delegate_overtaken_by_a_newer_one_is_refused() -> None:
    world = World()
    world.seq = 5
    world.delegate(10, arrival(dispatch(1)))
    asked = world.does(events.DelegateArrived(20, (arrival(dispatch(2)),), 1, 6))
    assert [refusal.fault.code for refusal in asked] == ["message.replayed"]


def test_an_older_orchestrator_is_refused() -> None:
    world = World(floor=(3, 9))
    assert world.agent.session is None
    asked = world.does(events.SessionOpened(0, 1, 2))
    assert [refusal.fault.code for refusal in asked] == ["message.epoch"]
    world.does(events.SessionOpened(0, 2, 4))
    asked = world.does(events.DelegateArrived(10, (arrival(dispatch()),), 3, 99))
    assert [refusal.fault.code for refusal in asked] == ["message.epoch"]


def test_a_newer_epoch_is_remembered_as_soon_as_it_is_met() -> None:
    world = World(floor=(3, 9))
    world.does(events.SessionOpened(0, 2, 4))
    assert world.changes == [changes.FloorRaised(4, 0)]
    world.does(events.RebirthAsked(10, "", 5))
    assert world.agent.state.floor == (5, 0)
    world.changes.clear()
    world.does(events.RebirthAsked(20, "", 5))
    world.does(events.SessionOpened(30, 3, 5))
    assert world.changes == [], "what is known costs no commit"


def test_what_a_stopping_node_did_not_take_is_not_taken_by_the_next() -> None:
    world = World()
    world.does(events.ShutdownAsked(5))
    asked = world.delegate(10, arrival(dispatch()))
    assert of(commands.RunDriver, asked) == []
    assert world.agent.state.floor == (1, 1)


def test_what_cannot_be_read_is_rejected_by_name_unless_it_is_known() -> None:
    world = World()
    one = dispatch(1)
    world.delegate(10, arrival(one))
    fault = Fault("message.invalid", "not a dispatch")
    unread = ((one.id, fault), ("r-1-abcd/a2/pi/1", fault))
    world.seq += 1
    asked = world.does(events.DelegateArrived(20, (), 1, world.seq, "", unread))
    assert asked == [commands.SendReject((("r-1-abcd/a2/pi/1", fault),))]


def test_after_a_restart_an_old_delegate_is_refused() -> None:
    world = World(floor=(1, 40))
    world.seq = 39
    one = dispatch()
    asked = world.delegate(10, arrival(one))
    assert [refusal.fault.code for refusal in asked] == ["message.replayed"]
    assert of(commands.RunDriver, world.delegate(20, arrival(one)))


@pytest.mark.parametrize(
    ("effect", "started", "outcome", "code"),
    [
        (Effect.ONCE, False, "failed", "action.not_started"),
        (Effect.PURE, False, "failed", "action.not_started"),
        (Effect.ONCE, True, "unknown", "node.interrupted"),
        (Effect.PHYSICAL, True, "unknown", "node.interrupted"),
        (Effect.IDEMPOTENT, True, "failed", "node.interrupted"),
    ],
)
def test_what_a_restart_cut_short_is_reported(
    effect: Effect, started: bool, outcome: str, code: str
) -> None:
    one = dispatch(effect=effect)
    world = World((JournalRecord(one.id, arrival(one).hash, effect, started),))
    result = world.result(one)
    assert result.error is not None
    assert (result.outcome, result.error.code) == (outcome, code)
    assert kinds(world.changes) == [changes.ResultRecorded]
    assert of(commands.SendComplete, world.delegate(10, arrival(one)))


def test_a_restart_wants_a_tick_at_once_and_keeps_finished_results() -> None:
    one, two = dispatch(1), dispatch(2)
    kept = ResultRecord(one.id, b"h", "completed", {"value": 1}, None, 5)
    agent = Agent(
        AgentConfig(BEAT_MS),
        (
            JournalRecord(one.id, b"h", Effect.ONCE, True, kept),
            JournalRecord(two.id, b"h", Effect.ONCE),
        ),
    )
    assert agent.next_deadline_ms() == 0
    agent.handle(Tick(5))
    asked = agent.handle(events.SessionOpened(10, 1, 1))[1]
    assert [result.dispatch for result in asked[2].results] == [one.id, two.id]  # type: ignore[union-attr]
    assert asked[2].results[0] == kept  # type: ignore[union-attr]


def test_the_inventory_names_what_is_held_and_what_is_kept() -> None:
    world = World(slots=1)
    done, runs, waits = (dispatch(number) for number in range(3))
    world.delegate(10, arrival(done), arrival(runs), arrival(waits))
    world.finish(20, done)
    asked = world.does(events.InventoryAsked(30, "n"))
    assert asked == [commands.SendInventory("n", (runs.id, waits.id), (done.id,))]


def test_a_rebirth_tells_everything_again() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    world.finish(20, one)
    asked = world.does(events.RebirthAsked(30))
    assert kinds(asked) == [commands.SendStatus, commands.SendHeartbeat, commands.SendComplete]


def test_a_shutdown_stops_drivers_first_and_says_goodbye_last() -> None:
    world = World(slots=1)
    runs, waits = dispatch(1), dispatch(2)
    world.delegate(10, arrival(runs), arrival(waits))
    asked = world.does(events.ShutdownAsked(20))
    assert kinds(asked) == [commands.SendComplete, commands.KillDriver]
    assert world.result(waits).error.code == "action.not_started"  # type: ignore[union-attr]
    (refused,) = world.delegate(25, arrival(dispatch(3)))
    assert [fault.code for _, fault in refused.refusals] == ["node.stopping"]
    outcome, fault = commands.killed(runs, KillReason.SHUTDOWN)
    asked = world.does(events.DriverFinished(30, runs.id, outcome, None, fault))
    assert kinds(asked) == [commands.SendComplete, commands.SendStatus]
    assert asked[1].state == "offline"
    assert world.result(runs).outcome == "unknown"


def test_what_runs_may_end_by_itself_before_the_goodbye() -> None:
    world = World(slots=1)
    runs, waits = dispatch(1), dispatch(2)
    world.delegate(10, arrival(runs), arrival(waits))
    assert kinds(world.does(events.ShutdownAsked(20, 6_000))) == [commands.SendComplete]
    assert world.result(waits).error.code == "action.not_started"  # type: ignore[union-attr]
    (refused,) = world.delegate(25, arrival(dispatch(3)))
    assert [fault.code for _, fault in refused.refusals] == ["node.stopping"]
    asked = world.finish(30, runs)
    assert kinds(asked) == [commands.SendComplete, commands.SendStatus]
    assert asked[1].state == "offline"
    assert world.result(runs).outcome == "completed"
    assert world.delegate(35, arrival(dispatch(4))) == []


def test_what_runs_too_long_is_stopped_when_its_time_is_over_and_beats_go_on_till_then() -> None:
    world = World()
    one = dispatch(timeout_ms=60_000)
    world.delegate(10, arrival(one))
    world.does(events.ShutdownAsked(20, 6_000))
    asked = [command for at_ms in range(500, 6_020, 500) for command in world.does(Tick(at_ms))]
    assert commands.SendHeartbeat in kinds(asked)
    assert of(commands.KillDriver, asked) == []
    assert (world.agent.next_deadline_ms() or 0) <= 6_020
    (kill,) = of(commands.KillDriver, world.does(Tick(6_020)))
    assert (kill.dispatch.id, kill.reason) == (one.id, KillReason.SHUTDOWN)


def test_told_again_it_stops_what_runs_at_once() -> None:
    world = World()
    world.delegate(10, arrival(dispatch()))
    world.does(events.ShutdownAsked(20, 6_000))
    assert kinds(world.does(events.ShutdownAsked(30))) == [commands.KillDriver]


def test_an_idle_agent_leaves_at_once() -> None:
    assert World().does(events.ShutdownAsked(20)) == [commands.SendStatus("offline")]


def test_a_late_second_end_of_a_driver_changes_nothing() -> None:
    world = World()
    one = dispatch()
    world.delegate(10, arrival(one))
    world.finish(20, one)
    before = list(world.changes)
    assert world.finish(30, one, "failed") == []
    assert world.changes == before


def test_replaying_the_changes_gives_the_same_memory() -> None:
    world = World(slots=1)
    many = [dispatch(number) for number in range(4)]
    world.delegate(10, *(arrival(one) for one in many))
    world.finish(20, many[0])
    world.does(events.AckArrived(30, None, (many[0].id,), 1, 9))
    world.finish(40, many[1], "failed")
    replayed = AgentState()
    for change in world.changes:
        apply(replayed, change)
    assert replayed == world.agent.state
