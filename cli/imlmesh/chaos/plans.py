"""The plans that run while something is broken, and how often each effect of theirs may be found.

The one rule: an effect is a line in a file of the node that did it, written by the driver before anything
else; it is counted there and nowhere else. Deliberately absent: what is broken meanwhile.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imlmesh.planning import Plan
from imlmesh_orchestrator.core.asking import COMPENSATION
from imlmesh_orchestrator.core.changes import ActionUnknown, ApprovalAsked, Change

GROUP = "fleet"
_MOVABLE = 3
#: of the waits plan: every effect, undone ones too
_WAITS = {"retried": 3, "asked": 1, "rolled": 4, "breaks": 1, "undo": 7}

POLICY = f"""\
profile = "local_worker"

[roots]
write = ["files"]

[modules]
allow = ["fake", "os_exec"]

[commands.settle]
argv0 = "{shutil.which("sleep") or "/bin/sleep"}"
args = ["[0-9]{{1,2}}"]
"""


@dataclass(frozen=True, slots=True)
class Work:
    """A plan and its effects: how many lines each action that completed must have left. `completes`: all
    actions do, whatever happens, unless somebody has to be asked. `ending`, when nothing that happens
    may change it: the state of the run and of each action."""

    plan: Plan
    effects: Mapping[str, int]
    completes: bool = False
    ending: tuple[str, Mapping[str, str]] | None = None


@dataclass(slots=True)
class Count:
    """What became of effects: not found although completed, found more often than they should be."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)


def marked(
    columns: int,
    length: int,
    delay_ms: int,
    *,
    nodes: Sequence[str] = (),
    movable: Sequence[str] = (),
    settle: int = 2,
    ends_as_told: bool = False,
) -> Work:
    """Columns of effects that must happen once, each behind the one above it, on any node or in turn on
    one of `nodes`. Beside them a few actions that only wait `settle` seconds: they go to the first of
    `movable` and may be moved to the others, in turn. `ends_as_told`: then nobody is asked, and all
    complete."""
    plan = Plan("chaos", description="Effects that are counted", execution_mode="parallel")
    effects = {}
    for column in range(columns):
        target = {"target_node": nodes[column % len(nodes)]} if nodes else {"target_group": GROUP}
        before: list[str] = []
        for row in range(length):
            name = f"mark-{column}-{row}"
            params = {"marker": "marks.txt", "delay_ms": delay_ms}
            plan.action(name, "fake.act", params, after=before, **target)
            before, effects[name] = [name], 1
    for number in range(_MOVABLE if movable else 0):
        # idempotent, not pure: no second copy is made of it for being slow
        params = {"command": ["settle", str(settle)]}
        where = {"target_node": movable[0], "fallback_nodes": list(movable[1:])}
        plan.action(
            f"move-{number}",
            "os_exec.run_command",
            params,
            effect="idempotent",
            timeout=60,
            **where,
        )
    ending = ("completed", dict.fromkeys(effects, "completed")) if ends_as_told else None
    return Work(plan, effects, True, ending)


def held(node: str, seconds: float) -> Work:
    """One effect that must happen once, on one node, and takes a while."""
    plan = Plan("held", description="An effect that takes a while", execution_mode="parallel")
    params = {"marker": "marks.txt", "delay_ms": round(seconds * 1_000)}
    plan.action("mark", "fake.act", params, target_node=node)
    return Work(plan, {"mark": 1})


def waits(nodes: tuple[str, ...], *, ends_as_told: bool = True) -> Work:
    """A retry, a gate, a rolling batch, and a failure that undoes them all; unless a node dies, for it
    forgets how often it has failed."""
    plan = Plan("all-waits", description="Every kind of waiting", execution_mode="parallel")
    undone: dict[str, Any] = {"rollback": {"action": "undo"}}
    again: dict[str, Any] = {"on_error": "retry", "retry": {"delay_seconds": 0.2, "retry_on": []}}
    _act(plan, "retried", fail_times=2, target_node=nodes[0], **again, **undone)
    _act(plan, "asked", "retried", target_node=nodes[1], requires_approval=True, **undone)
    _act(plan, "rolled", "asked", target_group=GROUP, target_mode="rolling", **undone)
    undone["on_error"] = "rollback"
    _act(plan, "breaks", "rolled", fail_times=9, target_node=nodes[2], **undone)
    _act(plan, "undo")
    back = dict.fromkeys(("retried", "asked", "rolled", "breaks"), "rolled_back")
    ending = ("failed", {"undo": "completed", **back})
    return Work(plan, _WAITS, ending=ending if ends_as_told else None)


def history(actions: int) -> Work:
    """As many actions that end at once."""
    plan = Plan("history", description="Actions of the past", execution_mode="parallel")
    for number in range(actions):
        plan.action(f"past-{number}", "fake.noop", {}, target_group=GROUP)
    return Work(plan, {}, True)


def lines_of(run: str, folders: Iterable[Path]) -> Counter[str]:
    """How often each dispatch of the run left its line in a file of a node."""
    lines: Counter[str] = Counter()
    for folder in folders:
        for file in folder.glob("*.txt"):
            lines.update(line for line in file.read_text().split() if line.startswith(f"{run}/"))
    return lines


def count(work: Work, run: Mapping[str, Any], folders: Iterable[Path], asked: set[str]) -> Count:
    """Compare the lines in the files of all nodes with what the run says of itself.

    Of the actions in `asked` nobody but a person could say whether they happened: a line of theirs may
    be missing, but not be there twice.
    """
    lines = lines_of(run["run"], folders)
    counted = Count()
    done = {unit["id"] for unit in run["actions"] if unit["state"] in ("completed", "rolled_back")}
    for action, wanted in work.effects.items():
        found = {name: times for name, times in lines.items() if name.split("/")[1] == action}
        more = sum(found.values()) - wanted
        # a repeated dispatch is one too many, also of an action that several were sent of
        twice = sum(times - 1 for times in found.values())
        counted.doubled += [f"{run['run']}/{action}"] * max(more, twice, 0)
        if action in done and action not in asked:
            counted.lost += [f"{run['run']}/{action}"] * max(0, -more)
    return counted


def doubted(work: Work, change: Change) -> str | None:
    """The action of which only a person can say whether it happened, when this change asks for that: of a
    compensation the action that it calls."""
    if isinstance(change, ActionUnknown):
        return change.action.partition("@")[0]
    if isinstance(change, ApprovalAsked) and change.kind == COMPENSATION:
        undone = change.action.partition("~")[0].partition("@")[0]
        actions = json.loads(work.plan.to_json())["actions"]
        return next(str(each["rollback"]["action"]) for each in actions if each["id"] == undone)
    return None


def unexplained(work: Work, run: Mapping[str, Any], asked: set[str]) -> list[str]:
    """`ID is STATE` of each action that did not complete although it is not in `asked` and waits for no
    other that did not complete for that reason."""
    states = {unit["id"]: unit["state"] for unit in run["actions"]}
    explained: set[str] = set()
    found = []
    for action in json.loads(work.plan.to_json())["actions"]:
        name, state = action["id"], states.get(action["id"], "missing")
        if state == "completed":
            continue
        if name in asked or not explained.isdisjoint(action.get("depends_on", ())):
            explained.add(name)
        else:
            found.append(f"{name} is {state}")
    return found


def _act(plan: Plan, name: str, *after: str, fail_times: int = 0, **more: Any) -> None:
    params = {"marker": f"{name}.txt", "delay_ms": 60, "fail_times": fail_times}
    plan.action(name, "fake.act", params, after=after, **more)
