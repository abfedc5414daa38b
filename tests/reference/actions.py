"""Random actions of a case: every field of IML v2 that the rules speak of."""

import random
from typing import Any

Action = dict[str, Any]
ON_ERROR = ("abort", "continue", "continue", "retry", "retry", "retry", "rollback", "skip")
LOSS = ("reroute", "wait", "fail", "ask")
RETRY_ON: tuple[list[str], ...] = (
    [],
    [],
    ["TimeoutError", "ConnectionError"],
    ["OSError"],
    ["RuntimeError"],
    ["Exception"],
)
REPEATABLE = ("look", "write", "guarded")


def random_action(
    dice: random.Random, name: str, earlier: list[Action], undoing: list[str], gated: float
) -> Action:
    """An action behind some of the earlier ones; it may be undone by one of `undoing`."""
    names = [action["id"] for action in earlier]
    do = dice.choice(("look", "look", "write", "mark", "send", "push", "guarded"))
    action: Action = {
        "id": name,
        "module": "toy",
        "action": "burn" if dice.random() < gated / 4 else do,
        "params": {"path": name},
        "depends_on": dice.sample(names, dice.randint(0, min(2, len(names)))),
        "on_error": dice.choice(ON_ERROR),
    }
    _target(dice, action)
    _failing(dice, action, undoing)
    _asking(dice, action, gated)
    _reading(dice, action, earlier)
    if dice.random() < 0.15:
        _more(action, "memory", {"write_key": dice.choice(("k1", "k2"))})
    return action


def undoing_action(dice: random.Random, name: str, actions: list[Action]) -> Action:
    """An action that only undoes others; it may read the result of what it undoes."""
    action: Action = {
        "id": name,
        "module": "toy",
        "action": dice.choice(("look", "erase", "send")),
        "params": {"path": name, "where": "{{node.id}}"},
        "on_error": dice.choice(("abort", "continue", "retry")),
    }
    if action["on_error"] == "retry":
        action["retry"] = _retry(dice)
    if dice.random() < 0.15:
        _asking(dice, action, 1.0)
    undone = [a for a in actions if a.get("rollback", {}).get("action") == name]
    if dice.random() < 0.3:
        action["params"]["was"] = f"{{{{result.{dice.choice(undone)['id']}}}}}"
    return action


def _target(dice: random.Random, action: Action) -> None:
    kind = dice.choice(("none", "none", "none", "node", "group", "group", "selector"))
    if kind == "node":
        nodes = dice.sample(("n1", "n2", "n3", "n4", "n5"), dice.randint(1, 3))
        action["target_node"] = nodes[0]
        if nodes[1:]:
            action["fallback_nodes"] = nodes[1:]
    elif kind == "group":
        action["target_group"] = dice.choice(("front", "many", "many", "one", "mixed"))
    elif kind == "selector":
        action["target_selector"] = dice.choice(('room == "a"', 'room == "b"'))
    mode = dice.choice(("any", "any", "any", "all", "rolling"))
    if mode != "any":
        action.pop("fallback_nodes", None)
        action["target_mode"] = mode
        if dice.random() < 0.4:
            # more than the nodes of a target: it fails at once
            few = 1 if kind == "node" else 2
            action["quorum"] = 3 if dice.random() < 0.1 else dice.randint(1, few)
        if mode == "rolling" and dice.random() < 0.7:
            action["rolling"] = {
                "batch_size": dice.randint(1, 3),
                "max_failures": dice.randint(0, 2),
            }


def _failing(dice: random.Random, action: Action, undoing: list[str]) -> None:
    if action["on_error"] == "retry" and dice.random() < 0.7:
        action["retry"] = _retry(dice)
    if undoing and dice.random() < 0.3:
        action["rollback"] = {"action": dice.choice(undoing)}
        if dice.random() < 0.5:
            action["rollback"]["params"] = {"why": action["id"]}
    if dice.random() < 0.25:
        moving = action["action"] in REPEATABLE
        action["on_node_loss"] = dice.choice(LOSS if moving else LOSS[1:])
    if dice.random() < 0.1 and action["action"] == "look":
        action["effect"] = dice.choice(("idempotent", "once"))
        if action["effect"] == "once" and action.get("on_node_loss") == "reroute":
            del action["on_node_loss"]


def _retry(dice: random.Random) -> dict[str, Any]:
    return {
        "max_attempts": dice.randint(1, 4),
        "delay_seconds": dice.choice((0.5, 3.0, 30.0)),
        "backoff_factor": dice.choice((1.0, 2.0, 2.5)),
        "retry_on": dice.choice(RETRY_ON),
    }


def _asking(dice: random.Random, action: Action, gated: float) -> None:
    if dice.random() < gated:
        action["requires_approval"] = True
    elif dice.random() < gated / 4:
        action["impact"] = 0.75
    if dice.random() < gated:
        action["approval"] = {
            "timeout_seconds": dice.choice((None, 10, 60, 601)),
            "timeout_behavior": dice.choice(("reject", "skip")),
            "clarification_options": dice.choice(([], ["left", "right"])),
        }


def _reading(dice: random.Random, action: Action, earlier: list[Action]) -> None:
    """Templates over results of direct dependencies, and over memory."""
    known = {one["id"]: one for one in earlier}
    for needed in action["depends_on"]:
        if dice.random() < 0.3:
            action["params"][f"of_{needed}"] = dice.choice(_templates(known[needed]))
    if dice.random() < 0.1:
        # mostly a key that is there from the beginning
        key = "k2" if dice.random() < 0.15 else "k1"
        action["params"]["known"] = f"{{{{memory.{key}}}}}"
        _more(action, "memory", {"read_keys": [key]})


def _templates(source: Action) -> list[str]:
    name = source["id"]
    if source.get("target_mode", "any") != "any":
        found = [f"{{{{result.{name}.*.value}}}}", f"{{{{result.{name}}}}}"]
        return [*found, f"at {{{{result.{name}.n2.sub}}}}"]
    found = [f"{{{{result.{name}.value}}}}", f"{{{{result.{name}}}}}"]
    if source["on_error"] == "continue":
        found = [*found, f"failed with {{{{result.{name}._error.code}}}}"]
    return [*found, f"{{{{result.{name}.sub.deep}}}} and {{{{env.IML_SITE}}}} on {{{{node.id}}}}"]


def _more(action: Action, field: str, values: dict[str, Any]) -> None:
    action[field] = {**action.get(field, {}), **values}
