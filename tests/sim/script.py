"""What will happen to one world, decided in advance: its plans and its faults, as data.

The one rule: a script and nothing else makes a world, so that a part of a script is a smaller world
of the same kind: that is what shrinking tries. `script_of` makes one out of a seed. Deliberately
absent: how a fault is done; `faulting` knows.
"""

import random
from dataclasses import dataclass
from typing import Any

from imlmesh_runtime.link.memory import Faults
from permits import Wish, random_wishes
from plans import random_plan

FAULTY_MS = 40_000
CALM = Faults()
LONG = {
    "id": "long",
    "module": "toy",
    "action": "look",
    "timeout": 20,
    "on_error": "continue",
    "params": {"ms": 15_000, "fails": 0},
}
#: how a node is gone for good
GONE = ("stays dead", "stays deaf", "stays cut off", "stays shut down")
#: with such a node the runs that wait for it live so long
GONE_TTL_S = 120
#: how often each kind is drawn, beside the others
WEIGHTS = {
    "kill": 3,
    "flap": 2,
    "crash": 2,
    "cut": 5,
    "half": 5,
    "drop": 3,
    "suspend": 2,
    "journal full": 2,
    "torn": 2,
    "goodbye": 2,
    "clock": 2,
    "replay": 3,
    "orchestrator": 2,
    "alone": 2,
    "asleep": 1,
    "store full": 2,
    "behind": 1,
    "broker": 2,
    "cancel": 1,
    "pause": 1,
    "cordoned": 1,
    "draining": 2,
    "quarantined": 2,
    "revoked": 1,
    "misbehave": 1,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """`at_ms` counts from the first plan; `number` is a die of its own for what it leaves open."""

    at_ms: int
    kind: str
    node: str
    pause_ms: int
    number: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.node} for {self.pause_ms} ms"


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut of `who` at its commit of that number, `before` or after it."""

    who: str
    commit: int
    before: bool
    pause_ms: int


@dataclass(frozen=True, slots=True)
class Script:
    """`plans` are (at_ms, plan) as data. `cuts` None: power cuts as the seed wants them."""

    seed: int
    nodes: tuple[str, ...]
    plans: tuple[tuple[int, dict[str, Any]], ...] = ()
    faults: tuple[Fault, ...] = ()
    network: Faults = CALM
    cuts: tuple[Cut, ...] | None = ()
    faulty_ms: int = FAULTY_MS
    wishes: tuple[Wish, ...] = ()

    def __str__(self) -> str:
        """For people: what goes in, a line each."""
        lines = [f"seed {self.seed}, nodes {', '.join(self.nodes)}, network {self.network}"]
        lines += [f"  at {f.at_ms} ms: {f}" for f in self.faults]
        lines += [f"  {c.who}: power cut at commit {c.commit}" for c in self.cuts or ()]
        lines += [f"  {wish}" for wish in self.wishes]
        for at_ms, plan in self.plans:
            lines.append(f"  at {at_ms} ms a plan, {plan['execution_mode']}:")
            lines += [f"    {action}" for action in plan["actions"]]
        return "\n".join(lines)


def script_of(seed: int) -> Script:
    """One world of a seed: 1 to 3 plans, up to 7 faults, and a network of its own."""
    dice = random.Random(seed)
    nodes = tuple(f"n{i}" for i in range(3))
    plans = [(0, random_plan(dice, list(nodes)))]
    for _ in range(dice.randint(0, 2)):
        plans.append((dice.randint(0, FAULTY_MS // 2), random_plan(dice, list(nodes))))
    network = Faults(
        loss=dice.choice((0.0, 0.02, 0.15)),
        repeat=dice.choice((0.0, 0.1)),
        delay_ms=dice.choice((0, 5)),
        jitter_ms=dice.choice((0, 0, 40)),
    )
    # most work is over soon, so most faults come soon after a plan
    faults = []
    for _ in range(dice.randint(0, 7)):
        plan_ms, _ = dice.choice(plans)
        at_ms = plan_ms + dice.choice((dice.randint(0, 500), dice.randint(0, 6_000), 12_000))
        (kind,) = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
        pause_ms = dice.choice((200, 3_000, 9_000, 20_000, 20_000))
        faults.append(Fault(at_ms, kind, dice.choice(nodes), pause_ms, dice.getrandbits(32)))
    if dice.random() < 0.25:
        # a node is cut off for longer than a lease, and may be doing what outlives one
        plan_ms, plan = dice.choice(plans)
        plan["actions"].append(LONG)
        at_ms = plan_ms + dice.randint(500, 2_000)
        faults.append(Fault(at_ms, "cut", dice.choice(nodes), 20_000, dice.getrandbits(32)))
    wishes = random_wishes(seed, nodes)
    for wish in wishes:
        faults += _while_cut_off(random.Random(f"{seed}/{wish.node}/cut off"), wish)
    faults += _standing_still(random.Random(f"{seed}/standing still"), nodes, plans)
    faults += _gone(random.Random(f"{seed}/gone"), nodes, plans)
    faults.sort(key=lambda fault: fault.at_ms)
    return Script(seed, nodes, tuple(plans), tuple(faults), network, None, wishes=wishes)


def _while_cut_off(dice: random.Random, wish: Wish) -> list[Fault]:
    """Time for its node to run it by itself, in which now and then the power goes."""
    at_ms, kind = wish.at_ms + 2_000, dice.choice(("cut", "orchestrator", "alone", "broker"))
    found = [Fault(at_ms, kind, wish.node, 20_000, dice.getrandbits(32))]
    if dice.random() < 0.15:
        found.append(Fault(at_ms - 500, "quarantined", wish.node, 0))
    if dice.random() < 0.5:
        kind = dice.choice(("kill", "kill", "suspend", "clock", "goodbye", "journal full"))
        later_ms, pause_ms = dice.randint(5_000, 12_000), dice.choice((200, 3_000))
        found.append(Fault(at_ms + later_ms, kind, wish.node, pause_ms, dice.getrandbits(32)))
    return found


def _standing_still(
    dice: random.Random, nodes: tuple[str, ...], plans: list[tuple[int, dict[str, Any]]]
) -> list[Fault]:
    """Now and then a node sleeps for longer than a lease, while work waits in its socket or for other
    work there, whose driver ends when it wakes."""
    if dice.random() >= 0.04:
        return []
    plan_ms, plan = dice.choice(plans)
    node = dice.choice(nodes)
    others = [name for name in nodes if name != node]
    there = {"target_node": node, "fallback_nodes": others, "claims": ["bus"], "on_busy": "wait"}
    work = {**LONG, "params": {"ms": 3_000, "fails": 0}, **there}
    plan["actions"] += [{**work, "id": f"after{i}"} for i in range(3)]
    at_ms = plan_ms + dice.choice((0, dice.randint(500, 2_500)))
    return [Fault(at_ms, "suspend", node, dice.choice((9_000, 20_000)), 1)]


def _gone(
    dice: random.Random, nodes: tuple[str, ...], plans: list[tuple[int, dict[str, Any]]]
) -> list[Fault]:
    """In every fourth world one node is gone for good, in half of these after it was lost and heard
    once more.

    What waits for it ends with its run's time to live; half of these worlds want nothing of the kind
    and no end of that time, so that all of their work has to move.
    """
    if dice.random() >= 0.25:
        return []
    node, kind = dice.choice(nodes), dice.choice(GONE)
    plan_ms, _ = dice.choice(plans)
    at_ms = plan_ms + dice.choice((dice.randint(0, 500), dice.randint(0, 6_000), 12_000))
    found: list[Fault] = []
    longer: list[dict[str, Any]] = []
    if dice.random() < 0.5:
        # it was lost, and before its leases are over it says one word more: it hears no answer
        at_ms, away_ms = plan_ms + dice.randint(500, 2_000), dice.randint(5_500, 8_000)
        found.append(Fault(at_ms, "cut", node, away_ms))
        found.append(Fault(at_ms + away_ms + 1, "half", node, 3_000))
        at_ms += away_ms + dice.randint(300, 1_500)
        others = [name for name in nodes if name != node]
        there = {"target_node": node, "fallback_nodes": others, "lease_seconds": 10}
        longer.append({**LONG, "id": "longer", **there})
    found.append(Fault(at_ms, kind, node, 0))
    patient = dice.random() < 0.5
    for _, plan in plans:
        if patient:
            plan["ttl_seconds"] = GONE_TTL_S
        else:
            for action in plan["actions"]:
                _move(action, node)
        plan["actions"] += longer
    return found


def _move(action: dict[str, Any], gone: str) -> None:
    """Let it wait for nobody."""
    if action.get("target_node") == gone:
        del action["target_node"]
        action.pop("fallback_nodes", None)
    if action.get("on_node_loss") == "wait":
        action["on_node_loss"] = "fail" if action["action"] in ("send", "push") else "reroute"
