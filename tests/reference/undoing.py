"""Rollback: which actions are undone, by what, in which order, and what a person is asked."""

from typing import TYPE_CHECKING, Any

import asking
from placing import FailedError, find_node
from reading import CannotFillError, fill
from story import Unit

if TYPE_CHECKING:
    from interpreter import Interpreter

ENDED = ("completed", "failed", "cancelled")


def go_on(rules: "Interpreter") -> None:
    """When everything has ended the compensations are made; then one after the other begins."""
    if rules.undos is None:
        if rules.cancelling or not rules.rollbacks or rules.anything_open():
            return
        rules.undos = []
        undone = [(unit, part) for unit in to_undo(rules) for part in parts(rules, unit)]
        for unit, part in sorted(undone, key=lambda pair: -pair[1].order):
            _plan(rules, unit, part)
    units = [rules.units[key] for key in rules.undos]
    if rules.cancelling:
        for unit in units:
            if unit.state in ("pending", "waiting", "awaiting_approval"):
                rules.end(unit, "cancelled", "action.cancelled")
        return
    if rules.paused or any(_going(rules, unit) for unit in units):
        return
    for unit in units:
        if unit.state == "pending":
            begin(rules, unit)
            return


def to_undo(rules: "Interpreter") -> list[Unit]:
    """Each action that failed with rollback, if it started, and its completed ancestors."""
    found: set[str] = set()
    for name in rules.rollbacks:
        if any(part.worked_on for part in (rules.units[name], *rules.units[name].members)):
            found.add(name)
        found |= {a for a in rules.read.ancestors(name) if rules.units[a].state == "completed"}
    return [rules.units[name] for name in found]


def parts(rules: "Interpreter", unit: Unit) -> list[Unit]:
    """What is undone one by one: the action itself, or the members that did something."""
    if not unit.member_wise:
        return [unit]
    failed = unit.key in rules.rollbacks
    return [m for m in unit.members if m.state == "completed" or (failed and m.worked_on)]


def _plan(rules: "Interpreter", unit: Unit, part: Unit) -> None:
    assert rules.undos is not None
    named = unit.action.get("rollback")
    undo = rules.case.drivers[unit.action["action"]].get("undo", {})
    if not named and not undo:
        return
    key = f"{unit.key}~{part.worked_on}"
    rules.undos.append(key)
    if named:
        action = rules.read.all[named["action"]]
        params = action.get("params", {}) | named.get("params", {})
        rules.units[key] = Unit(key, action, params, part.worked_on, undoes=unit.key)
        return
    action = {"id": unit.key, "action": undo["action"], "on_error": "abort"}
    made = Unit(key, action, {}, part.worked_on, undoes=unit.key)
    rules.units[key] = made
    result = part.result if part.state == "completed" else None
    try:
        made.params = fill(undo["params"], {"params": _called_with(rules, part), "result": result})
    except CannotFillError as exc:
        failed(rules, made, exc.code, asks=False)


def _called_with(rules: "Interpreter", part: Unit) -> Any:
    calls = [call for call in rules.calls if call[0] == part.key and call[2] == part.worked_on]
    # what was kept from an ended run was called there, and what it was filled with is not known
    if not calls and "{{" in str(part.params):
        raise CannotFillError("template.no_result")
    return calls[-1][3] if calls else part.params


def _going(rules: "Interpreter", unit: Unit) -> bool:
    """Whether the next one waits for this one: not when this one only waits for a person's word."""
    gate = any(q.open and q.key == unit.key and q.kind == "gate" for q in rules.questions)
    return unit.state in ("waiting", "running") or gate


def begin(rules: "Interpreter", unit: Unit) -> None:
    try:
        find_node(rules, unit)
    except FailedError as exc:
        ask(rules, unit, exc.code)
        return
    if rules.read.wants_gate(unit.action) and not unit.approved:
        asking.ask_gate(rules, unit)
    else:
        unit.state = "waiting"


def completed(rules: "Interpreter", unit: Unit) -> None:
    """The undone member is rolled back, and its action as soon as all compensations are done."""
    member = rules.units.get(f"{unit.undoes}@{unit.node}")
    if member and member.state in ("completed", "failed"):
        member.state = "rolled_back"
    same = [u for u in rules.units.values() if u.undoes == unit.undoes]
    if all(other.state == "completed" for other in same):
        rules.units[unit.undoes].state = "rolled_back"


def failed(rules: "Interpreter", unit: Unit, code: str, *, asks: bool) -> None:
    """A compensation that ran or should have run asks what now; others are only flagged."""
    if asks and not rules.cancelling:
        ask(rules, unit, code)
    else:
        rules.end(unit, "failed", code)
        rules.flagged = True


def ask(rules: "Interpreter", unit: Unit, code: str) -> None:
    unit.state, unit.fault = "awaiting_approval", code

    def answered(option: str | None) -> None:
        if option == "rerun":
            unit.state, unit.fault = "pending", ""
        elif option == "done":
            rules.complete(unit, None, "action.done_by_person")
        else:
            failed(rules, unit, "action.failed_by_person", asks=False)

    asking.ask(rules, "compensation", unit, answered)


def done(rules: "Interpreter") -> bool:
    if rules.rollbacks and rules.undos is None and not rules.cancelling:
        return False
    return all(rules.units[key].state in ENDED for key in rules.undos or ())


def end_what_only_undoes(rules: "Interpreter") -> None:
    """Skipped when never used, completed when all it was used for is, else failed."""
    for name in rules.read.only_undo:
        made = [rules.units[key] for key in rules.undos or ()]
        used = [unit for unit in made if unit.action["id"] == name]
        if not used:
            rules.end(rules.units[name], "skipped", "action.not_needed")
        elif all(unit.state == "completed" for unit in used):
            rules.end(rules.units[name], "completed")
        else:
            bad = next(unit for unit in used if unit.state != "completed")
            rules.end(rules.units[name], "failed", bad.fault)
    if rules.cancelling and rules.rollbacks:
        begun = rules.undos is not None
        all_done = all(rules.units[key].state == "completed" for key in rules.undos or ())
        rules.flagged |= not (begun and all_done)
