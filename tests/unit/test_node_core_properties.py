"""Whatever comes in whatever order: no dispatch runs twice, no result is lost, replay is exact."""

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from imlmesh_node.core import changes, commands, events
from imlmesh_node.core.agent import Agent
from imlmesh_node.core.commands import killed
from imlmesh_node.core.config import AgentConfig
from imlmesh_node.core.invariants import check
from imlmesh_node.core.state import AgentState, apply
from imlmesh_protocol.states import Effect
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.dispatches import Dispatch

CLAIMS = (("pin",), ("pin", "bus"), ("bus",), ())


def dispatch(number: int) -> Dispatch:
    """The same number is always the same dispatch; numbers cover all kinds."""
    return Dispatch(
        id=f"r-1-abcd/a{number}/pi/1",
        module="fake",
        action="act",
        params={},
        effect=list(Effect)[number % 4],
        timeout_ms=3_000,
        lease_ms=6_000,
        when_cut_off="stop" if number % 3 else "finish",
        on_busy="fail" if number % 5 == 0 else "wait",
        claims=CLAIMS[number // 4 % 4],
    )


numbers = st.integers(0, 23)
moves = st.one_of(
    st.tuples(st.just("delegate"), st.lists(numbers, min_size=1, max_size=6)),
    st.tuples(st.just("old delegate"), st.lists(numbers, min_size=1, max_size=6)),
    st.tuples(st.just("finish"), st.integers(0, 10)),
    st.tuples(st.just("confirm kills"), st.none()),
    st.tuples(st.just("ack"), st.lists(numbers, max_size=6)),
    st.tuples(st.just("cancel"), st.lists(numbers, max_size=3)),
    st.tuples(st.just("wait"), st.sampled_from([1, 700, 2_500, 6_000, 61_000])),
    st.tuples(st.just("close"), st.none()),
    st.tuples(st.just("open"), st.none()),
    st.tuples(st.just("restart"), st.none()),
)


class History:
    """Drives one agent through moves and remembers what a journal and drivers would."""

    def __init__(self) -> None:
        self.at_ms = 0
        self.seq = 0
        self.beat = 0
        self.session = 1
        self.stored = AgentState()
        self.runs: list[str] = []
        self.intents: set[str] = set()
        self.ended: dict[str, str] = {}
        self.running: dict[str, Dispatch] = {}
        self.killing: dict[str, Any] = {}
        self.settled: set[str] = set()
        self.begin()

    def begin(self) -> None:
        config = AgentConfig(2_000, slots=2, held=12, floor=self.stored.floor)
        self.agent = Agent(config, copy.deepcopy(list(self.stored.records.values())))
        self.running.clear()
        self.killing.clear()
        self.does(events.SessionOpened(self.at_ms, self.session, 1))

    def does(self, event: events.Event) -> None:
        decided, asked = self.agent.handle(event)
        for change in decided:
            apply(self.stored, change)
            self.note(change)
        for command in asked:
            self.perform(command)
        check(self.agent)
        assert self.stored == self.agent.state

    def note(self, change: Any) -> None:
        if type(change) is changes.IntentRecorded:
            assert change.dispatch not in self.intents
            self.intents.add(change.dispatch)
        elif type(change) is changes.ResultRecorded:
            id = change.result.dispatch
            assert id not in self.ended
            self.ended[id] = change.result.outcome
        elif type(change) is changes.DispatchSettled:
            assert change.dispatch in self.ended

    def perform(self, command: Any) -> None:
        if type(command) is commands.RunDriver:
            one = command.dispatch
            assert one.id not in self.runs
            assert one.id in self.intents
            assert command.early == one.effect.repeatable
            self.runs.append(one.id)
            self.running[one.id] = one
        elif type(command) is commands.KillDriver:
            assert command.dispatch.id in self.running
            self.killing[command.dispatch.id] = command.reason
        elif type(command) is commands.SendComplete:
            assert all(result.dispatch in self.ended for result in command.results)
        elif type(command) is commands.SendHeartbeat:
            self.beat = command.beat

    def delegate(self, chosen: list[int], seq: int) -> None:
        arrivals = tuple(
            events.Arrival(dispatch(n), b"h%d" % n, instant=n % 4 == 3) for n in chosen
        )
        self.does(events.DelegateArrived(self.at_ms, arrivals, 1, seq))

    def move(self, name: str, value: Any) -> None:
        match name:
            case "delegate":
                # an orchestrator that has stored a result never asks again
                self.seq += 1
                self.delegate([n for n in value if dispatch(n).id not in self.settled], self.seq)
            case "old delegate":
                self.delegate(value, max(0, self.seq - 1))
            case "finish" if self.running:
                id = list(self.running)[value % len(self.running)]
                del self.running[id]
                self.killing.pop(id, None)
                self.does(events.DriverFinished(self.at_ms, id, "completed", {"n": value}))
            case "confirm kills":
                for id, reason in list(self.killing.items()):
                    del self.killing[id]
                    outcome, fault = killed(self.running.pop(id), reason)
                    self.does(events.DriverFinished(self.at_ms, id, outcome, None, fault))
            case "ack":
                self.seq += 1
                settled = tuple(dispatch(n).id for n in value if dispatch(n).id in self.ended)
                self.settled.update(settled)
                self.does(events.AckArrived(self.at_ms, self.beat, settled, 1, self.seq))
            case "cancel":
                ids = tuple(dispatch(n).id for n in value)
                self.does(events.CancelArrived(self.at_ms, ids))
            case "wait":
                self.at_ms += value
                self.does(Tick(self.at_ms))
            case "close":
                self.does(events.SessionClosed(self.at_ms, "link.down"))
            case "open":
                self.session += 1
                self.does(events.SessionOpened(self.at_ms, self.session, 1))
            case "restart":
                self.begin()


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, max_size=40))
def test_the_invariants_hold_in_every_history(steps: list[tuple[str, Any]]) -> None:
    history = History()
    for name, value in steps:
        history.move(name, value)
    # nothing is left in limbo: once drivers end, every dispatch taken has ended
    while history.running:
        history.move("finish", 0)
    history.move("wait", 61_000)
    while history.running:
        history.move("finish", 0)
    assert all(record.result is not None for record in history.agent.state.records.values())
    kept = set(history.agent.state.records)
    assert set(history.agent.unsettled_ids()) <= kept <= set(history.ended)
