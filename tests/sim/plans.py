"""Random plans and the manifest that their nodes offer."""

import random
from typing import Any

from imlmesh_protocol.iml.plan import Plan
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


def random_plan(dice: random.Random, nodes: list[str]) -> Plan:
    """2 to 12 actions of all effects, with random edges, targets, errors and loss rules."""
    actions: list[dict[str, Any]] = []
    for index in range(dice.randint(2, 12)):
        earlier = [action["id"] for action in actions]
        do = dice.choice(("look", "look", "write", "send", "push"))
        action: dict[str, Any] = {
            "id": f"a{index}",
            "module": "toy",
            "action": do,
            "depends_on": dice.sample(earlier, dice.randint(0, min(2, len(earlier)))),
            "on_error": dice.choice(("abort", "continue", "skip")),
            "timeout": dice.choice((2, 20)),
            "params": {"ms": dice.choice((0, 0, 50, 3_000)), "fail": dice.random() < 0.1},
        }
        if dice.random() < 0.3:
            action["target_node"] = dice.choice(nodes)
        if do in ("look", "write") and dice.random() < 0.3:
            action["on_node_loss"] = dice.choice(("reroute", "wait", "fail", "ask"))
        elif dice.random() < 0.3:
            action["on_node_loss"] = dice.choice(("wait", "fail", "ask"))
        if dice.random() < 0.2:
            action["lease_seconds"] = 10
        actions.append(action)
    return Plan.model_validate(
        {
            "protocol_version": "2.0",
            "plan_id": "sim",
            "description": "",
            "execution_mode": dice.choice(("parallel", "parallel", "sequential")),
            "actions": actions,
        }
    )
