"""A world for one golden scenario: nothing by chance, a story to be read.

The one rule: a scenario says what happens when, and afterwards what must have followed; the
transcript holds both and everything between. Nobody answers questions unless the scenario does.
"""

import re
from collections.abc import Callable
from typing import Any

from faulting import begin
from imlmesh_orchestrator.core import changes as c
from imlmesh_orchestrator.core import events as e
from imlmesh_orchestrator.core.scheduler import Scheduler
from imlmesh_orchestrator.core.state import RunRecord
from imlmesh_protocol.permits import Rule
from imlmesh_protocol.states import Admission
from permits import Wish, ask
from script import Cut, Fault, Script
from world import START_MS, World

_RUN = re.compile(r"\b([rp])-(\d+)-\w{4}")
_FAULT = re.compile(r"Fault\(code='([^']*)', message=(?:'([^']*)'|\"([^\"]*)\"), details={}\)")


def does(name: str, *after: str, do: str = "look", ms: int = 50, **more: Any) -> dict[str, Any]:
    """An action as data; `fails` of its first attempts fail; the driver of `poison` always crashes."""
    params = {"ms": ms, "fails": more.pop("fails", 0), "poison": more.pop("poison", False)}
    action = {"id": name, "module": "toy", "action": do, "depends_on": list(after)}
    return action | {"params": params} | more


class Stage(World):
    """Nodes n0, n1, … in the group `all`; times count from the first plan."""

    def __init__(self, nodes: int = 3, cuts: tuple[Cut, ...] = ()) -> None:
        super().__init__(Script(1, tuple(f"n{i}" for i in range(nodes)), cuts=cuts))
        self.settle()
        self.begin_ms = self.now_ms
        self.story.clear()
        self.musts: list[tuple[str, bool]] = []

    def now_answer(self) -> None:
        """Nobody does, unless the scenario says so."""

    def plan(self, *actions: dict[str, Any], **more: Any) -> None:
        plan = {
            "protocol_version": "2.0",
            "plan_id": "golden",
            "description": "",
            "session_id": "s",
        }
        self.submit({**plan, "execution_mode": "parallel", **more, "actions": list(actions)})

    def permit(self, node: str, rule: Rule, *actions: dict[str, Any], **more: Any) -> None:
        """Grant one now; `more` are its `budget` and `for_ms`."""
        terms = {"budget": 10, "for_ms": 86_400_000, **more}
        ask(self, Wish(0, node, rule, terms["budget"], terms["for_ms"], actions))

    def do(self, after_ms: int, text: str, act: Callable[[], object]) -> None:
        """At that time, with a line that says so."""

        def now() -> None:
            self.tell(f"## {text}")
            act()

        self.at(self.begin_ms + after_ms, now)

    def fault(self, after_ms: int, kind: str, node: str = "", pause_ms: int = 0) -> None:
        """A fault as worlds have it."""
        number = {"half deaf": 0, "half mute": 1, "alone": 1}.get(kind, 0)
        fault = Fault(
            after_ms, kind.split(" ")[0] if "half" in kind else kind, node, pause_ms, number
        )
        self.at(self.begin_ms + after_ms, lambda: begin(self, fault))

    def decide(self, node: str, admission: Admission) -> Callable[[], None]:
        return lambda: self.orchestrator.decide(node, admission)

    def answer(self, option: str) -> Callable[[], None]:
        """A person answers the oldest open question."""

        def act() -> None:
            approval = next(iter(self.orchestrator.core.state.approvals), "a-1")
            self.orchestrator.post(e.AnswerGiven, approval=approval, option=option, by="eve")

        return act

    def until(self, after_ms: int) -> None:
        self.advance(self.begin_ms + after_ms - self.now_ms)

    # what came of it

    def changes(self, kind: type[c.Change], **wanted: Any) -> list[Any]:
        """All stored ones of that kind, since the plan, with these values as text."""
        return [
            change
            for change in self.orchestrator.stored
            if type(change) is kind
            and change.at_ms >= self.begin_ms
            and all(str(getattr(change, key)) == str(value) for key, value in wanted.items())
        ]

    def run_of(self, number: int = 0) -> RunRecord:
        return list(Scheduler({}, self.orchestrator.stored).state.runs.values())[number]

    def state(self, action: str, number: int = 0) -> str:
        return str(self.run_of(number).units[action].state)

    def attempts(self, action: str) -> int:
        return len(self.changes(c.DispatchPlanned, action=action))

    def began(self, action: str) -> int:
        """How often its once or physical effect began."""
        return sum(n for (_, unit), n in self.checks.effects.items() if unit == action)

    def when(self, kind: type[c.Change], **wanted: Any) -> int:
        """Milliseconds from the first plan to the first such change; -1 when there is none."""
        found = self.changes(kind, **wanted)
        return found[0].at_ms - self.begin_ms if found else -1

    def must(self, sentence: str, holds: bool) -> None:
        self.musts.append((sentence, holds))

    def transcript(self, title: str, text: str) -> str:
        lines = [f"# {title}", "#", *(f"# {line}".rstrip() for line in text.strip().splitlines())]
        shift = self.begin_ms - START_MS
        for line in self.story:
            at, told = line[:8], line[9:]
            told = _FAULT.sub(lambda m: f"({m[1]}: {m[2] or m[3]})", told)
            told = _RUN.sub(r"\1\2", told)
            lines.append(f"{int(at) - shift:>8} {told}".rstrip())
        lines += ["", *(f"{'holds' if ok else 'BROKEN'}: {must}" for must, ok in self.musts)]
        return "\n".join(lines) + "\n"
