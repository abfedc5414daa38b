"""What must hold in every world, and who looks at it: the invariants of DESIGN section 5.

| sentence of the design                            | where it is asked                               |
|---------------------------------------------------|-------------------------------------------------|
| no dispatch runs twice on a node                  | `driver_starts`                                 |
| no two live leases on one claim                   | `leases`, and the node's `invariants.check`     |
| nothing leaves before its commit, but for how     | `driver_starts`, `node_says`, `sends`, `settles` |
|   repeatable work ended                           |                                                 |
| a quarantined node gets nothing new               | `_planned`, `sends`                             |
| every run ends or says what it waits for          | `invariants.broken`, `World.check_end`          |
| replaying the store gives the same state          | `replays`, `SimNode.problems`                   |
| a once or physical effect happens at most once    | `effects_once`                                  |
|   without a person's answer                       |                                                 |
| one unit of work has one live dispatch            | `invariants.broken`                             |
| work that must stop when cut off is nowhere else  | `leases`                                        |
|   before it has stopped                           |                                                 |
| nor begins once its lease is over                 | `driver_starts`                                 |
| lost work is looked at until it moves             | `unlooked`, `World.check_end`                   |
| what ended stays as it ended                      | `ends_stay`                                     |
| a result counts for the attempt that gave it      | `_taken`                                        |
| a node takes nothing of an older epoch            | `journalled`                                    |
| no loss while our own connection is young         | `_lost`                                         |
| the mesh quarantines only for what a node did     | `_admitted`                                     |
| poison goes to three nodes at most, and is named  | `NodeChecks`                                    |
| one crash of what may be repeated decides nothing | `NodeChecks`                                    |
| who is killed for another costs nobody anything   | `NodeChecks`                                    |
| who hears no answer gets nothing new              | `NodeChecks`                                    |
| who comes and goes gets nothing new for a while   | `NodeChecks`                                    |

The first seven are the design's list, the others are rules of the same section.
The one rule: a check knows only what was committed, sent, started and reported, so a core that is
wrong about itself does not convince it.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from imlmesh_node.core import commands as nk
from imlmesh_node.core.changes import Change as NodeChange
from imlmesh_node.core.changes import DispatchTaken, ResultRecorded
from imlmesh_orchestrator.core import admission_changes as a
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core.asking import SYSTEM
from imlmesh_orchestrator.core.deadlines import Deadline
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.core.state import State
from imlmesh_protocol.states import (
    ACTION_ENDED,
    NOT_BELIEVED,
    RUN_ENDED,
    ActionState,
    Admission,
    Liveness,
)
from imlmesh_protocol.wire.dispatches import decode_dispatch
from node_checks import NodeChecks
from permits import PermitChecks, is_by_permit, unit_of

if TYPE_CHECKING:
    from world import World

_AWAY = (Liveness.LOST, Liveness.OFFLINE)
_UNDOABLE = (ActionState.COMPLETED, ActionState.FAILED)


class Checks:
    """`breaches` are sentences; none while all is well."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.breaches: list[str] = []
        #: (run, unit) to how often the effect of a once or physical unit of work began
        self.effects: Counter[tuple[str, str]] = Counter()
        #: (run, unit) to how often a person or the plan's own retry asked to run it again
        self.reruns: Counter[tuple[str, str]] = Counter()
        #: unit of work by dispatch
        self.unit_of: dict[str, tuple[str, str]] = {}
        #: nodes that were made to misbehave, for which alone the mesh may quarantine
        self.guilty: set[str] = set()
        self._started: Counter[tuple[str, str]] = Counter()
        self._planned_bins: dict[str, tuple[str, bytes]] = {}
        #: the newest dispatch of a unit, and why older ones were ended
        self._newest: dict[tuple[str, str], str] = {}
        self._given_up: dict[str, str] = {}
        self._told: set[str] = set()
        self._asked: dict[str, tuple[str, str]] = {}
        self._admissions: dict[str, Admission] = {}
        self._ends: dict[tuple[str, str], Any] = {}
        self.of_nodes = NodeChecks(self.breach, self._admissions)
        #: by node: what its journal ever took, and the ends that it stored or told early of each dispatch
        self._journalled: set[tuple[str, str]] = set()
        self._reported: dict[tuple[str, str], set[str]] = defaultdict(set)
        self._epochs: dict[str, int] = {}
        self.permits = PermitChecks(world, self)
        self._after: dict[type, Callable[[Any], None]] = {
            c.DispatchPlanned: self._planned,
            c.DispatchEnded: self._ended,
            c.ResultTaken: self._taken,
            c.ResultKept: lambda change: self._told.add(change.dispatch),
            c.RetryPlanned: self._retried,
            c.ApprovalAsked: self._question,
            c.ApprovalClosed: self._answered,
            a.AdmissionChanged: self._admitted,
        }

    # what the orchestrator does

    def decided(self, changes: Iterable[c.Change]) -> None:
        """These are not stored yet, and a full disk may let them wait for long."""
        for change in changes:
            if isinstance(change, c.LivenessChanged):
                self._lost(change)

    def committed(self, changes: Iterable[c.Change], state: State) -> None:
        """These are stored now."""
        runs = set()
        for change in changes:
            self.permits.committed(change)
            after = self._after.get(type(change))
            if after is not None:
                after(change)
            # what a node did by permit was given to it by nobody here
            if not is_by_permit(change):
                self.of_nodes.committed(change, state, self.world.now_ms)
            if isinstance(change, c.RunChange):
                runs.add(change.run)
        for run in runs:
            self.ends_stay(run, state)

    def _planned(self, change: c.DispatchPlanned) -> None:
        unit = (change.run, change.action)
        own = unit_of(change.dispatch) is not None  # it was done before this tells of it
        if not own and self._admissions.get(change.node, Admission.OPEN) is not Admission.OPEN:
            self.breach(f"{change.node} got {change.dispatch} and is not open")
        self.unit_of[change.dispatch] = self.unit_of.get(change.dispatch, unit)
        self._planned_bins[change.dispatch] = (change.node, change.bin)
        self._newest[unit] = change.dispatch

    def _ended(self, change: c.DispatchEnded) -> None:
        self._given_up[change.dispatch] = change.fault.code if change.fault else ""

    def _taken(self, change: c.ResultTaken) -> None:
        node, _ = self._planned_bins[change.dispatch]
        self._told.add(change.dispatch)
        reported = self._reported[node, change.dispatch]
        if change.state not in reported or self.unit_of[change.dispatch][1] != change.action:
            self.breach(
                f"{change.dispatch} counts as {change.state} for {change.action}; "
                f"{node} reported {sorted(reported)}"
            )

    def _retried(self, change: c.RetryPlanned) -> None:
        self.reruns[change.run, change.action] += 1

    def _question(self, change: c.ApprovalAsked) -> None:
        self._asked[change.approval] = (change.run, change.action)

    def _answered(self, change: c.ApprovalClosed) -> None:
        if change.option == "rerun":
            self.reruns[self._asked[change.approval]] += 1

    def _admitted(self, change: a.AdmissionChanged) -> None:
        self._admissions[change.node] = change.admission
        if change.admission in NOT_BELIEVED:
            self.permits.excuse(change.node)
        own = change.by == SYSTEM and change.admission is Admission.QUARANTINED
        if own and change.node not in self.guilty and not self.of_nodes.flaps(change.node):
            self.breach(f"{change.node} is innocent and quarantined: {change.reason}")

    def _lost(self, change: c.LivenessChanged) -> None:
        if change.liveness is not Liveness.LOST:
            return
        lost_ms = self.world.orchestrator.core.state.nodes[change.node].lost_ms
        heard_ms = self.world.orchestrator.heard_for_ms()
        if heard_ms < lost_ms:
            self.breach(f"{change.node} is lost, and we were connected for {heard_ms} ms only")

    def ends_stay(self, run: str, state: State) -> None:
        """Terminal is terminal, but for what was undone."""
        record = state.runs.get(run)
        if record is None:
            return
        now = {key: unit.state for key, unit in record.units.items()}
        ended = {key for key, state in now.items() if state in ACTION_ENDED}
        for key, new in now.items():
            old = self._ends.get((run, key))
            undone = new is ActionState.ROLLED_BACK and old in _UNDOABLE
            if old is not None and new is not old and not undone:
                self.breach(f"{run}/{key} was {old} and is {new}")
        self._ends.update({(run, key): now[key] for key in ended})
        old_state = self._ends.get((run, ""))
        if old_state is not None and record.state is not old_state:
            self.breach(f"{run} was {old_state} and is {record.state}")
        if record.state in RUN_ENDED:
            self._ends[run, ""] = record.state

    def sends(self, node: str, dispatch: str, packed: bytes) -> None:
        """A dispatch leaves for a node."""
        if self._planned_bins.get(dispatch) != (node, packed):
            self.breach(f"{dispatch} leaves for {node} and was never stored so")
        if self._admissions.get(node) in NOT_BELIEVED:
            self.breach(f"{dispatch} leaves for {node}, which is {self._admissions[node]}")

    def settles(self, node: str, dispatches: Iterable[str], state: State) -> None:
        """The node may forget these results."""
        believed = self._admissions.get(node) not in NOT_BELIEVED
        for dispatch in dispatches:
            known = state.dispatches.get(dispatch)
            if believed and unit_of(dispatch) is not None and dispatch not in self._told:
                self.breach(f"{dispatch} is settled and its result was not stored")
            # what a failed or rejected attempt ended with is in the store as that attempt's end
            if believed and dispatch not in self._told and known is not None:
                unit = self.unit_of[dispatch]
                if unit not in self._ends and dispatch not in self._given_up:
                    self.breach(f"{dispatch} is settled and its result was not stored")

    # what nodes do

    def journalled(self, node: str, change: NodeChange, epoch: int | None) -> None:
        """This is in the node's journal now; a message of that epoch brought it."""
        self.permits.journalled(node, change, self.world.nodes[node].stored)
        if isinstance(change, DispatchTaken):
            if epoch is not None and epoch < self._epochs.get(node, 0):
                self.breach(f"{node} takes {change.dispatch} of {epoch}, it knows a newer epoch")
            self._journalled.add((node, change.dispatch))
        elif isinstance(change, ResultRecorded):
            self._reported[node, change.result.dispatch].add(change.result.outcome)

    def meets(self, node: str, epoch: int) -> None:
        self._epochs[node] = max(epoch, self._epochs.get(node, 0))

    def driver_starts(self, node: str, command: nk.RunDriver, intent: bool, over_ms: int) -> None:
        """`intent`: whether the journal holds that it starts; `over_ms`: since when its lease is over."""
        dispatch = command.dispatch
        own = unit_of(dispatch.id)
        if own is None and dispatch.when_cut_off == "stop":
            self._begins(node, dispatch.id, over_ms)
        if own is not None:
            self.unit_of[dispatch.id] = own
            self.permits.driver_starts(node, dispatch.id, self.world.nodes[node].stored)
        if dispatch.effect.repeatable:
            return
        if not intent:
            self.breach(f"{dispatch.id} starts on {node} before its intent is stored")
        self.effects[self.unit_of[dispatch.id]] += 1
        self._started[node, dispatch.id] += 1
        if self._started[node, dispatch.id] > 1:
            self.breach(f"{dispatch.id} ran {self._started[node, dispatch.id]} times on {node}")

    def _begins(self, node: str, dispatch: str, over_ms: int) -> None:
        """Also what ends or is stopped at once, while others have it, would have been done twice."""
        if over_ms >= 0:
            self.breach(f"{dispatch} begins on {node}, and its lease is over since {over_ms} ms")
        newest = self._newest[self.unit_of[dispatch]]
        if newest != dispatch and self._given_up.get(dispatch) == "node.lost":
            self.breach(f"{dispatch} begins on {node} beside {newest}")

    def node_says(self, node: str, command: nk.Command) -> None:
        """An accept or a result leaves the node."""
        if isinstance(command, nk.SendAccept):
            for dispatch, _ in command.pairs:
                if (node, dispatch) not in self._journalled:
                    self.breach(f"{node} accepts {dispatch}, which its journal does not hold")
        elif isinstance(command, nk.SendComplete):
            for result in command.results:
                self.of_nodes.reported(result.dispatch, result.error)
                if command.early and self._is_repeatable(result.dispatch):
                    self._reported[node, result.dispatch].add(result.outcome)
                elif result.outcome not in self._reported[node, result.dispatch]:
                    self.breach(f"{node} reports {result.dispatch} before it stored that")

    def _is_repeatable(self, dispatch: str) -> bool:
        _, packed = self._planned_bins.get(dispatch, ("", b""))
        return bool(packed) and decode_dispatch(packed).effect.repeatable

    def replays(self) -> None:
        """What the store gives is what the living core holds."""
        if self.world.orchestrator.alive and not self.world.orchestrator.stuck:
            self.breaches += self.world.orchestrator.replay_differs()

    # what is asked after every event

    def now(self) -> list[str]:
        """Every breach so far."""
        self.effects_once()
        self.leases()
        return self.breaches

    def effects_once(self) -> None:
        for (run, action), count in self.effects.items():
            if count > 1 + self.reruns[run, action]:
                self.breach(f"the effect of {run}/{action} began {count} times")

    def leases(self) -> None:
        """Work that a cut-off node must stop is nowhere else before it has stopped."""
        for node in self.world.nodes.values():
            if node.machine.asleep:
                continue
            claimed: set[str] = set()
            for dispatch in node.running():
                if not claimed.isdisjoint(dispatch.claims):
                    self.breach(f"two drivers on {node.name} hold one of {dispatch.claims}")
                claimed.update(dispatch.claims)
                if unit_of(dispatch.id) is not None:
                    continue
                newest = self._newest[self.unit_of[dispatch.id]]
                lost = self._given_up.get(dispatch.id) == "node.lost"
                if dispatch.when_cut_off == "stop" and newest != dispatch.id and lost:
                    self.breach(f"{dispatch.id} still runs on {node.name} beside {newest}")

    @staticmethod
    def unlooked(core: Scheduler) -> list[str]:
        """Work of a lost node that may move, and that nobody will look at again."""
        state, looks = core.state, None
        found = []
        for node in state.nodes.values():
            if node.liveness not in _AWAY or not node.live:
                continue
            if looks is None:
                looks = {
                    key for _, _, kind, key in core._deadlines._heap if kind is Deadline.REROUTE
                }
            found += [
                f"{name} is on {node.node}, which is {node.liveness}, and nobody looks at it again"
                for name in node.live
                if state.dispatches[name].on_loss == "reroute" and name not in looks
            ]
        return found

    def breach(self, sentence: str) -> None:
        self.breaches.append(sentence)
