"""What happens to nodes and to the run from outside: losses, returns, cancel, pause, the end of time."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import members
import undoing
from asking import ask
from case import LOST_MS, REROUTE_MS
from story import UnclearError, Unit

if TYPE_CHECKING:
    from interpreter import Interpreter

CANCEL_MS = 30_000


def takes_over(rules: "Interpreter", old: Mapping[str, Any]) -> None:
    """What completed in the run that this one retries is kept; what is left stays skipped."""
    for name, (nodes, result) in old["kept"].items():
        if "@" in name:
            rules.kept[name] = result
            continue
        unit = rules.units[name]
        unit.worked_on, unit.result = nodes[-1], result
        for node in nodes if unit.member_wise else ():
            member = Unit(f"{name}@{node}", unit.action, unit.params, node, worked_on=node)
            member.result = result[node]
            rules.units[member.key] = member
            unit.members.append(member)
            rules.end(member, "completed")
        rules.end(unit, "completed")
    for name in old["left"]:
        rules.end(rules.units[name], "skipped", "action.not_needed")
        rules.units[name].forgiven = True
    rules.again = dict(old["again"])


def happens(rules: "Interpreter", what: Mapping[str, Any]) -> None:
    do, node = what["do"], what.get("node", "")
    if do == "left":
        rules.nodes[node] = "offline"
        is_lost(rules, node, ("fail", "ask", "reroute"))
    elif do == "silent":
        rules.nodes[node] = "suspect"
        rules.later(rules.now + LOST_MS, partial(noticed, rules, node))
        rules.later(rules.now + REROUTE_MS, partial(is_lost, rules, node, ("reroute",)))
    elif do == "return":
        # its journal holds nothing of what it was given before
        rules.nodes[node] = "online"
        is_lost(rules, node, ("wait",))
    elif do == "group":
        rules.groups[what["group"]] = list(what["nodes"])
    elif do == "label":
        rules.labels[node][what["name"]] = what["value"]
    elif do == "cancel":
        cancel(rules)
    else:
        rules.paused = do == "pause"


def noticed(rules: "Interpreter", node: str) -> None:
    """The silence has lasted for the whole window."""
    rules.nodes[node] = "lost"
    is_lost(rules, node, ("fail", "ask"))


def is_lost(rules: "Interpreter", node: str, meanings: tuple[str, ...]) -> None:
    """What runs on a lost node, of the units to which its loss means one of these."""
    for unit in list(rules.units.values()):
        if unit.state != "running" or unit.on != node or unit.member_wise:
            continue
        if unit.call and unit.call.outcome == "rejected":
            raise UnclearError("a node is lost before it could refuse")
        means = rules.on_loss(unit)
        if rules.expired and means != "ask":
            raise UnclearError("a node is lost after the time of the run")
        if means not in meanings:
            continue
        if unit.undoes:
            undoing.ask(rules, unit, "node.lost")
        elif means in ("reroute", "wait") and rules.read.repeatable(unit.action):
            # it is simply given again; unless that never comes to pass, it works elsewhere in the end
            unit.state, unit.worked_on = "waiting", node
            unit.lost_on.add(node)
        elif means == "fail":
            unit.worked_on = node
            rules.fail(unit, "node.lost")
        else:
            unit.worked_on = node
            becomes_unknown(rules, unit, "node.lost")


def becomes_unknown(rules: "Interpreter", unit: Unit, code: str) -> None:
    """Nobody knows whether the effect happened: a person says what now; silence is fail."""
    unit.state, unit.fault = "unknown", code

    def answered(option: str | None) -> None:
        if option == "rerun" and rules.aborting and not rules.cancelling:
            rules.fail(unit, "node.lost")
        elif option == "rerun":
            unit.state, unit.fault = "waiting", ""
        elif option == "done":
            rules.complete(unit, None, "action.done_by_person")
        else:
            rules.fail(unit, "action.failed_by_person")

    ask(rules, "lost_effect", unit, answered)


def expires(rules: "Interpreter") -> None:
    """The run's time is over: nothing new starts, and nobody waits for lost nodes any longer."""
    if rules.undos is not None:
        raise UnclearError("the time of the run is over while it is rolled back")
    rules.expired = True
    for unit in list(rules.units.values()):
        if unit.state == "running" and rules.nodes.get(unit.on) in ("lost", "offline"):
            unit.worked_on = unit.on
            rules.fail(unit, "node.lost")
            members.go_on(rules, rules.units[unit.action["id"]])
    if any(rules.is_ready(name) for name in rules.read.actions):
        raise UnclearError("what follows becomes ready in the moment that ends the run")
    rules.aborting = rules.aborting or "run.expired"


def cancel(rules: "Interpreter") -> None:
    """What runs is told to end; after 30 s nobody waits for a confirmation any longer."""
    rules.cancelling, rules.paused = True, False
    for unit in rules.units.values():
        if unit.state == "running" and unit.call and rules.nodes[unit.on] == "online":
            rules.later(
                rules.now + unit.call.cancel_after,
                partial(rules.end, unit, "cancelled", "action.cancelled"),
                partial(_still, rules, unit, unit.tries),
            )
    rules.later(rules.now + CANCEL_MS, partial(_not_confirmed, rules))


def _still(rules: "Interpreter", unit: Unit, number: int) -> bool:
    lives = rules.nodes[unit.on] == "online"
    return lives and unit.state == "running" and unit.tries == number


def _not_confirmed(rules: "Interpreter") -> None:
    rules.unconfirmed = True
    for unit in rules.units.values():
        if unit.state in ("running", "unknown"):
            rules.end(unit, "cancelled", "action.cancelled")
