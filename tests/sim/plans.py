"""Random plans and the manifest that their nodes offer."""

import random
from typing import Any

from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import Effect


def _spec(name: str, effect: Effect, claims: tuple[str, ...] = ()) -> ActionSpec:
    return ActionSpec("toy", name, {"type": "object"}, (), effect, "readonly", 0.1, claims=claims)


TOY = Manifest(
    {
        "toy": Module(
            "1.0",
            {
                "look": _spec("look", Effect.PURE),
                "write": _spec("write", Effect.IDEMPOTENT),
                "send": _spec("send", Effect.ONCE),
                "push": _spec("push", Effect.PHYSICAL, ("pin:17",)),
            },
        )
    }
)


GROUP = "all"


def random_plan(dice: random.Random, nodes: list[str]) -> dict[str, Any]:
    """2 to 12 actions of all effects and targets, with all that may happen to them."""
    actions: list[dict[str, Any]] = []
    for index in range(dice.randint(2, 12)):
        earlier = [action["id"] for action in actions]
        do = dice.choice(("look", "look", "write", "send", "push"))
        action: dict[str, Any] = {
            "id": f"a{index}",
            "module": "toy",
            "action": do,
            "depends_on": dice.sample(earlier, dice.randint(0, min(2, len(earlier)))),
            "timeout": dice.choice((2, 20, 20)),
            "params": {
                # the longest outlives a lease
                "ms": dice.choice((0, 0, 0, 50, 50, 3_000, 3_000, 15_000, 15_000)),
                # of its first attempts, how many fail
                "fails": dice.choice((1, 2, 9)) if dice.random() < 0.15 else 0,
                # its driver crashes wherever it runs
                "poison": dice.random() < 0.04,
            },
            **_on_error(dice),
            **_target(dice, nodes),
            **_on_loss(dice, do),
            **_rest(dice),
        }
        actions.append(action)
    if any("rollback" in action for action in actions):
        actions.append(_undoing(dice))
    return {
        "protocol_version": "2.0",
        "plan_id": "sim",
        "description": "",
        "session_id": "s",
        "execution_mode": dice.choice(("parallel", "parallel", "sequential")),
        "barrier": dice.random() < 0.2,
        "actions": actions,
    }


def _on_error(dice: random.Random) -> dict[str, Any]:
    on_error = dice.choice(("abort", "continue", "skip", "retry", "rollback"))
    found: dict[str, Any] = {"on_error": on_error}
    if on_error == "retry" and dice.random() < 0.7:
        delay = dice.choice((0.1, 2.0))
        found["retry"] = {"max_attempts": 3, "delay_seconds": delay, "retry_on": []}
    if dice.random() < 0.2:
        found["rollback"] = {"action": "undo", "params": {"fails": dice.choice((0, 0, 1))}}
    return found


def _undoing(dice: random.Random) -> dict[str, Any]:
    do = dice.choice(("write", "push"))
    params = {"ms": dice.choice((0, 50, 3_000)), "fails": 0}
    return {"id": "undo", "module": "toy", "action": do, "params": params}


def _target(dice: random.Random, nodes: list[str]) -> dict[str, Any]:
    way = dice.random()
    if way < 0.3:
        more = {"fallback_nodes": dice.sample(nodes, 2)} if dice.random() < 0.3 else {}
        return {"target_node": dice.choice(nodes), **more}
    if way < 0.5:
        mode = dice.choice(("all", "rolling"))
        found: dict[str, Any] = {"target_group": GROUP, "target_mode": mode}
        if dice.random() < 0.4:
            found["quorum"] = dice.choice((1, 2))
        if mode == "rolling" and dice.random() < 0.5:
            found["rolling"] = {"batch_size": dice.choice((1, 2)), "max_failures": 1}
        return found
    return {"target_group": GROUP} if way < 0.6 else {}


def _on_loss(dice: random.Random, do: str) -> dict[str, Any]:
    if do in ("look", "write") and dice.random() < 0.3:
        return {"on_node_loss": dice.choice(("reroute", "wait", "fail", "ask"))}
    if dice.random() < 0.3:
        return {"on_node_loss": dice.choice(("wait", "fail", "ask"))}
    return {}


def _rest(dice: random.Random) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if dice.random() < 0.2:
        found["lease_seconds"] = 10
    if dice.random() < 0.1:
        behavior = dice.choice(("reject", "skip"))
        found["requires_approval"] = True
        found["approval"] = {"timeout_seconds": 10, "timeout_behavior": behavior}
    if dice.random() < 0.2:
        found["memory"] = {"write_key": "k"}
    if dice.random() < 0.1:
        found |= {"claims": ["bus"], "on_busy": dice.choice(("wait", "fail"))}
    return found
