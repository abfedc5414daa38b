"""Permits in the orchestrator's core: who gets one, that its node holds it, what comes of its reports."""

import dataclasses
from hashlib import sha256
from itertools import permutations
from typing import Any

import pytest

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core import permit_changes as p
from imlmesh_orchestrator.core import permit_events as pe
from imlmesh_orchestrator.core.permit_state import PermitRecord
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.views.nodes import admission_view, live_dispatches
from imlmesh_protocol import limits
from imlmesh_protocol.errors import Fault, ProtocolError
from imlmesh_protocol.permits import PermitAction as Action
from imlmesh_protocol.permits import Rule, dispatch_of, packed_dispatch
from imlmesh_protocol.states import Admission, Effect
from imlmesh_protocol.wire import permits as wire_permits
from imlmesh_protocol.wire.permits import permit_of
from scheduler_stage import Stage, action, plan, refusals

HOUR_MS = 3_600_000


class Play(Stage):
    """A stage on which nodes have permits. Reports are (action, attempt, outcome, code)."""

    def ask(self, node: str = "pi", **more: Any) -> list[k.Command]:
        names, params = more.pop("names", ("a", "b")), more.pop("params", {})
        after = {"b": ("a",)}
        made = tuple(
            Action(name, "toy", "send", params, Effect.ONCE, 60_000, after.get(name, ()))
            for name in names
        )
        document = plan(*(action(name, *after.get(name, ()), do="send") for name in names))
        terms = {"budget": 3, "for_ms": HOUR_MS, "rule": Rule("every", 60_000), **more}
        fields = {"mesh": "home", "node": node, "plan": document, "digest": "d", "actions": made}
        return self.post(pe.PermitAsked, dice=7, by="eve", **fields, **terms)

    def grant(self, node: str = "pi", **more: Any) -> PermitRecord:
        [reply] = [one for one in self.ask(node, **more) if isinstance(one, k.Reply)]
        record: PermitRecord = self.state.permits[reply.value]
        return record

    def withdraw(self, permit: str) -> list[k.Command]:
        return self.post(pe.PermitWithdrawAsked, permit=permit, by="eve")

    def result(
        self,
        record: PermitRecord,
        number: int,
        name: str,
        outcome: str = "completed",
        *,
        attempt: int = 1,
        code: str = "driver.failed",
    ) -> e.Result:
        permit = record.permit
        [what] = [one for one in permit.actions if one.id == name]
        dispatch = dispatch_of(permit, number, what, attempt)
        error = None if outcome == "completed" else Fault(code, "as the play says")
        digest = sha256(packed_dispatch(dispatch)).digest()
        return e.Result(dispatch.id, digest, outcome, 5, {"of": name}, error)

    def told(self, *results: e.Result, node: str = "pi") -> tuple[str, ...]:
        """What is settled with these."""
        commands = self.post(e.ResultsArrived, node=node, results=results)
        return tuple(id for one in commands if isinstance(one, k.SendAck) for id in one.settled)

    def kept(self, kind: type[c.Change]) -> list[Any]:
        return [change for change in self.changes if type(change) is kind]


def sent(commands: list[k.Command]) -> list[str]:
    """Ids of permits that go out."""
    return [permit_of(one.body).id for one in commands if isinstance(one, k.SendPermit)]


def dropped(commands: list[k.Command]) -> list[str]:
    return [name for one in commands if isinstance(one, k.DropPermits) for name in one.permits]


def test_a_permit_goes_out_and_again_until_its_node_tells_that_it_holds_it() -> None:
    play = Play("pi")
    commands = play.ask()
    [permit] = play.state.permits
    assert sent(commands) == [permit]
    play.live("pi", for_ms=limits.PERMIT_AGAIN_MS + 2_000)
    assert sent(play.commands) == [permit] * 2
    birth(play, {permit: 0})
    play.live("pi", for_ms=3 * limits.PERMIT_AGAIN_MS)
    assert sent(play.commands) == [permit] * 2


