"""One case: a plan, a fleet, and a script of all that the world will do, decided in advance.

The one rule: the seed decides everything, and no answer depends on who asks or when. Odd times keep
two things from happening at once. `calm` calls and questions take their plainest course: the way
to a smaller case. Deliberately absent: what any of it means.
"""

import random
from dataclasses import dataclass
from typing import Any

from actions import random_action, undoing_action

HEARTBEAT_MS, LOST_MS = 100_000, 300_000
#: when work of a silent node may move: 1.1 of its lease
REROUTE_MS = LOST_MS * 11 // 10
DRIVERS: dict[str, dict[str, Any]] = {
    "look": {"effect": "pure"},
    "write": {
        "effect": "idempotent",
        "undo": {
            "action": "erase",
            "params": {"path": "{{params.path}}", "was": "{{result.value}}"},
        },
    },
    "mark": {
        "effect": "once",
        "undo": {"action": "unmark", "params": {"path": "{{params.path}}"}},
    },
    "send": {"effect": "once"},
    "push": {"effect": "physical"},
    "burn": {"effect": "once", "impact": 0.8},
    "guarded": {"effect": "pure", "permission": "power_user"},
    "erase": {"effect": "idempotent"},
    "unmark": {"effect": "once"},
}
for _driver in DRIVERS.values():
    _driver.setdefault("impact", 0.1)
    _driver.setdefault("permission", "readonly")

FAILURES = (
    ("failed", "driver.failed"),
    ("failed", "driver.failed"),
    ("failed", "driver.not_found"),
    ("failed", "driver.unavailable"),
    ("failed", "link.down"),
    ("timed_out", "driver.timeout"),
    ("rejected", "policy.path"),
    ("failed", "action.not_started"),
    ("failed", "driver.busy"),
    ("unknown", "node.interrupted"),
)


@dataclass(frozen=True)
class Call:
    """How one call goes: milliseconds, outcome, result or code; and how long a cancel takes."""

    after: int
    outcome: str
    value: Any
    cancel_after: int


@dataclass(frozen=True)
class Case:
    seed: int
    plan: dict[str, Any]
    groups: dict[str, list[str]]
    labels: dict[str, dict[str, Any]]
    memory: dict[str, Any]
    #: what happens by itself: {"at": ms, "do": ...}
    world: list[dict[str, Any]]
    not_before: int
    ttl_s: int
    #: share of calls that do not complete
    failing: float
    #: what it takes over from an ended run: "kept" {id: [nodes, result]}, "again" {id: where}, "left"
    retried: dict[str, Any] | None = None
    calm: frozenset[str] = frozenset()
    nodes: tuple[str, ...] = ("n1", "n2", "n3", "n4", "n5")
    #: nodes that may not do what power_user may, and nodes that cannot write or send
    low_profile: tuple[str, ...] = ("n5",)
    lacking: tuple[str, ...] = ("n5",)

    @property
    def drivers(self) -> dict[str, dict[str, Any]]:
        return DRIVERS

    @property
    def env(self) -> dict[str, str]:
        return {"IML_SITE": "garden"}

    @property
    def expires(self) -> int:
        return self.not_before + 1_000 * self.ttl_s

    def offers(self, node: str) -> set[str]:
        return set(DRIVERS) - ({"write", "send"} if node in self.lacking else set())

    def call(self, key: str, number: int) -> Call:
        """The script of the given call of a key, counted from 1."""
        dice = random.Random(f"{self.seed}/{key}/{number}")
        after, cancel_after = _odd(dice, 100, 20_000), _odd(dice, 10, 5_000)
        result = {"value": dice.randint(0, 99), "sub": {"deep": f"{key}.{number}"}}
        if dice.random() >= self.failing or f"{key}#{number}" in self.calm or number > 6:
            return Call(after, "completed", result, cancel_after)
        outcome, code = dice.choice(FAILURES)
        # a node refuses as soon as it hears of it
        return Call(after % 10 if outcome == "rejected" else after, outcome, code, cancel_after)

    def answer(
        self, kind: str, key: str, number: int, options: tuple[str, ...]
    ) -> tuple[int, str] | None:
        """(milliseconds, option) of the given question of this kind about a key; None: silence."""
        dice = random.Random(f"{self.seed}/{kind}/{key}/{number}")
        after, option = _odd(dice, 500, 400_000), dice.choice(options)
        if f"{kind}:{key}#{number}" in self.calm or number > 4:
            return after, "approve" if kind == "gate" else "done"
        if dice.random() < 0.1:
            return None
        if kind == "gate" and dice.random() < 0.6:
            return after, "approve"
        return after, option


def _odd(dice: random.Random, low: int, high: int) -> int:
    return dice.randrange(low, high) | 1


