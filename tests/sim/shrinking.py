"""A failing world made small: whatever can go and it still fails is left out.

The one rule: greedy and bounded. Halves first, then one by one, over faults, power cuts, plans,
actions, nodes and the network, until a round finds nothing more or the trials are used up.
What is left breaks in the same way, names and numbers aside.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from imlmesh_runtime.link.memory import Faults
from script import Script
from world import World

T = TypeVar("T")
TRIALS = int(os.environ.get("TRIALS", "400"))
STORY_LINES = 150


def failure(script: Script) -> tuple[World | None, str]:
    """The world and what broke in it; "" when nothing did."""
    world = None
    try:
        world = World(script)
        world.run()
    except Exception as exc:
        return world, str(exc) or type(exc).__name__
    return world, ""


def smallest(script: Script, trials: int = TRIALS) -> Script:
    """The smallest script found that still fails; the same one when it does not fail."""
    world, why = failure(script)
    if not why:
        return script
    same = _kind(why)
    if world is not None and script.cuts is None:
        script = _better([replace(script, cuts=tuple(world.cuts))], same) or script
    left = trials
    while left > 0:
        candidates = _Bounded(_smaller(script), left)
        found = _better(candidates, same)
        left -= candidates.tried
        if found is None:
            return script
        script = found
    return script


class _Bounded:
    """At most so many of them, counted."""

    def __init__(self, scripts: Iterator[Script], most: int) -> None:
        self._scripts, self._most = scripts, most
        self.tried = 0

    def __iter__(self) -> Iterator[Script]:
        for script in self._scripts:
            if self.tried >= self._most:
                return
            self.tried += 1
            yield script


def _kind(why: str) -> str:
    """What broke, without names and numbers."""
    return re.sub(r"\S*\d\S*", "#", re.split("[;:]", why)[0])


def _better(scripts: Any, same: str) -> Script | None:
    return next((one for one in scripts if _kind(failure(one)[1]) == same), None)


def _smaller(script: Script) -> Iterator[Script]:
    yield from _without(script.plans, lambda rest: replace(script, plans=rest))
    yield from _without(script.faults, lambda rest: replace(script, faults=rest))
    yield from _without(script.wishes, lambda rest: replace(script, wishes=rest))
    if script.cuts:
        yield from _without(script.cuts, lambda rest: replace(script, cuts=rest))
    for place, (at_ms, plan) in enumerate(script.plans):
        for less in _plans(plan):
            plans = list(script.plans)
            plans[place] = (at_ms, less)
            yield replace(script, plans=tuple(plans))
    if script.network != Faults():
        yield replace(script, network=Faults())
        calm = script.network
        yield from (
            replace(script, network=less)
            for less in (
                replace(calm, loss=0.0),
                replace(calm, repeat=0.0),
                replace(calm, jitter_ms=0),
            )
            if less != calm
        )
    for name in script.nodes:
        named = str((script.faults, script.cuts, script.plans, script.wishes))
        if len(script.nodes) > 1 and name not in named:
            yield replace(script, nodes=tuple(n for n in script.nodes if n != name))


def _without(things: Sequence[T], made: Callable[[tuple[T, ...]], Script]) -> Iterator[Script]:
    half = len(things) // 2
    if half > 1:
        yield made(tuple(things[half:]))
        yield made(tuple(things[:half]))
    for place in range(len(things)):
        yield made((*things[:place], *things[place + 1 :]))


def _plans(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plan with one action less, then with one word of an action less."""
    actions = plan["actions"]
    for gone in actions:
        if len(actions) == 1 or gone["id"] == "undo":
            continue
        rest = [
            {**one, "depends_on": [d for d in one.get("depends_on", ()) if d != gone["id"]]}
            for one in actions
            if one is not gone
        ]
        if not any("rollback" in one for one in rest):
            rest = [one for one in rest if one["id"] != "undo"]
        if rest:
            yield {**plan, "actions": rest}
    for place, action in enumerate(actions):
        for word in ("rollback", "requires_approval", "memory", "claims", "lease_seconds"):
            if word in action:
                less = {key: value for key, value in action.items() if key != word}
                rest = [*actions[:place], less, *actions[place + 1 :]]
                if not any("rollback" in one for one in rest):
                    rest = [one for one in rest if one["id"] != "undo"]
                yield {**plan, "actions": rest}


def report(script: Script, trials: int = TRIALS) -> str:
    """What a person needs: what broke, the smallest script found, and its story."""
    _, why = failure(script)
    small = smallest(script, trials)
    world, small_why = failure(small)
    story = "\n".join(world.story[-STORY_LINES:]) if world is not None else ""
    return f"{why}\nsmallest found: {small_why}\n{small}\nits story:\n{story}"