def test_a_node_that_refuses_it_and_is_born_again_and_again_hears_of_it_once_in_a_while() -> None:
    play = Play("pi")
    play.grant()
    for _ in range(20):
        birth(play, {})
    assert len(sent(play.commands)) == 1, "each birth is its answer to what was brought"
    first = len(play.commands)
    play.live("pi", for_ms=4 * limits.PERMIT_AGAIN_MS)
    assert len(sent(play.commands[first:])) in (3, 4)


def test_a_node_that_goes_and_comes_still_gets_it() -> None:
    play = Play("pi")
    [permit] = sent(play.ask())
    play.pass_time(3 * limits.PERMIT_AGAIN_MS)
    birth(play, {})
    first = len(play.commands)
    play.live("pi", for_ms=limits.PERMIT_AGAIN_MS + 2_000)
    assert sent(play.commands[first:]) == [permit]


def test_a_node_that_is_away_gets_it_when_it_comes_and_drops_what_is_not_its() -> None:
    play = Play("pi")
    play.pass_time(60_000)
    commands = play.ask()
    assert sent(commands) == []
    [permit] = play.state.permits
    first = len(play.commands)
    birth(play, {"p-9-zzzz": 3})
    commands = play.commands[first:]
    assert (sent(commands), dropped(commands)) == ([permit], ["p-9-zzzz"])


@pytest.mark.parametrize("admission", [Admission.REVOKED, Admission.QUARANTINED])
def test_a_node_that_is_here_hears_to_drop_its_permits_when_it_is_put_out(
    admission: Admission,
) -> None:
    play = Play("pi")
    permit = play.grant().permit.id
    birth(play, {permit: 0})
    commands = play.post(
        e.AdmissionAsked, node="pi", admission=admission, reason="stolen", by="eve", for_ms=0
    )
    assert set(dropped(commands)) == {permit}


def birth(play: Play, permits: dict[str, int], *, boot: int = 1, since: int = 0) -> list[k.Command]:
    return play.post(
        e.NodeBirth,
        node="pi",
        alias="pi",
        boot=boot,
        session=1,
        manifest=play.state.nodes["pi"].manifest,
        facts={},
        profile="unrestricted",
        heartbeat_ms=2_000,
        lost_ms=6_000,
        journal_since=since,
        permits=permits,
    )


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_each_run_is_recorded_once_whatever_the_order_and_the_repeats(
    order: tuple[int, ...],
) -> None:
    play = Play("pi")
    record = play.grant()
    results = [play.result(record, n, name) for n in (1, 2) for name in ("a", "b")]
    for index in order:
        play.told(results[index])
        play.told(results[index])
    assert record.reported == {1, 2}
    runs = [change.run for change in play.kept(c.RunCreated)]
    assert sorted(runs) == [f"{record.permit.id}-1", f"{record.permit.id}-2"]
    assert {change.by for change in play.kept(c.RunCreated)} == {record.permit.id}
    ends = [change.dispatch for change in play.kept(c.ResultTaken)]
    assert sorted(ends) == sorted(result.dispatch for result in results)
    assert [str(change.state) for change in play.kept(c.RunEnded)] == ["completed"] * 2
    assert play.kept(c.ResultKept) == []


def test_nothing_is_settled_before_the_run_is_whole_and_all_of_it_then() -> None:
    play = Play("pi")
    record = play.grant()
    a, b = (play.result(record, 1, name) for name in ("a", "b"))
    assert play.told(a) == ()
    assert play.kept(c.RunCreated) == []
    assert play.told(b) == (a.dispatch, b.dispatch)
    assert play.told(a, b) == (a.dispatch, b.dispatch), "an answer may have been lost"
    assert len(play.kept(c.RunCreated)) == 1


