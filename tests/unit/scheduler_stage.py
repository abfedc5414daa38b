"""A scheduler on a stage: nodes without networks, time that a test moves.

`Stage` posts events, checks the invariants after each one, and keeps what was decided, so that a
test reads as a short play. Every change is also replayed into a second state at the end.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from imlmesh_orchestrator.core import commands as k
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.changes import Change
from imlmesh_orchestrator.core.invariants import broken
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.core.state import ActionRecord, DispatchRecord, RunRecord
from imlmesh_protocol.errors import Fault
from imlmesh_protocol.iml.plan import Plan
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module, Undo
from imlmesh_protocol.states import Effect, Liveness
from imlmesh_protocol.tick import Tick
from imlmesh_protocol.wire.dispatches import Dispatch, decode_dispatch

HEARTBEAT_MS, LOST_MS = 2_000, 6_000


def spec(name: str, effect: Effect, impact: float = 0.1, **more: Any) -> ActionSpec:
    return ActionSpec("toy", name, {"type": "object"}, (), effect, "readonly", impact, **more)


TOY = Manifest(
    {
        "toy": Module(
            "1.0",
            {
                "look": spec("look", Effect.PURE),
                "write": spec("write", Effect.IDEMPOTENT),
                "send": spec("send", Effect.ONCE, vouch=True),
                "push": spec("push", Effect.PHYSICAL, claims=("pin:{pin}",)),
                "blast": spec("blast", Effect.ONCE, impact=0.9),
                "turn": spec(
                    "turn",
                    Effect.PHYSICAL,
                    undo=Undo("turn", {"to": "{{result.before}}", "pin": "{{params.pin}}"}),
                ),
            },
        )
    }
)


def refusals(commands: list[k.Command]) -> list[str]:
    """Codes of what was refused."""
    return [command.fault.code for command in commands if isinstance(command, k.Refuse)]


def action(name: str, *after: str, do: str = "look", **more: Any) -> dict[str, Any]:
    return {"id": name, "module": "toy", "action": do, "depends_on": list(after), **more}


def plan(*actions: Mapping[str, Any], **more: Any) -> Plan:
    return Plan.model_validate(
        {
            "protocol_version": "2.0",
            "plan_id": "play",
            "description": "",
            "execution_mode": "parallel",
            "actions": list(actions),
            **more,
        }
    )


class Stage:
    def __init__(
        self, *nodes: str, history: Iterable[Change] = (), four_eyes: bool = False
    ) -> None:
        self.scheduler = Scheduler({"IML_SITE": "garden"}, history, four_eyes=four_eyes)
        self.now_ms = 1_000_000
        self.changes: list[Change] = list(history)
        self.commands: list[k.Command] = []
        self._causes = 0
        self._beats = 0
        self.post(e.Restarted, epoch=1)
        self.post(e.BusOpened)
        for node in nodes:
            self.birth(node)

    @property
    def state(self) -> Any:
        return self.scheduler.state

    def post(self, kind: type[e.Event | Tick], /, **fields: Any) -> list[k.Command]:
        """One event; returns the commands that it led to."""
        self._causes += 1
        event = kind(self.now_ms, f"m-{self._causes}", **fields)
        changes, commands = self.scheduler.handle(event)
        self.changes += changes
        self.commands += commands
        assert broken(self.state) == []
        return commands

    def pass_time(self, by_ms: int) -> list[k.Command]:
        """Let the deadlines of this span come, each at its own time."""
        end_ms, first = self.now_ms + by_ms, len(self.commands)
        while (at_ms := self.scheduler.next_deadline_ms()) is not None and at_ms <= end_ms:
            self.now_ms = max(self.now_ms, at_ms)
            self.post(Tick)
        self.now_ms = end_ms
        return self.commands[first:]

    def birth(self, node: str, *, boot: int = 1, manifest: Manifest = TOY, **facts: Any) -> None:
        session = facts.pop("session", 1)
        journal_since = facts.pop("journal_since", 0)
        self.post(
            e.NodeBirth,
            node=node,
            alias=facts.pop("alias", node),
            boot=boot,
            session=session,
            manifest=manifest,
            facts=facts,
            profile=facts.pop("profile", "unrestricted"),
            heartbeat_ms=HEARTBEAT_MS,
            lost_ms=LOST_MS,
            journal_since=journal_since,
        )

    def beat(self, *nodes: str, held: tuple[str, ...] = ()) -> list[k.Command]:
        first = len(self.commands)
        for node in nodes:
            self._beats += 1
            self._beat(node, self._beats, held)
        return self.commands[first:]

    def beat_again(self, *nodes: str) -> list[k.Command]:
        """Under the number of the last beat, of which the node heard no answer."""
        first = len(self.commands)
        for node in nodes:
            self._beat(node, self.state.presence[node].beat, ())
        return self.commands[first:]

    def _beat(self, node: str, beat: int, held: tuple[str, ...]) -> None:
        record = self.state.nodes[node]
        where = {"node": node, "boot": record.boot, "session": record.session}
        self.post(e.HeartbeatArrived, **where, beat=beat, held=held, health={})

    def live(self, *nodes: str, for_ms: int) -> None:
        """Time passes while these nodes beat and all others are silent."""
        for _ in range(for_ms // HEARTBEAT_MS):
            self.pass_time(HEARTBEAT_MS)
            self.beat(*nodes)

    def submit(self, what: Plan, **more: Any) -> RunRecord:
        commands = self.post(e.PlanSubmitted, dice=7, plan=what, digest="d", by="eve", **more)
        replies = [c for c in commands if isinstance(c, k.Reply)]
        run: RunRecord = self.state.runs[replies[0].value]
        return run

    def dispatch_of(self, run: RunRecord, name: str) -> DispatchRecord:
        record: DispatchRecord = self.state.dispatches[run.units[name].dispatch]
        return record

    def sent(self, run: RunRecord, name: str) -> Dispatch:
        return decode_dispatch(self.dispatch_of(run, name).bin)

    def accept(self, run: RunRecord, name: str) -> None:
        dispatch = self.dispatch_of(run, name)
        pairs = ((dispatch.dispatch, dispatch.hash),)
        self.post(e.AcceptArrived, node=dispatch.node, dispatches=pairs, started=())

    def end(
        self,
        run: RunRecord,
        name: str,
        outcome: str = "completed",
        result: Any = None,
        code: str = "driver.failed",
    ) -> list[k.Command]:
        return self.report(self.dispatch_of(run, name), outcome, result, code)

    def report(
        self,
        dispatch: DispatchRecord,
        outcome: str = "completed",
        result: Any = None,
        code: str = "driver.failed",
    ) -> list[k.Command]:
        error = None if outcome == "completed" else Fault(code, "as the play says")
        result_ = e.Result(dispatch.dispatch, dispatch.hash, outcome, 5, result, error)
        return self.post(e.ResultsArrived, node=dispatch.node, results=(result_,))

    def states(self, run: RunRecord) -> dict[str, str]:
        return {name: str(record.state) for name, record in run.actions.items()}

    def units(self, run: RunRecord) -> dict[str, str]:
        """States of all units of work: actions, members, compensations."""
        return {key: str(record.state) for key, record in run.units.items()}

    def record(self, run: RunRecord, name: str) -> ActionRecord:
        return run.actions[name]

    def set_group(self, group: str, *nodes: str) -> None:
        self.post(e.GroupSet, group=group, nodes=nodes)

    def answer(self, option: str, by: str = "adam") -> list[k.Command]:
        """Answer the one open approval."""
        return self.post(e.AnswerGiven, approval=self.question(), option=option, by=by)

    def running(self, run: RunRecord) -> list[str]:
        """Keys of the units that a node works on."""
        return [key for key, unit in run.units.items() if unit.state == "running" and unit.dispatch]

    def replayed(self) -> Any:
        """The state that a restart makes of all changes."""
        return Scheduler({}, self.changes).state

    def liveness(self, node: str) -> Liveness:
        found: Liveness = self.state.nodes[node].liveness
        return found

    def question(self) -> str:
        """The id of the one open approval."""
        (approval,) = self.state.approvals
        return str(approval)
