"""target_mode all and rolling: who takes part, whose turn it is, and when it is over."""

from typing import TYPE_CHECKING

from placing import meant, unable
from story import UnclearError, Unit

if TYPE_CHECKING:
    from interpreter import Interpreter

GOING = ("pending", "waiting", "awaiting_approval", "running")


def fix(rules: "Interpreter", unit: Unit) -> None:
    """The members are fixed when the action becomes ready."""
    for node in candidates(rules, unit):
        member = Unit(f"{unit.key}@{node}", unit.action, unit.params, node)
        if member.key in rules.kept:
            member.worked_on, member.result = node, rules.kept[member.key]
        rules.units[member.key] = member
        unit.members.append(member)


def candidates(rules: "Interpreter", unit: Unit) -> list[str]:
    """All nodes that the target means; without one, all that are able."""
    nodes = sorted(meant(rules, unit))
    if any(unit.action.get(f"target_{kind}") for kind in ("node", "group", "selector")):
        return nodes
    return [node for node in nodes if not unable(rules, unit, node)]


def somebody_cannot(rules: "Interpreter", unit: Unit) -> bool:
    """Whether a member would fail as soon as its turn comes."""
    away = ("lost", "offline")
    nodes = candidates(rules, unit)
    return any(rules.nodes[node] in away or unable(rules, unit, node) for node in nodes)


def why_not(rules: "Interpreter", unit: Unit) -> str:
    """The code with which a member-wise action fails as soon as it is ready, or ""."""
    count = len(candidates(rules, unit))
    if not count:
        return "place.no_node"
    quorum = unit.action.get("quorum", "all")
    return "action.partial" if quorum != "all" and quorum > count else ""


def rolling(unit: Unit) -> tuple[int, int]:
    """(batch_size, max_failures); of an all-action everybody is in the one batch."""
    if unit.action["target_mode"] == "all":
        return len(unit.members), len(unit.members)
    written = unit.action.get("rolling") or {}
    return written.get("batch_size", 1), written.get("max_failures", 0)


def needed(unit: Unit) -> int:
    quorum = unit.action.get("quorum", "all")
    if quorum != "all":
        return int(quorum)
    if unit.action["target_mode"] == "all":
        return len(unit.members)
    return max(1, len(unit.members) - rolling(unit)[1])


def all_go_on(rules: "Interpreter") -> None:
    for name in rules.read.actions:
        go_on(rules, rules.units[name])


def go_on(rules: "Interpreter", unit: Unit) -> None:
    """Begin the next batch when all of the one before have ended; end the action when it is over."""
    if unit.state != "running" or not unit.member_wise:
        return
    size = rolling(unit)[0]
    for start in range(0, len(unit.members), size):
        batch = unit.members[start : start + size]
        if rules.may_start():
            for member in batch:
                # what was kept has ended already
                member.state = "waiting" if member.state == "pending" else member.state
        if any(member.state in (*GOING, "unknown") for member in batch):
            break
    _end(rules, unit)


def stop_if_too_many(rules: "Interpreter", member: Unit) -> None:
    """More failures than rolling allows: who has not begun is left alone."""
    unit = rules.units[member.action["id"]]
    if unit.action["target_mode"] != "rolling":
        return
    if sum(other.state == "failed" for other in unit.members) > rolling(unit)[1]:
        for other in unit.members:
            if other.state == "waiting" and rules.would_fail(other):
                raise UnclearError("two members fail in the same moment, and one is too many")
            if other.state in ("pending", "waiting"):
                rules.end(other, "skipped", "action.dependency")


def _end(rules: "Interpreter", unit: Unit) -> None:
    done = {m.node: m.result for m in unit.members if m.state == "completed"}
    unknown = [member for member in unit.members if member.state == "unknown"]
    enough = len(done) >= needed(unit)
    if any(m.state in GOING for m in unit.members) or (unknown and not enough):
        return
    for member in unknown:
        rules.end(member, "failed", "node.lost")
    if enough:
        rules.complete(unit, done)
    elif rules.cancelling:
        rules.end(unit, "cancelled", "action.cancelled")
    elif not any(member.tries for member in unit.members) and rules.aborting:
        rules.end(unit, "skipped", rules.why_stopped())
    else:
        rules.fail(unit, "action.partial")