def case_of(seed: int) -> Case:
    """The case of this seed: 2 to 12 actions on five nodes."""
    dice = random.Random(seed)
    not_before = _odd(dice, 1_000, 30_000) if dice.random() < 0.08 else 0
    plan = _plan(dice)
    return Case(
        seed=seed,
        plan=plan,
        groups={
            "front": ["n1", "n2"],
            "many": ["n1", "n2", "n3", "n4"],
            "one": ["n3"],
            "mixed": ["n2", "n5"],
        },
        labels={f"n{i}": {"room": "a" if i < 4 else "b"} for i in range(1, 6)},
        memory={"k1": 17} if dice.random() < 0.9 else {},
        world=_world(dice),
        not_before=not_before,
        ttl_s=dice.randint(5, 200) if dice.random() < 0.08 else 14_400,
        failing=dice.choice((0.0, 0.1, 0.2, 0.2, 0.4)),
        retried=_retried(dice, plan) if dice.random() < 0.1 else None,
    )


def _world(dice: random.Random) -> list[dict[str, Any]]:
    happens: list[dict[str, Any]] = []
    losses = dice.choice((0, 0, 0, 1, 1, 2))
    for node in dice.sample(("n1", "n2", "n3", "n4", "n5"), losses):
        at, do = _odd(dice, 50, 40_000), dice.choice(("left", "silent"))
        happens.append({"at": at, "do": do, "node": node})
        if dice.random() < 0.6:
            back = at + REROUTE_MS + _odd(dice, 10_000, 900_000)
            happens.append({"at": back, "do": "return", "node": node})
    if dice.random() < 0.08:
        happens.append({"at": _odd(dice, 50, 60_000), "do": "cancel"})
    if dice.random() < 0.1:
        at = _odd(dice, 50, 40_000)
        happens.append({"at": at, "do": "pause"})
        happens.append({"at": at + _odd(dice, 1_000, 60_000), "do": "resume"})
    if dice.random() < 0.1:
        nodes = dice.sample(("n1", "n2", "n3"), dice.randint(0, 2))
        group = dice.choice(("front", "many", "one"))
        happens.append(
            {"at": _odd(dice, 50, 20_000), "do": "group", "group": group, "nodes": nodes}
        )
    if dice.random() < 0.05:
        node, room = f"n{dice.randint(1, 5)}", dice.choice("ab")
        at = _odd(dice, 50, 20_000)
        happens.append({"at": at, "do": "label", "node": node, "name": "room", "value": room})
    return happens


def _retried(dice: random.Random, plan: dict[str, Any]) -> dict[str, Any]:
    """Some actions completed before, of the others some may have had an effect; some stay left."""
    undoing = {a["rollback"]["action"] for a in plan["actions"] if "rollback" in a}
    kept: dict[str, Any] = {}
    again: dict[str, str] = {}
    left: list[str] = []
    for action in plan["actions"]:
        name, needs = action["id"], action.get("depends_on", [])
        if name in undoing:
            continue
        if all(needed in kept for needed in needs) and dice.random() < 0.6:
            nodes = ["n1", "n3"] if "target_mode" in action else ["n2"]
            result = {"value": 5, "sub": {"deep": "kept"}}
            by_node = dict.fromkeys(nodes, result)
            kept[name] = [nodes, by_node if "target_mode" in action else result]
        elif any(needed in left for needed in needs) or dice.random() < 0.1:
            left.append(name)
        else:
            if "target_mode" in action and dice.random() < 0.7:
                result = {"value": 6, "sub": {"deep": "kept"}}
                for node in dice.sample(("n1", "n2", "n3", "n4"), 2):
                    kept[f"{name}@{node}"] = [[node], result]
            if action["action"] in ("mark", "send", "push", "burn") and dice.random() < 0.5:
                again[name] = "n2"
    return {"kept": kept, "again": again, "left": left}


def _plan(dice: random.Random) -> dict[str, Any]:
    actions: list[dict[str, Any]] = []
    undoing = [f"u{i}" for i in range(dice.choice((0, 0, 1, 2)))]
    gated = dice.choice((0.0, 0.05, 0.25))
    for index in range(dice.randint(2, 12 - len(undoing))):
        actions.append(random_action(dice, f"a{index}", actions, undoing, gated))
    for name in sorted({a["rollback"]["action"] for a in actions if "rollback" in a}):
        actions.insert(dice.randint(0, len(actions)), undoing_action(dice, name, actions))
    return {
        "protocol_version": "2.0",
        "plan_id": "case",
        "description": "",
        "execution_mode": dice.choice(("parallel", "parallel", "sequential")),
        "barrier": dice.random() < 0.2,
        "session_id": dice.choice((None, "s-1")),
        "actions": actions,
    }