def test_a_restart_in_between_loses_nothing_and_repeats_nothing() -> None:
    play = Play("pi")
    record = play.grant()
    a, b = (play.result(record, 1, name) for name in ("a", "b"))
    play.told(a)
    again = Play("pi", history=play.changes)
    again.told(b)
    assert again.kept(c.RunCreated) == []
    again.told(a)
    assert len(again.kept(c.RunCreated)) == 1
    # a store gives ended runs back no more
    left = [change for change in again.changes if not isinstance(change, c.RunChange)]
    third = Play("pi", history=left)
    assert third.told(a, b) == (a.dispatch, b.dispatch)
    assert third.kept(c.RunCreated) == []


def test_a_replay_gives_the_same_permits() -> None:
    play = Play("pi")
    record = play.grant()
    play.told(play.result(record, 1, "a"), play.result(record, 1, "b"))
    play.withdraw(record.permit.id)
    replayed = Scheduler({}, play.changes).state
    assert replayed.permits == play.state.permits
    assert replayed.permit_counter == 1


@pytest.mark.parametrize("limit", ["PERMIT_ACTIONS", "PERMIT_BUDGET", "PERMIT_BYTES"])
def test_a_lowered_limit_does_not_refuse_what_was_granted(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    play = Play("pi")
    record = play.grant()
    monkeypatch.setattr(wire_permits, limit, 1)
    with pytest.raises(ProtocolError):
        permit_of(record.body)
    assert Scheduler({}, play.changes).state.permits == {record.permit.id: record}


def test_what_failed_unknown_or_again_is_recorded_as_it_was() -> None:
    play = Play("pi")
    record = play.grant()
    first = play.result(record, 1, "a", "failed", code="action.not_started")
    second = play.result(record, 1, "a", "unknown", attempt=2, code="node.interrupted")
    assert play.told(second) == (), "the first attempt is missing"
    play.told(first)
    run = play.state.runs[f"{record.permit.id}-1"]
    assert play.states(run) == {"a": "failed", "b": "skipped"}
    assert str(run.state) == "failed"
    [ended] = play.kept(c.RunEnded)
    assert ended.fault.code == "node.interrupted"
    states = {d.dispatch.rsplit("/", 1)[1]: str(d.state) for d in play.state.dispatches.values()}
    assert states == {"1": "failed", "2": "unknown"}


def test_a_withdrawal_that_came_too_late_does_not_undo_what_happened() -> None:
    play = Play("pi")
    record = play.grant()
    play.withdraw(record.permit.id)
    play.told(play.result(record, 1, "a"), play.result(record, 1, "b"))
    order = [type(change) for change in play.changes]
    assert order.index(p.PermitEnded) < order.index(p.PermitRunReported)
    assert record.reported == {1}


@pytest.mark.parametrize(
    "wrong", ["beyond the budget", "of another", "hash", "unknown permit", "no action"]
)
def test_what_no_permit_allows_is_evidence_and_changes_nothing(wrong: str) -> None:
    play = Play("pi", "pi-2")
    record = play.grant(names=("a",))
    result = play.result(record, 4 if wrong == "beyond the budget" else 1, "a")
    sender = "pi"
    if wrong == "of another":
        sender = "pi-2"
        result.dispatch = result.dispatch.replace("/pi/", "/pi-2/")
    elif wrong == "hash":
        result.hash = b"another"
    elif wrong == "unknown permit":
        result.dispatch = result.dispatch.replace(record.permit.id, "p-8-zzzz")
    elif wrong == "no action":
        result.dispatch = result.dispatch.replace("/a/", "/z/")
    assert play.told(result, node=sender) == (result.dispatch,)
    assert play.kept(c.RunCreated) == []
    assert [change.dispatch for change in play.kept(c.ResultKept)] == [result.dispatch]
    assert record.reported == set()


def test_a_node_cannot_speak_of_the_runs_of_another() -> None:
    play = Play("pi", "pi-2")
    record = play.grant(names=("a",))
    assert play.told(play.result(record, 1, "a"), node="pi-2") == ()
    [refused] = [one for one in play.commands if isinstance(one, k.ReportRefusal)]
    assert refused.fault.code == "dispatch.unknown"
    assert play.kept(c.RunCreated) == []


def gathered(play: Play) -> int:
    return sum(len(one.results) for one in play.state.reports.values())


def test_reports_that_are_never_whole_are_bounded() -> None:
    play = Play("pi")
    record = play.grant(budget=1_000)
    many = [play.result(record, n, "a") for n in range(1, limits.PERMIT_REPORTS + 50)]
    play.told(*many)
    assert gathered(play) == limits.PERMIT_REPORTS + 1, "and that of the run that waits longest"
    assert len(play.state.reports) == limits.PERMIT_REPORTS + 1
    birth(play, {})
    assert play.state.reports == {}


def test_whatever_waits_for_its_run_each_run_becomes_whole() -> None:
    """A node that was away for long sends all its small results first, and again what is not settled."""
    play = Play("pi")
    count = 2 * limits.PERMIT_REPORTS
    record = play.grant(budget=count)
    told = [play.result(record, n, name) for name in ("a", "b") for n in range(1, count + 1)]
    play.told(*told[:count])
    for result in told[count:]:
        play.told(result)
    settled = {id for one in play.commands if isinstance(one, k.SendAck) for id in one.settled}
    play.told(*[result for result in told if result.dispatch not in settled])
    assert record.reported == set(range(1, count + 1))
    assert play.state.reports == {}


def test_a_run_of_large_results_becomes_whole_beside_others() -> None:
    play = Play("pi")
    names = tuple(f"a{n}" for n in range(18))
    record = play.grant(names=names)
    large = b"x" * (limits.RESULT_BYTES - 16)
    first, second = (
        [dataclasses.replace(play.result(record, n, each), result=large) for each in names]
        for n in (1, 2)
    )
    play.told(*first[:-1])
    play.told(*second)
    held = sum(one.size for one in play.state.reports.values() if len(one.results) < 17)
    assert limits.PERMIT_REPORTS_BYTES - limits.RESULT_BYTES < held <= limits.PERMIT_REPORTS_BYTES
    assert play.told(first[-1]) == tuple(one.dispatch for one in first)
    assert set(play.told(*second)) == {one.dispatch for one in second}


def test_a_repeat_takes_no_more_room_than_the_first() -> None:
    play = Play("pi")
    record = play.grant()
    first = play.result(record, 1, "a")
    play.told(first)
    play.told(dataclasses.replace(first, result=b"x" * limits.RESULT_BYTES))
    play.told(play.result(record, 1, "b"))
    [kept, _] = play.kept(c.ResultTaken)
    assert kept.result == first.result


@pytest.mark.parametrize(
    "admission", [Admission.CORDONED, Admission.DRAINING, Admission.QUARANTINED]
)
def test_who_may_get_no_work_drops_its_permits_until_it_is_open_again(admission: Admission) -> None:
    play = Play("pi")
    record = play.grant()
    birth(play, {record.permit.id: 2})
    play.beat("pi")
    decided = {"node": "pi", "reason": "", "by": "eve"}
    commands = play.post(e.AdmissionAsked, admission=admission, **decided)
    assert dropped(commands) == [record.permit.id]
    birth(play, {})
    commands = play.post(e.AdmissionAsked, admission=Admission.OPEN, **decided)
    assert sent(commands) == [record.permit.id]
    assert not record.ended


@pytest.mark.parametrize("admission", [Admission.CORDONED, Admission.DRAINING])
def test_what_has_begun_by_permit_goes_on_and_counts_while_its_node_gets_nothing_new(
    admission: Admission,
) -> None:
    play = Play("pi")
    record = play.grant()
    begun = play.result(record, 1, "a").dispatch
    decided = {"node": "pi", "reason": "", "by": "eve"}
    play.post(e.AdmissionAsked, admission=admission, **decided)
    # it comes back in the middle of a run, of which its birth says nothing yet
    assert dropped(birth(play, {record.permit.id: 1})) == []
    assert dropped(play.beat("pi", held=(begun,))) == []
    known = play.state.nodes["pi"]
    assert live_dispatches(play.state, known) == 1
    assert admission_view(play.state, "pi", 0)["decision"]["drained"] is False
    assert dropped(play.beat("pi")) == [record.permit.id]
    assert live_dispatches(play.state, known) == 0
    assert admission_view(play.state, "pi", 0)["decision"]["drained"] is True


def test_a_run_that_goes_on_keeps_no_permit_that_was_withdrawn() -> None:
    play = Play("pi")
    record = play.grant()
    birth(play, {record.permit.id: 1})
    play.beat("pi", held=(play.result(record, 1, "a").dispatch,))
    assert dropped(play.withdraw(record.permit.id)) == [record.permit.id]


def test_a_run_whose_results_came_partly_in_quarantine_becomes_whole_after_it() -> None:
    play = Play("pi")
    record = play.grant()
    decided = {"node": "pi", "reason": "", "by": "eve"}
    play.post(e.AdmissionAsked, admission=Admission.QUARANTINED, **decided)
    a, b = (play.result(record, 1, name) for name in ("a", "b"))
    assert play.told(a) == (), "its node keeps it and sends it again"
    assert play.told(a, b) == ()
    assert play.kept(c.ResultKept) == []
    play.post(e.AdmissionAsked, admission=Admission.OPEN, **decided)
    assert play.told(b) == ()
    assert play.told(a) == (b.dispatch, a.dispatch)
    assert record.reported == {1}


def test_permits_end_with_their_time_their_node_or_its_journal() -> None:
    play = Play("pi", "pi-2")
    short, lost = play.grant(for_ms=10_000), play.grant()
    gone = play.grant("pi-2")
    play.live("pi", "pi-2", for_ms=12_000)
    assert short.ended == p.EXPIRED
    play.post(e.AdmissionAsked, node="pi-2", admission=Admission.REVOKED, reason="", by="eve")
    assert gone.ended == p.REVOKED
    birth(play, {}, boot=5, since=5)
    assert lost.ended == p.JOURNAL_LOST
    assert sent(play.commands[-5:]) == [], "the count is lost with the journal"


def test_a_permit_ends_when_an_older_journal_is_put_in_the_place_of_its_own() -> None:
    play = Play("pi")
    older, whole, idle, before, unused = (play.grant() for _ in range(5))
    for record in (older, whole, before):
        play.told(*(play.result(record, n, name) for n in (1, 2) for name in ("a", "b")))
    first = len(play.commands)
    birth(play, {older.permit.id: 1, whole.permit.id: 2, idle.permit.id: 0}, boot=2)
    assert (older.ended, whole.ended, idle.ended) == (p.JOURNAL_LOST, "", "")
    assert dropped(play.commands[first:])[:1] == [older.permit.id]
    # the journal may be from before the permit came: it would begin to count anew
    assert (before.ended, unused.ended) == (p.JOURNAL_LOST, "")
    assert sent(play.commands[first:]) == [unused.permit.id]


def test_a_node_that_restarts_in_quarantine_keeps_its_permits_for_later() -> None:
    play = Play("pi")
    record = play.grant(names=("a",))
    play.told(play.result(record, 1, "a"))
    decided = {"node": "pi", "reason": "", "by": "eve"}
    play.post(e.AdmissionAsked, admission=Admission.QUARANTINED, **decided)
    birth(play, {}, boot=2)
    play.post(e.AdmissionAsked, admission=Admission.OPEN, **decided)
    assert not record.ended


def test_a_birth_that_the_broker_kept_ends_no_permit() -> None:
    play = Play("pi")
    record = play.grant(names=("a",))
    birth(play, {record.permit.id: 0}, boot=2)
    play.told(play.result(record, 1, "a"))
    birth(play, {record.permit.id: 0}, boot=2)
    assert not record.ended


def test_a_reported_run_that_is_told_with_another_outcome_is_evidence() -> None:
    play = Play("pi")
    record = play.grant(names=("a",))
    told, other = play.result(record, 1, "a"), play.result(record, 1, "a", "failed")
    for result in (told, told, other, other):
        assert play.told(result) == (told.dispatch,)
    assert [change.outcome for change in play.kept(c.ResultKept)] == ["failed"]
    assert len(play.kept(c.RunCreated)) == 1


@pytest.mark.parametrize(
    ("ready", "asked", "code"),
    [
        (None, {"node": "nobody"}, "permit.node"),
        (Admission.CORDONED, {}, "permit.node"),
        (Admission.QUARANTINED, {}, "permit.node"),
    ],
)
def test_who_cannot_have_one(ready: Admission | None, asked: dict[str, Any], code: str) -> None:
    play = Play("pi")
    if ready is not None:
        play.post(e.AdmissionAsked, node="pi", admission=ready, reason="", by="eve")
    assert refusals(play.ask(**asked)) == [code]
    assert play.state.permits == {}


TINY = {"many": [0] * 10_500}


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"rule": Rule("on", source="s", value=float("nan"))}, "permit.rule"),
        ({"rule": Rule("on", source="s", value=1 << 70)}, "permit.rule"),
        ({"rule": Rule("on", source="s", value="\ud800")}, "permit.rule"),
        ({"params": {"site": "\udcff"}}, "permit.unfit"),
        ({"params": TINY}, "permit.too_large"),
        ({"params": {"long": "x" * limits.PERMIT_BYTES}}, "permit.too_large"),
    ],
)
def test_what_could_not_be_read_again_is_refused_before_anything_changes(
    asked: dict[str, Any], code: str
) -> None:
    play = Play("pi")
    before = len(play.changes)
    assert refusals(play.ask(**asked)) == [code]
    assert len(play.changes) == before
    assert play.state.permits == {}
    assert play.grant().permit.id, "the next one is not hindered"


