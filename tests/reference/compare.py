"""One case, told twice: by the rules and by the scheduler; where they differ, the smallest such case.

The one rule: a difference is shown with all that it takes to look into it: seed, plan, script and
both stories. Shrinking is greedy: whatever can be left out while some difference stays is left out.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from case import Case
from interpreter import Interpreter
from stage_run import StageRun
from story import Story, UnclearError


class Told:
    """Both stories of a case and what differs; `unclear` when the rules leave it open."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.unclear = False
        self.rules: Story | None = None
        self.real: Story | None = None
        stage = StageRun(case)
        try:
            self.real = stage.tell()
            self.differences = stage.problems()
        except Exception as exc:
            self.differences = [f"the scheduler raises {exc!r}"]
            return
        try:
            self.rules = Interpreter(case, stage.run, stage.chosen).tell()
            self.differences += self.rules.differences(self.real)
        except UnclearError:
            self.unclear = True


def smallest(case: Case, differs: Callable[[Case], bool]) -> Case:
    """The case with everything left out that the difference does not need."""
    shrunk = True
    while shrunk:
        shrunk = False
        for candidate in _smaller(case):
            if differs(candidate):
                case, shrunk = candidate, True
                break
    return case


def differs(case: Case) -> bool:
    told = Told(case)
    return bool(told.differences) and not told.unclear


def _smaller(case: Case) -> Iterator[Case]:
    for index, action in enumerate(case.plan["actions"]):
        if len(case.plan["actions"]) > 1 and not _needed(case.plan, action["id"]):
            plan = copy.deepcopy(case.plan)
            del plan["actions"][index]
            yield replace(case, plan=plan, retried=_without(case.retried, action["id"]))
    if case.retried:
        yield replace(case, retried=None)
    for index in range(len(case.world)):
        yield replace(case, world=case.world[:index] + case.world[index + 1 :])
    for entry in _entries(case) - case.calm:
        yield replace(case, calm=case.calm | {entry})
    for index, action in enumerate(case.plan["actions"]):
        for field in set(action) - {"id", "module", "action", "on_error", "params"}:
            plan = copy.deepcopy(case.plan)
            del plan["actions"][index][field]
            if field == "rollback" and _becomes_normal(plan, action):
                continue
            yield replace(case, plan=plan)
        for field in set(action["params"]) - {"path"}:
            plan = copy.deepcopy(case.plan)
            del plan["actions"][index]["params"][field]
            yield replace(case, plan=plan)


def _without(retried: dict[str, Any] | None, name: str) -> dict[str, Any] | None:
    if retried is None:
        return None
    kept = {k: value for k, value in retried["kept"].items() if k.partition("@")[0] != name}
    again = {key: value for key, value in retried["again"].items() if key != name}
    return {"kept": kept, "again": again, "left": [key for key in retried["left"] if key != name]}


def _needed(plan: dict[str, Any], name: str) -> bool:
    """Whether others name it: in depends_on, as what undoes them, or in a template."""
    return any(
        name in other.get("depends_on", ())
        or other.get("rollback", {}).get("action") == name
        or f"result.{name}." in str(other["params"])
        or f"result.{name}}}" in str(other["params"])
        for other in plan["actions"]
        if other["id"] != name
    )


def _becomes_normal(plan: dict[str, Any], action: dict[str, Any]) -> bool:
    """Whether nothing names its undoing action any longer: it would then run by itself."""
    name = action["rollback"]["action"]
    return not any(a.get("rollback", {}).get("action") == name for a in plan["actions"])


def _entries(case: Case) -> set[str]:
    """The calls and questions that take another course than the plainest."""
    told = Told(case)
    found: set[str] = set()
    for story in (told.rules, told.real):
        if story is None:
            continue
        for key, calls in story.calls.items():
            numbers = range(1, len(calls) + 1)
            found |= {f"{key}#{n}" for n in numbers if case.call(key, n).outcome != "completed"}
        asked: dict[tuple[str, str], int] = {}
        for kind, key, outcome in story.questions:
            asked[kind, key] = asked.get((kind, key), 0) + 1
            if outcome not in ("approve", "done"):
                found.add(f"{kind}:{key}#{asked[kind, key]}")
    return found


def report(case: Case) -> str:
    """Seed, differences (rules | scheduler), plan, script and both stories."""
    told = Told(case)
    lines = [f"seed {case.seed}; what differs, rules | scheduler:"]
    lines += [f"  {line}" for line in told.differences]
    lines += ["plan:", _yaml(case.plan), f"groups {case.groups}", f"labels {case.labels}"]
    lines += [f"memory {case.memory}, not_before {case.not_before}, ttl_s {case.ttl_s}, world:"]
    lines += [f"  {what}" for what in case.world]
    lines += [f"taken over: {case.retried}"] if case.retried else []
    for who, story in (("rules", told.rules), ("scheduler", told.real)):
        if story is not None:
            lines += [f"the story by the {who}: {story.run} {story.flags}"]
            lines += [f"  {key}: {state} {fault}" for key, (state, fault) in story.units.items()]
            lines += [f"  calls of {key}:" + _calls(case, key, c) for key, c in story.calls.items()]
            lines += [f"  asked: {q}" for q in story.questions]
            lines += [f"  undone: {story.compensations}", f"  memory: {story.memory}"]
    return "\n".join(lines)


def _calls(case: Case, key: str, calls: list[tuple[str, Any]]) -> str:
    told = []
    for number, (node, params) in enumerate(calls, 1):
        call = case.call(key, number)
        value = "" if call.outcome == "completed" else f" {call.value}"
        told.append(f"\n    on {node} {params}: {call.outcome}{value} after {call.after}")
    return "".join(told)


def _yaml(plan: dict[str, Any]) -> str:
    text = StringIO()
    YAML().dump(plan, text)
    return text.getvalue()
