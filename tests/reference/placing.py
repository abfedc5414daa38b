"""Who may run a unit of work, and who gets it: target, manifest, profile, refusals, liveness."""

from typing import TYPE_CHECKING

from story import Unit

if TYPE_CHECKING:
    from interpreter import Interpreter


class FailedError(Exception):
    """It can never be placed; `code` is the fault."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def meant(rules: "Interpreter", unit: Unit) -> list[str]:
    """The nodes that the target of an action stands for, in order of node ids."""
    action = unit.action
    if action.get("target_node"):
        return [action["target_node"], *action.get("fallback_nodes", ())]
    if action.get("target_group"):
        return rules.frozen[action["target_group"]]
    if action.get("target_selector"):
        name, _, value = action["target_selector"].partition(" == ")
        return [n for n in rules.case.nodes if rules.labels[n].get(name) == value.strip('"')]
    return list(rules.case.nodes)


def unable(rules: "Interpreter", unit: Unit, node: str) -> str:
    """Why this node could never run it, or ""."""
    if unit.action["action"] not in rules.case.offers(node):
        return "action.unknown"
    permission = rules.case.drivers[unit.action["action"]]["permission"]
    if permission == "power_user" and node in rules.case.low_profile:
        return "policy.profile"
    return ""


def may_run(rules: "Interpreter", unit: Unit) -> list[str]:
    """The ids of the nodes that may run it, whether they live or not."""
    if unit.node:
        nodes = [unit.node]
    elif unit.member_wise:
        nodes = [member.node for member in unit.members]
    else:
        nodes = meant(rules, unit)
    return sorted(node for node in nodes if not unable(rules, unit, node))


def find_node(rules: "Interpreter", unit: Unit) -> str | None:
    """The node that gets it now, None while it waits for one; raises `FailedError`."""
    if unit.node:
        return _fixed(rules, unit)
    nodes = meant(rules, unit)
    open_to = [n for n in nodes if n not in unit.refused and not unable(rules, unit, n)]
    near = [n for n in open_to if rules.nodes[n] in ("online", "suspect")]
    online = [n for n in near if rules.nodes[n] == "online"]
    if unit.refused and not near:
        raise FailedError(next(reversed(unit.refused.values())))
    if unit.action.get("target_node"):
        return near[0] if near and near[0] in online else None
    fresh = [n for n in online if n not in unit.lost_on] or online
    wanted = rules.chosen.get((unit.key, unit.tries + 1), "")
    return wanted if wanted in online else min(fresh, default=None)


def _fixed(rules: "Interpreter", unit: Unit) -> str | None:
    code = unable(rules, unit, unit.node)
    if code:
        raise FailedError(code)
    if rules.nodes[unit.node] in ("lost", "offline"):
        raise FailedError("node.lost")
    return unit.node if rules.nodes[unit.node] == "online" else None
