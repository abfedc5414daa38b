"""The real scheduler lives through a case, in virtual time, and its changes tell the story.

The one rule: nodes accept at once and do as the script of the case says; nothing of the scheduler
is read but its events, changes, commands and the records of the run. Every change is kept, so that
a replay can be compared too.
"""

import heapq
from collections.abc import Callable
from typing import Any

from case import DRIVERS, HEARTBEAT_MS, LOST_MS, Call, Case
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.invariants import broken
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module, Undo
from imlmesh_protocol.states import Effect
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.dispatches import decode_dispatch
from story import Story

START_MS = 1_000_000
#: nothing of a case takes longer: three silent questions and the time of the run
HORIZON_MS = 40 * 3_600_000


def _spec(name: str) -> ActionSpec:
    driver = DRIVERS[name]
    undo = driver.get("undo")
    return ActionSpec(
        "toy",
        name,
        {"type": "object"},
        (),
        Effect(driver["effect"]),
        driver["permission"],
        driver["impact"],
        undo=undo and Undo(undo["action"], undo["params"]),
    )


SPECS = {name: _spec(name) for name in DRIVERS}


class StageRun:
    """One run of one case; `tell` lives it to its end."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.core = Scheduler(case.env)
        self.now_ms = START_MS
        self.changes: list[c.Change] = []
        #: (key, try) to the node that got it
        self.chosen: dict[tuple[str, int], str] = {}
        self.run = ""
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self._session = "default" if case.plan["session_id"] is None else case.plan["session_id"]
        self._boots = dict.fromkeys(case.nodes, 0)
        #: nodes that live, each with the dispatches that it runs
        self._running: dict[str, dict[str, bytes]] = {}
        self._keys: dict[str, tuple[str, int]] = {}
        self._asked: dict[tuple[str, str], int] = {}

    def tell(self) -> Story:
        self.post(e.Restarted, epoch=1)
        self.post(e.BusOpened)
        for node in self.case.nodes:
            self._birth(node)
            self.post(e.LabelsSet, node=node, labels=self.case.labels[node])
        for group, nodes in self.case.groups.items():
            self.post(e.GroupSet, group=group, nodes=tuple(nodes))
        for key, value in self.case.memory.items():
            self.post(e.MemorySet, session=self._session, key=key, value=value, by="eve")
        self._beat()
        self._live_until(START_MS + 4 * HEARTBEAT_MS - 1_234)
        start_ms = self.now_ms
        for what in self.case.world:
            self._at(start_ms + what["at"], lambda w=what: self._happens(w))  # type: ignore[misc]
        self._submit()
        self._live_until(start_ms + HORIZON_MS)
        return self._story()

    def post(self, kind: type[e.Event | Tick], **fields: Any) -> None:
        event = kind(self.now_ms, f"m-{len(self.changes)}", **fields)
        changes, commands = self.core.handle(event)
        self.changes += changes
        for change in changes:
            self._heard(change)
        for command in commands:
            self._obey(command)

    def _submit(self) -> None:
        case = self.case
        plan = Plan.model_validate(case.plan | {"ttl_seconds": case.ttl_s})
        starts_at_ms = self.now_ms + case.not_before if case.not_before else 0
        old = case.retried
        retried = old and e.Retried("r-0-abcd", old["kept"], old["again"], tuple(old["left"]))
        self.post(
            e.PlanSubmitted,
            dice=case.seed,
            plan=plan,
            digest="d",
            by="eve",
            starts_at_ms=starts_at_ms,
            retried=retried,
        )

    def _at(self, at_ms: int, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._agenda, (at_ms, self._order, what))

    def _live_until(self, end_ms: int) -> None:
        while not self._ended():
            due_ms = self.core.next_deadline_ms()
            at_ms = min(self._agenda[0][0], end_ms if due_ms is None else due_ms)
            if at_ms >= end_ms:
                break
            self.now_ms = max(self.now_ms, at_ms)
            if self._agenda[0][0] <= self.now_ms:
                heapq.heappop(self._agenda)[2]()
            else:
                self.post(Tick)
        self.now_ms = end_ms

    def _ended(self) -> bool:
        return bool(self.run) and self.core.state.runs[self.run].ended

    def _birth(self, node: str) -> None:
        self._boots[node] += 1
        self._running[node] = {}
        offered = {name: SPECS[name] for name in DRIVERS if name in self.case.offers(node)}
        self.post(
            e.NodeBirth,
            node=node,
            alias=node,
            boot=self._boots[node],
            session=1,
            manifest=Manifest({"toy": Module("1.0", offered)}),
            facts={},
            profile="local_worker" if node in self.case.low_profile else "unrestricted",
            heartbeat_ms=HEARTBEAT_MS,
            lost_ms=LOST_MS,
        )

    def _beat(self) -> None:
        for node in list(self._running):
            self._beat_of(node)
        self._at(self.now_ms + HEARTBEAT_MS, self._beat)

    def _beat_of(self, node: str) -> None:
        where = {"node": node, "boot": self._boots[node], "session": 1}
        held = tuple(self._running[node])
        self.post(e.HeartbeatArrived, **where, beat=self.now_ms, held=held, health={})

    def _happens(self, what: dict[str, Any]) -> None:
        do, node = what["do"], what.get("node", "")
        where = {"node": node, "boot": self._boots.get(node, 0), "session": 1}
        if do == "silent":
            # its last word, so that the silence is counted from now
            self._beat_of(node)
        if do in ("left", "silent"):
            del self._running[node]
            self.post(e.NodeLeft if do == "left" else e.NodeGone, **where)
        elif do == "return":
            self._birth(node)
        elif do == "group":
            self.post(e.GroupSet, group=what["group"], nodes=tuple(what["nodes"]))
        elif do == "label":
            self.post(e.LabelsSet, node=node, labels={what["name"]: what["value"]})
        else:
            kind = {"cancel": e.CancelAsked, "pause": e.PauseAsked, "resume": e.ResumeAsked}[do]
            self.post(kind, run=self.run, by="eve")

    def _heard(self, change: c.Change) -> None:
        if isinstance(change, c.RunCreated):
            self.run = change.run
        elif isinstance(change, c.DispatchPlanned):
            number = 1 + sum(key == change.action for key, _ in self.chosen)
            self.chosen[change.action, number] = change.node
            self._keys[change.dispatch] = (change.action, number)
        elif isinstance(change, c.ApprovalAsked):
            about = (change.kind, change.action)
            self._asked[about] = self._asked.get(about, 0) + 1
            answer = self.case.answer(*about, self._asked[about], change.options)
            if answer:
                after, option = answer
                fields = {"approval": change.approval, "option": option, "by": "eve"}
                self._at(self.now_ms + after, lambda: self.post(e.AnswerGiven, **fields))

    def _obey(self, command: k.Command) -> None:
        if isinstance(command, k.SendDispatch):
            self._run(command)
        elif isinstance(command, k.AskInventory) and command.node in self._running:
            held = tuple(self._running[command.node])
            fields = {"node": command.node, "nonce": command.nonce, "held": held}
            self._at(self.now_ms, lambda: self.post(e.InventoryArrived, **fields, unsettled=()))
        elif isinstance(command, k.SendCancel):
            for dispatch in command.dispatches:
                call = self._call(dispatch)
                ends = ("cancelled", "action.cancelled")
                self._report_later(command.node, dispatch, call.cancel_after, *ends)

    def _call(self, dispatch: str) -> Call:
        return self.case.call(*self._keys[dispatch])

    def _run(self, command: k.SendDispatch) -> None:
        record = self.core.state.dispatches[command.dispatch]
        self._running[command.node][command.dispatch] = record.hash
        call = self._call(command.dispatch)
        if call.outcome != "rejected":
            pair = (command.dispatch, record.hash)
            # nobody is told that a driver runs: the rules know of no copies of what is slow
            fields = {"node": command.node, "dispatches": (pair,), "started": ()}
            self._at(self.now_ms, lambda: self.post(e.AcceptArrived, **fields))
        outcome = call.outcome
        if outcome == "unknown" and record.effect.repeatable:
            # a node only says that it does not know where that matters
            outcome = "failed"
        self._report_later(command.node, command.dispatch, call.after, outcome, call.value)

    def _report_later(self, node: str, dispatch: str, after: int, outcome: str, value: Any) -> None:
        def report() -> None:
            digest = self._running.get(node, {}).pop(dispatch, None)
            if digest is None:
                return
            if outcome == "rejected":
                refusals = ((dispatch, Fault(value, "as the script says")),)
                self.post(e.RejectArrived, node=node, refusals=refusals)
                return
            good = outcome == "completed"
            result, fault = (value, None) if good else (None, Fault(value, "as the script says"))
            ended = e.Result(dispatch, digest, outcome, after, result, fault)
            self.post(e.ResultsArrived, node=node, results=(ended,))

        self._at(self.now_ms + after, report)

    def _story(self) -> Story:
        state = self.core.state
        run = state.runs[self.run]
        ended = [change for change in self.changes if isinstance(change, c.RunEnded)]
        pending, unconfirmed = (
            (ended[0].compensation_pending, ended[0].unconfirmed) if ended else (0, 0)
        )
        fault = ended[0].fault if ended else None
        return Story(
            run=(str(run.state), fault.code if fault else ""),
            flags={"compensation_pending": bool(pending), "unconfirmed": bool(unconfirmed)},
            units={
                key: (str(unit.state), unit.fault.code if unit.fault else "")
                for key, unit in run.units.items()
            },
            calls=self._calls(),
            compensations=[
                plan[0]
                for change in self.changes
                if isinstance(change, c.CompensationsPlanned)
                for plan in change.compensations
            ],
            questions=self._questions(),
            memory={
                key: v for (session, key), v in state.memory.items() if session == self._session
            },
        )

    def _calls(self) -> dict[str, list[tuple[str, Any]]]:
        calls: dict[str, list[tuple[str, Any]]] = {}
        for change in self.changes:
            if isinstance(change, c.DispatchPlanned):
                params = decode_dispatch(change.bin).params
                calls.setdefault(change.action, []).append((change.node, params))
        return calls

    def _questions(self) -> list[tuple[str, str, str]]:
        asked: dict[str, tuple[str, str, str]] = {}
        for change in self.changes:
            if isinstance(change, c.ApprovalAsked):
                asked[change.approval] = (change.kind, change.action, "")
            elif isinstance(change, c.ApprovalClosed):
                given = str(change.state) in ("approved", "denied")
                outcome = change.option if given else str(change.state)
                asked[change.approval] = (*asked[change.approval][:2], str(outcome))
        return sorted(asked.values())

    def problems(self) -> list[str]:
        """Broken invariants, and what a replay of the changes gives otherwise."""
        replayed = Scheduler(self.case.env, self.changes).state
        state = self.core.state
        names = ("nodes", "runs", "dispatches", "approvals", "memory", "active")
        return broken(state) + [
            f"a replay gives other {name}"
            for name in names
            if getattr(replayed, name) != getattr(state, name)
        ]
