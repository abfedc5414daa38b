"""What a plan says, read aloud: order, waves, ancestors, what undoes what, and filled templates.

The one rule: plain dicts in, plain values out, nothing taken from the product but the catalogue
of drivers. Deliberately absent: everything that happens; that is the interpreter's.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

Action = Mapping[str, Any]
_TEMPLATE = re.compile(r"\{\{([^{}]+)\}\}")


class CannotFillError(Exception):
    """A template has no value; `code` is the fault of the action that wanted it."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class NoResult:
    """Stands for the result of a failed, continued action: only its error can be read."""

    def __init__(self, code: str) -> None:
        self.code = code


class Reading:
    """`plan` as written, `drivers` as {action: {effect, impact, permission, undo}}."""

    def __init__(self, plan: Mapping[str, Any], drivers: Mapping[str, Any]) -> None:
        self.plan = plan
        self.drivers = drivers
        self.all: dict[str, Action] = {action["id"]: action for action in plan["actions"]}
        self.only_undo = {a["rollback"]["action"] for a in self.all.values() if a.get("rollback")}
        self.actions = {name: a for name, a in self.all.items() if name not in self.only_undo}

    def needs(self, name: str) -> list[str]:
        return list(self.actions[name].get("depends_on", ()))

    def order(self) -> list[str]:
        """Topological; where several could come next, the first of the list does."""
        done: list[str] = []
        while len(done) < len(self.actions):
            done.append(
                next(
                    name
                    for name in self.actions
                    if name not in done and all(needed in done for needed in self.needs(name))
                )
            )
        return done

    def wave(self, name: str) -> int:
        return 1 + max((self.wave(needed) for needed in self.needs(name)), default=0)

    def ancestors(self, name: str) -> set[str]:
        direct = set(self.needs(name))
        return direct.union(*(self.ancestors(needed) for needed in direct))

    def descendants(self, name: str) -> list[str]:
        return [other for other in self.actions if name in self.ancestors(other)]

    def effect(self, action: Action) -> str:
        return str(action.get("effect") or self.drivers[action["action"]]["effect"])

    def repeatable(self, action: Action) -> bool:
        return self.effect(action) in ("pure", "idempotent")

    def wants_gate(self, action: Action) -> bool:
        impact = max(action.get("impact") or 0, self.drivers[action["action"]]["impact"])
        return bool(action.get("requires_approval")) or impact > 0.7

    def on_loss(self, action: Action, *, member: bool) -> str:
        """What the loss of its node means: reroute, wait, fail or ask."""
        written = action.get("on_node_loss")
        if member:
            if written in ("wait", "ask", "fail"):
                return str(written)
            return "fail" if self.repeatable(action) else "ask"
        if written:
            return str(written)
        if not self.repeatable(action):
            return "ask"
        if action.get("target_node") and not action.get("fallback_nodes"):
            return "wait"
        return "reroute"


def retry_of(action: Action) -> Mapping[str, Any]:
    """The written retry, or the defaults, with every field."""
    defaults = {
        "max_attempts": 3,
        "delay_seconds": 1.0,
        "backoff_factor": 2.0,
        "retry_on": ["TimeoutError", "ConnectionError"],
    }
    return defaults | (action.get("retry") or {})


def fill(value: Any, known: Mapping[str, Any]) -> Any:
    """Params with every template replaced. `known` is {"result": {...}, "memory": {...}, "node": id}.

    Where `known` lacks "node" or holds None for it, {{node.id}} stays as it is written.
    """
    if isinstance(value, dict):
        return {key: fill(inner, known) for key, inner in value.items()}
    if isinstance(value, list):
        return [fill(inner, known) for inner in value]
    if not isinstance(value, str):
        return value
    alone = _TEMPLATE.fullmatch(value)
    if alone:
        return _look_up(alone[1], known)
    return _TEMPLATE.sub(lambda match: _as_text(_look_up(match[1], known)), value)


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _look_up(path: str, known: Mapping[str, Any]) -> Any:
    root, *keys = path.split(".")
    if root == "node":
        return known.get("node") or "{{node.id}}"
    if root == "memory" and keys[0] not in known["memory"]:
        raise CannotFillError("memory.not_found")
    return _walk(known.get(root), keys)


def _walk(value: Any, keys: list[str]) -> Any:
    for at, key in enumerate(keys):
        if isinstance(value, NoResult) and keys[at:] == ["_error", "code"]:
            return value.code
        if key == "*" and isinstance(value, dict):
            return [_walk(value[node], keys[at + 1 :]) for node in sorted(value)]
        if not isinstance(value, dict) or key not in value:
            raise CannotFillError("template.no_result")
        value = value[key]
    if isinstance(value, NoResult):
        raise CannotFillError("template.no_result")
    return value