def test_permits_are_bounded_by_node_and_ended_ones_are_forgotten() -> None:
    play = Play("pi")
    for _ in range(limits.PERMITS_NODE):
        play.grant(for_ms=10_000)
    assert refusals(play.ask()) == ["permit.too_many"]
    play.live("pi", for_ms=12_000)
    play.grant()
    assert len(play.state.permits) == limits.PERMITS_NODE + 1, "what is late still finds it"
    play.now_ms += limits.PERMIT_KEPT_MS + 2 * HOUR_MS
    last = play.grant()
    assert set(play.state.permits) == {last.permit.id}


def test_what_was_withdrawn_counts_until_its_time_is_over() -> None:
    """Its node keeps how often it ran, so that it may come again."""
    play = Play("pi")
    for _ in range(limits.PERMITS_NODE_KEPT):
        play.withdraw(play.grant(for_ms=10_000).permit.id)
    assert refusals(play.ask()) == ["permit.too_many"]
    play.live("pi", for_ms=12_000)
    assert play.grant()


def test_what_was_ended_or_never_was_cannot_be_withdrawn() -> None:
    play = Play("pi")
    record = play.grant()
    assert refusals(play.withdraw("p-9-zzzz")) == ["permit.not_found"]
    play.withdraw(record.permit.id)
    assert refusals(play.withdraw(record.permit.id)) == ["permit.ended"]


def test_work_by_permit_that_a_node_tells_of_is_not_stopped() -> None:
    play = Play("pi")
    record = play.grant()
    held = play.result(record, 1, "a").dispatch
    [asked] = [one for one in play.commands if isinstance(one, k.AskInventory)][-1:]
    commands = play.post(
        e.InventoryArrived,
        node="pi",
        nonce=asked.nonce,
        held=(held, "r-9-zzzz/a/pi/1"),
        unsettled=(),
    )
    assert [one.dispatches for one in commands if isinstance(one, k.SendCancel)] == [
        ("r-9-zzzz/a/pi/1",)
    ]


def test_a_doubted_ledger_gives_no_permit() -> None:
    play = Play("pi")
    play.post(e.SealContradicted, witness="pi", size=9, root=b"r" * 32)
    assert refusals(play.ask()) == ["ledger.doubted"]
