"""What must hold of nodes that crash, are deaf, or come and go: a part of the table in `checks`.

The one rule is that of `checks`: it knows what was committed, sent and reported, and asks no core.
"""

from collections.abc import Callable
from typing import Any

from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.admission_changes import AdmissionChanged
from imlmesh_orchestrator.core.state import State
from imlmesh_protocol import limits
from imlmesh_protocol.errors import CRASHED, KILLED_ALONG, Fault
from imlmesh_protocol.states import Admission, DispatchState, Effect, Liveness
from imlmesh_protocol.tick import Tick

Unit = tuple[str, str]
#: how long a node may be deaf before it gets nothing new: with the widest window that jitter gives
DEAF_MS = limits.LAN.suspect_ms + limits.LAN.lost_ms


class NodeChecks:
    """`breach` is told each broken rule as a sentence; `admissions` is what people and mesh decided."""

    def __init__(self, breach: Callable[[str], None], admissions: dict[str, Admission]) -> None:
        self._breach = breach
        self._admissions = admissions
        self._liveness: dict[str, Liveness] = {}
        self._planned: dict[str, c.DispatchPlanned] = {}
        #: unit of work to the nodes where its driver crashed, and to those that refused it
        self._crashed: dict[Unit, set[str]] = {}
        self._refused: dict[Unit, set[str]] = {}
        #: dispatches that nodes reported as killed for another
        self._along: set[str] = set()
        #: runs in which nothing new starts
        self._ending: set[str] = set()
        #: by node: the number of its last beat, when that came first and last
        self._beats: dict[str, tuple[int, int, int]] = {}
        #: by node when it returned of late: surely, by its will and a birth, and perhaps, by silence;
        #: its session, when it was heard last, and whether the broker says that it is gone
        self._sure: dict[str, list[int]] = {}
        self._perhaps: dict[str, list[int]] = {}
        self._sessions: dict[str, tuple[int, int]] = {}
        self._heard_ms: dict[str, int] = {}
        self._gone: set[str] = set()
        #: who beat in a session whose birth was lost: it is back, and nobody can say since when
        self._unborn: set[str] = set()
        #: (when, node) of all that went away, perhaps too often; around which of these most did
        self._away: list[tuple[int, str]] = []
        self._shared_ms: list[int] = []
        self._after: dict[type, Callable[[Any, State, int], None]] = {
            AdmissionChanged: self._decided,
            c.LivenessChanged: self._judged,
            c.DispatchPlanned: self._given,
            c.DispatchEnded: self._ended,
            c.ResultTaken: self._taken,
            c.RetryPlanned: self._retried,
            c.ActionEnded: self._named,
            c.RunAborting: self._ends,
            c.RunCancelling: self._ends,
        }

    def committed(self, change: c.Change, state: State, now_ms: int) -> None:
        after = self._after.get(type(change))
        if after is not None:
            after(change, state, now_ms)

    # crashes

    def _given(self, change: c.DispatchPlanned, state: State, now_ms: int) -> None:
        self._planned[change.dispatch] = change
        unit = (change.run, change.action)
        if len(self._crashed.get(unit, ())) >= limits.POISON_NODES:
            self._breach(f"{change.dispatch} is planned and crashed on three nodes before")
        _, first_ms, last_ms = self._beats.get(change.node, (0, 0, 0))
        if last_ms - first_ms > DEAF_MS:
            self._breach(f"{change.node} is deaf since {last_ms - first_ms} ms and gets work")
        returns = _late(self._sure.get(change.node, []), now_ms)
        if returns and now_ms < returns[-1] + limits.hold_ms(len(returns), limits.LAN.lost_ms):
            self._breach(f"{change.node} returned {len(returns)} times of late and gets work")

    def _ended(self, change: c.DispatchEnded, state: State, now_ms: int) -> None:
        planned = self._planned[change.dispatch]
        if change.state is DispatchState.REJECTED:
            self._refused.setdefault((change.run, planned.action), set()).add(planned.node)

    def reported(self, dispatch: str, fault: Fault | None) -> None:
        """The node says so; the last word counts, for a power cut may come before its commit."""
        if fault is not None and fault.code == KILLED_ALONG:
            self._along.add(dispatch)
        else:
            self._along.discard(dispatch)

    def _spared(self, change: c.ResultTaken) -> None:
        code = change.fault.code if change.fault is not None else "nothing"
        if code != KILLED_ALONG:
            self._breach(f"{change.dispatch} was killed for another and is called {code}")
        planned = self._planned[change.dispatch]
        if planned.effect.repeatable and change.action_state is not None:
            self._breach(f"{change.dispatch} was killed for another and is {change.action_state}")

    def _taken(self, change: c.ResultTaken, state: State, now_ms: int) -> None:
        if change.dispatch in self._along:
            self._spared(change)
            return
        if change.fault is None or change.fault.code != CRASHED:
            return
        unit = (change.run, change.action)
        crashed = self._crashed.setdefault(unit, set())
        crashed.add(self._planned[change.dispatch].node)
        if change.action_state is None:
            return
        if len(crashed) >= limits.POISON_NODES:
            self._breach(f"{unit} crashed on three nodes and is not called poison")
        self._must_move(self._planned[change.dispatch], state)

    def _retried(self, change: c.RetryPlanned, state: State, now_ms: int) -> None:
        if change.fault.code == KILLED_ALONG:
            self._breach(f"{change.action} was killed for another, and that costs it a retry")
        if change.fault.code == CRASHED:
            unit = state.runs[change.run].units[change.action]
            attempts = (
                p for p in self._planned.values() if (p.run, p.action) == (change.run, unit.key)
            )
            self._must_move(max(attempts, key=lambda planned: planned.attempt), state)

    def _must_move(self, planned: c.DispatchPlanned, state: State) -> None:
        """A crash decided something, so nobody else can have been there who might try it."""
        unit = state.runs[planned.run].units[planned.action]
        action = unit.action
        bound = unit.node or action.target_node or action.target_selector or action.target_group
        repeatable = planned.effect in (Effect.PURE, Effect.IDEMPOTENT)
        if bound or not repeatable or planned.run in self._ending:
            return
        key = (planned.run, planned.action)
        tried = self._crashed[key] | self._refused.get(key, set())
        for node, liveness in self._liveness.items():
            is_open = self._admissions.get(node, Admission.OPEN) is Admission.OPEN
            if liveness is Liveness.ONLINE and is_open and node not in tried:
                self._breach(f"{planned.dispatch} crashed and was not tried on {node}")

    def _named(self, change: c.ActionEnded, state: State, now_ms: int) -> None:
        if change.fault is not None and change.fault.code == "action.poison":
            crashed = self._crashed.get((change.run, change.action), set())
            if len(crashed) < limits.POISON_NODES:
                self._breach(f"{change.action} is called poison and crashed on {sorted(crashed)}")

    def _ends(self, change: c.RunChange, state: State, now_ms: int) -> None:
        self._ending.add(change.run)

    # who hears, who is there

    def _judged(self, change: c.LivenessChanged, state: State, now_ms: int) -> None:
        self._liveness[change.node] = change.liveness
        if change.liveness in (Liveness.SUSPECT, Liveness.LOST):
            self._away.append((now_ms, change.node))

    def _decided(self, change: AdmissionChanged, state: State, now_ms: int) -> None:
        self._sure.pop(change.node, None)

    def heard(self, event: e.Event | Tick, now_ms: int) -> None:
        """This reaches the orchestrator's core now."""
        if isinstance(event, e.NodeGone):
            self._ended_by_broker(event.node, (event.boot, event.session), now_ms)
        elif isinstance(event, e.NodeBirth):
            self._born(event.node, (event.boot, event.session), now_ms)
        elif isinstance(event, e.HeartbeatArrived):
            session = (event.boot, event.session)
            if self._sessions.get(event.node, session) == session:
                self._beat(event.node, event.beat, now_ms)
            else:
                self._unborn.add(event.node)
        elif isinstance(event, e.AdmissionAsked) and event.admission is Admission.OPEN:
            self._sure.pop(event.node, None)  # a release forgives, also where it changes nothing

    def _ended_by_broker(self, node: str, session: tuple[int, int], now_ms: int) -> None:
        if self._sessions.get(node) == session:
            self._away.append((now_ms, node))
            self._gone.add(node)

    def _born(self, node: str, session: tuple[int, int], now_ms: int) -> None:
        if node in self._gone and node not in self._unborn and not self._together(node):
            self._sure.setdefault(node, []).append(now_ms)
        self._speaks(node, now_ms)
        self._unborn.discard(node)
        self._sessions[node] = session
        self._beats.pop(node, None)

    def _together(self, node: str) -> bool:
        """Whether what it last went away for may be what most nodes shared; then all are forgiven."""
        left_ms = [at_ms for at_ms, name in self._away if name == node][-3:]
        for center_ms in left_ms:
            near = {name for at_ms, name in self._away if _near(at_ms, center_ms)}
            if len(near) >= limits.MASS_SILENCE:
                self._shared_ms.append(center_ms)
        if any(_near(one, other) for one in left_ms for other in self._shared_ms):
            self._sure.clear()
            return True
        return False

    def _beat(self, node: str, number: int, now_ms: int) -> None:
        last, first_ms, _ = self._beats.get(node, (-1, now_ms, now_ms))
        if number != last:
            self._speaks(node, now_ms)
        self._beats[node] = (number, first_ms if number == last else now_ms, now_ms)

    def _speaks(self, node: str, now_ms: int) -> None:
        quiet_ms = now_ms - self._heard_ms.get(node, now_ms)
        if node in self._gone or quiet_ms >= limits.LAN.suspect_ms:
            self._perhaps.setdefault(node, []).append(now_ms)
        self._gone.discard(node)
        self._heard_ms[node] = now_ms

    def flaps(self, node: str) -> bool:
        """Whether it may have returned so often that the mesh quarantines it."""
        late = _late(self._perhaps.get(node, []), self._heard_ms.get(node, 0))
        return len(late) >= limits.FLAPS_FREE + limits.EVIDENCE_FLAPS

    def hears_anew(self) -> None:
        """Silence of before was the orchestrator's own."""
        self._beats.clear()

    def forgets(self) -> None:
        """It starts: what it saw of who came and went is gone."""
        self._beats.clear()
        self._sure.clear()
        self._sessions.clear()
        self._gone.clear()


def _near(one_ms: int, other_ms: int) -> bool:
    return abs(one_ms - other_ms) <= limits.LAN.lost_ms


def _late(times_ms: list[int], now_ms: int) -> list[int]:
    return [at_ms for at_ms in times_ms if at_ms > now_ms - limits.EVIDENCE_MS]
