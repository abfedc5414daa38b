"""The rules of a run, written to be read: slow, obvious, and independent of the product's core.

The one rule: at each moment everything is looked at again from scratch until nothing changes;
only then time goes on to the next thing that happens. Times are milliseconds since submission.
Where a rule leaves the node free, the choice of the real run is taken (`chosen`) if it was allowed.
Deliberately absent: wire, store, leases, and how a silence is noticed.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import fate
import members
import undoing
from asking import ask_gate, bound_to, supersede
from case import Case
from placing import FailedError, find_node
from reading import CannotFillError, NoResult, Reading, fill
from retrying import retry_delay_ms
from story import Question, Story, UnclearError, Unit

ENDED = ("completed", "failed", "skipped", "cancelled", "rolled_back")
WAITS = ("pending", "waiting", "awaiting_approval")
TIE_MS = 2


class Happening:
    """Something of the agenda: it happens at a time, unless it no longer matters by then."""

    def __init__(self, at: int, what: Callable[[], None], matters: Callable[[], bool]) -> None:
        self.at, self.what, self.matters = at, what, matters


class Interpreter:
    """One run of one case. `run` is its id, of which retry delays depend; `chosen` {(key, try): node}."""

    def __init__(self, case: Case, run: str, chosen: Mapping[tuple[str, int], str]) -> None:
        self.case, self.run, self.chosen = case, run, chosen
        self.read = Reading(case.plan, case.drivers)
        self.now = 0
        self.agenda: list[Happening] = []
        self.nodes = dict.fromkeys(case.nodes, "online")
        self.groups = {name: list(nodes) for name, nodes in case.groups.items()}
        self.labels = {node: dict(labels) for node, labels in case.labels.items()}
        #: by member, what it did in the run that this one retries
        self.kept: dict[str, Any] = {}
        #: actions that may repeat an effect of the run that this one retries
        self.again: dict[str, str] = {}
        self.frozen: dict[str, list[str]] = {}
        self.memory: dict[str, Any] = dict(case.memory)
        self.units = {
            name: Unit(name, action, action.get("params", {}))
            for name, action in self.read.all.items()
        }
        self.questions: list[Question] = []
        self.calls: list[tuple[str, int, str, Any]] = []
        self.ends = 0
        self.aborting = self.aborted_by = ""
        self.cancelling = self.paused = False
        self.rollbacks: list[str] = []
        self.undos: list[str] | None = None
        self.state = ""
        self.flagged = self.unconfirmed = self.expired = False
        #: ids of the actions that failed, and keys that were written, in the present moment
        self.failed_now: set[str] = set()
        self.written_now: set[str] = set()

    def tell(self) -> Story:
        """Live through the whole case, and say how it ended."""
        for what in self.case.world:
            self.later(what["at"], partial(fate.happens, self, what))
        if self.case.retried:
            fate.takes_over(self, self.case.retried)
        self.later(self.case.not_before, lambda: None)
        self.later(self.case.expires, partial(fate.expires, self))
        self.moment(lambda: None)
        while not self.state:
            self.agenda = [h for h in self.agenda if h.matters()]
            self.agenda.sort(key=lambda h: h.at)
            if not self.agenda:
                self.state = "open"
                break
            first = self.agenda.pop(0)
            if self.agenda and self.agenda[0].at - first.at < TIE_MS:
                raise UnclearError(f"two things happen at {first.at}")
            self.now = max(self.now, first.at)
            self.moment(first.what)
        return self.story()

    def moment(self, what: Callable[[], None]) -> None:
        """One thing happens, and all that follows from it at once. Of several things at once the
        order is free: where the end depends on it, the case proves nothing."""
        was, asked = self.aborting, len(self.questions)
        self.failed_now, self.written_now = set(), set()
        what()
        self.settle()
        if was != self.aborting:
            if len(self.failed_now) > 1:
                raise UnclearError("two actions fail in the same moment, and one ends the run")
            if any(q.outcome == "superseded" for q in self.questions[asked:]):
                raise UnclearError("a question is asked in the moment that ends the run")
        self.ends_if_done()

    def later(
        self, at: int, what: Callable[[], None], matters: Callable[[], bool] = lambda: True
    ) -> None:
        self.agenda.append(Happening(at, what, matters))

    def settle(self) -> None:
        before = ""
        while before != self.picture():
            before = self.picture()
            self.stop_what_waits()
            members.all_go_on(self)
            for name in self.read.actions:
                if self.is_ready(name):
                    self.becomes_ready(self.units[name])
                    members.go_on(self, self.units[name])
            looked_at: set[str] = set()
            while waiting := [u for u in self.in_order() if u.key not in looked_at]:
                looked_at.add(waiting[0].key)
                self.place(waiting[0])
                members.all_go_on(self)
            undoing.go_on(self)

    def in_order(self) -> list[Unit]:
        """As the plan lists them, each with its members. But within one moment the order is free:
        what the real run gave to a node comes first, then what fails at once."""
        listed = [self.units[name] for name in self.read.actions]
        units = [part for unit in listed for part in (unit, *unit.members)]
        units += [self.units[key] for key in self.undos or ()]
        return sorted(
            (unit for unit in units if unit.state == "waiting"),
            key=lambda u: ((u.key, u.tries + 1) not in self.chosen, not self.would_fail(u)),
        )

    def picture(self) -> str:
        return str([(u.key, u.state, u.tries) for u in self.units.values()])

    def may_start(self) -> bool:
        stopped = self.aborting or self.cancelling or self.paused
        return not stopped and self.now >= self.case.not_before

    def is_ready(self, name: str) -> bool:
        return self.units[name].state == "pending" and self.may_start() and self.is_next(name)

    def is_next(self, name: str) -> bool:
        """Whether nothing of the plan stands before it any longer."""
        satisfied = all(self.satisfied(needed) for needed in self.read.needs(name))
        return satisfied and all(self.units[other].state in ENDED for other in self.before(name))

    def before(self, name: str) -> list[str]:
        """What has to end first, in whatever way: the order of the run, or the waves of a barrier."""
        if self.case.plan["execution_mode"] == "sequential":
            order = self.read.order()
            return order[: order.index(name)]
        if not self.case.plan.get("barrier"):
            return []
        wave = self.read.wave(name)
        return [other for other in self.read.actions if self.read.wave(other) < wave]

    def satisfied(self, name: str) -> bool:
        unit = self.units[name]
        continued = unit.state == "failed" and unit.action["on_error"] == "continue"
        return unit.state == "completed" or continued

    def becomes_ready(self, unit: Unit) -> None:
        code = self.flaw(unit)
        if unit.member_wise:
            members.fix(self, unit)
        if code:
            self.fail(unit, code)
            return
        for member in unit.members:
            if member.key in self.kept:
                self.end(member, "completed")
        if self.read.wants_gate(unit.action) or unit.key in self.again:
            ask_gate(self, unit)
        else:
            unit.state = "running" if unit.member_wise else "waiting"

    def flaw(self, unit: Unit) -> str:
        """The code with which it fails as soon as it is ready, or ""; a group is frozen here."""
        group = unit.action.get("target_group")
        if group and group not in self.frozen:
            self.frozen[group] = sorted(self.groups.get(group, ()))
        if group and not self.frozen[group]:
            return "place.empty_group"
        return members.why_not(self, unit) if unit.member_wise else ""

    def place(self, unit: Unit) -> None:
        allowed = not self.paused if unit.undoes else self.may_start()
        if not allowed or self.now < unit.retry_at:
            return
        try:
            node = find_node(self, unit)
            if node is None:
                return
            if unit.approved and unit.approved != bound_to(self, unit):
                ask_gate(self, unit)
                return
            params = fill(unit.params, self.known(node))
        except FailedError as exc:
            self.fail(unit, exc.code)
            return
        except CannotFillError as exc:
            self.fail(unit, exc.code, asks=False)
            return
        unit.tries += 1
        unit.state, unit.on, unit.retry_at = "running", node, 0
        self.calls.append((unit.key, unit.tries, node, params))
        call, this = self.case.call(unit.key, unit.tries), unit.tries
        self.later(
            self.now + call.after,
            lambda: self.reported(unit, call.outcome, call.value),
            lambda: unit.state == "running" and unit.tries == this and self.nodes[node] == "online",
        )
        unit.call = call

    def known(self, node: str | None) -> dict[str, Any]:
        """What templates may read; {{node.id}} stays as it is without a node."""
        results: dict[str, Any] = {}
        for name in self.read.actions:
            other = self.units[name]
            if other.state == "completed" or (other.state == "rolled_back" and not other.fault):
                results[name] = other.result
            elif other.state == "failed" and other.action["on_error"] == "continue":
                results[name] = NoResult(other.fault)
        return {"result": results, "memory": self.memory, "node": node, "env": self.case.env}

    def reported(self, unit: Unit, outcome: str, value: Any) -> None:
        """The node says how it ended; `value` is the result or the code."""
        if outcome == "rejected":
            unit.refused[unit.on] = value
            if unit.node or self.aborting or self.cancelling:
                self.fail(unit, value)
            else:
                unit.state = "waiting"
            return
        if value == "action.not_started":
            unit.state = "waiting"
            return
        if value != "driver.busy":
            unit.worked_on = unit.on
        if outcome == "completed":
            self.complete(unit, value)
        elif value == "node.interrupted" and self.read.repeatable(unit.action):
            if self.on_loss(unit) in ("reroute", "wait"):
                unit.state = "waiting"
            else:
                self.fail(unit, value, reported=True)
        elif outcome == "unknown" and unit.undoes:
            undoing.ask(self, unit, value)
        elif outcome == "unknown" and self.on_loss(unit) != "fail":
            fate.becomes_unknown(self, unit, value)
        elif outcome == "unknown":
            self.fail(unit, value)
        else:
            self.fail(unit, value, reported=True)

    def on_loss(self, unit: Unit) -> str:
        if unit.undoes:
            return "ask"
        return self.read.on_loss(unit.action, member=bool(unit.node))

    def complete(self, unit: Unit, result: Any, fault: str = "") -> None:
        self.end(unit, "completed", fault)
        unit.result = result
        key = (unit.action.get("memory") or {}).get("write_key")
        if key and unit.key in self.read.actions and not fault:
            if key in self.written_now:
                raise UnclearError("two actions write the same key in the same moment")
            self.memory[key] = result
            self.written_now.add(key)
        if unit.undoes:
            undoing.completed(self, unit)

    def end(self, unit: Unit, state: str, fault: str = "") -> None:
        self.ends += 1
        unit.state, unit.fault, unit.order = state, fault, self.ends
        supersede(self, unit)
        for member in unit.members:
            if member.state in WAITS:
                self.stop(member)

    def fail(self, unit: Unit, code: str, *, reported: bool = False, asks: bool = True) -> None:
        if reported:
            unit.reports += 1
            delay = retry_delay_ms(self.read, unit, code, self.dice(unit))
            stopped = self.cancelling or (self.aborting and not unit.undoes)
            if delay is not None and not stopped:
                unit.state, unit.fault, unit.retry_at = "waiting", code, self.now + delay
                self.later(unit.retry_at, lambda: None, lambda: unit.state == "waiting")
                return
        if unit.undoes:
            undoing.failed(self, unit, code, asks=asks)
            return
        self.end(unit, "failed", code)
        self.failed_now.add(unit.action["id"])
        if unit.key not in self.read.actions:
            members.stop_if_too_many(self, unit)
            return
        on_error = unit.action["on_error"]
        if on_error == "skip":
            self.skip(unit, code)
        elif on_error != "continue" and not self.cancelling:
            if on_error == "rollback":
                self.rollbacks.append(unit.key)
            if not self.aborting:
                self.aborting, self.aborted_by = code, unit.key

    def dice(self, unit: Unit) -> float:
        """0 to 1, drawn from the run, the key and the number of the failure."""
        return zlib.crc32(f"{self.run}/{unit.key}/{unit.reports}".encode()) / 2**32

    def skip(self, unit: Unit, code: str) -> None:
        self.end(unit, "skipped", code)
        unit.forgiven = True
        for name in self.read.descendants(unit.key):
            if self.units[name].state == "pending":
                self.end(self.units[name], "skipped", "action.dependency")
                self.units[name].forgiven = True

    def stop_what_waits(self) -> None:
        """After an abort or a cancel nothing that waits is begun."""
        if not self.aborting and not self.cancelling:
            return
        for unit in self.units.values():
            if unit.state in WAITS and not unit.undoes and unit.key not in self.read.only_undo:
                self.stop(unit)

    def would_fail(self, unit: Unit) -> bool:
        """Whether it would have failed (or asked), had its turn come first in this moment."""
        if unit.state == "pending":
            if unit.node or not self.is_next(unit.key) or self.aborted_by in self.before(unit.key):
                return False
            if self.read.wants_gate(unit.action) or unit.key in self.again or self.flaw(unit):
                return True
            if unit.member_wise and members.somebody_cannot(self, unit):
                return True
        try:
            fill(unit.params, self.known(find_node(self, unit)))
        except (FailedError, CannotFillError):
            return True
        return False

    def stop(self, unit: Unit) -> None:
        """End what waits; what only waits for its next try has failed already."""
        if unit.state in ("waiting", "pending") and self.would_fail(unit):
            self.failed_now.add(unit.action["id"])
        if self.cancelling:
            self.end(unit, "cancelled", "action.cancelled")
        elif unit.retry_at:
            self.end(unit, "failed", unit.fault)
        elif unit.reports and unit.state == "waiting":
            raise UnclearError("it waits, but not for its next retry")
        else:
            self.end(unit, "skipped", self.why_stopped())

    def why_stopped(self) -> str:
        """The code of what an abort leaves alone."""
        return "run.expired" if self.aborting == "run.expired" else "action.dependency"

    def anything_open(self) -> bool:
        return any(self.units[name].state not in ENDED for name in self.read.actions)

    def ends_if_done(self) -> None:
        if self.anything_open() or not undoing.done(self):
            return
        undoing.end_what_only_undoes(self)
        good = all(self.satisfied(name) or self.units[name].forgiven for name in self.read.actions)
        bad = "cancelled" if self.cancelling else "failed"
        self.state = "completed" if good else bad

    def story(self) -> Story:
        calls: dict[str, list[tuple[str, Any]]] = {}
        for key, _, node, params in self.calls:
            calls.setdefault(key, []).append((node, params))
        return Story(
            run=(self.state, self.aborting if self.state == "failed" else ""),
            flags={"compensation_pending": self.flagged, "unconfirmed": self.unconfirmed},
            units={u.key: (u.state, u.fault) for u in self.units.values()},
            calls=calls,
            compensations=self.undos or [],
            questions=sorted((q.kind, q.key, q.outcome) for q in self.questions),
            memory=self.memory,
        )
