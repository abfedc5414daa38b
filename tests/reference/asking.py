"""What a person is asked: gates, and how any question is answered, expires, or is superseded."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from placing import may_run
from reading import CannotFillError, fill
from story import Question, UnclearError, Unit

if TYPE_CHECKING:
    from interpreter import Interpreter

#: what may be done about an effect that nobody knows of, and about a compensation that failed
OPTIONS = ("rerun", "done", "fail")
HOUR_MS = 3_600_000
SUPERSEDED = "superseded"

Answered = Callable[[str | None], None]


def ask(
    rules: "Interpreter",
    kind: str,
    unit: Unit,
    answered: Answered,
    options: tuple[str, ...] = OPTIONS,
    timeout_ms: int = HOUR_MS,
    outdated: Callable[[], bool] = lambda: False,
) -> None:
    """Ask a person; `answered` gets the option, None for silence, or SUPERSEDED for a yes to what is
    outdated."""
    times = 1 + sum(q.kind == kind and q.key == unit.key for q in rules.questions)
    question = Question(kind, unit.key)
    rules.questions.append(question)

    def close(option: str | None) -> None:
        if option not in (None, "deny") and outdated():
            option = SUPERSEDED
        question.outcome = option or "expired"
        answered(option)

    answer = rules.case.answer(kind, unit.key, times, options)
    if answer:
        after, option = answer
        rules.later(rules.now + after, lambda: close(option), lambda: question.open)
    rules.later(rules.now + timeout_ms, lambda: close(None), lambda: question.open)


def supersede(rules: "Interpreter", unit: Unit) -> None:
    """Whoever has ended asks no longer."""
    for question in rules.questions:
        if question.key == unit.key and question.open:
            question.outcome = "superseded"


def whole(rules: "Interpreter", unit: Unit) -> Unit:
    """The action that it is a member of, else itself."""
    return rules.units[unit.key.partition("@")[0]]


def bound_to(rules: "Interpreter", unit: Unit) -> str:
    """What an approval is given for: params but for {{node.id}}, and who may run it."""
    return str((fill(unit.params, rules.known(None)), may_run(rules, whole(rules, unit))))


def ask_gate(rules: "Interpreter", unit: Unit) -> None:
    """Ask before it runs; params that cannot be filled fail it unasked."""
    try:
        bound = bound_to(rules, unit)
    except CannotFillError as exc:
        rules.fail(unit, exc.code, asks=False)
        return
    unit.state = "awaiting_approval"
    approval = unit.action.get("approval") or {}

    def answered(option: str | None) -> None:
        skips = approval.get("timeout_behavior") == "skip" and not unit.undoes
        if option is None and skips:
            rules.skip(unit, "approval.expired")
        elif option is None:
            rules.fail(unit, "approval.expired", asks=False)
        elif option == "deny":
            rules.fail(unit, "approval.denied", asks=False)
        elif option == SUPERSEDED:
            ask_anew(rules, unit)
        else:
            unit.approved = bound
            unit.state = "running" if unit.member_wise else "waiting"

    options = ("approve", "deny", *approval.get("clarification_options", ()))
    timeout_ms = 1_000 * approval["timeout_seconds"] if approval.get("timeout_seconds") else HOUR_MS
    ask(rules, "gate", unit, answered, options, timeout_ms, lambda: is_outdated(rules, unit, bound))


def is_outdated(rules: "Interpreter", unit: Unit, bound: str) -> bool:
    """Whether something else would run now, or nothing could."""
    try:
        return bound_to(rules, unit) != bound
    except CannotFillError:
        return True


def ask_anew(rules: "Interpreter", unit: Unit) -> None:
    """What was asked about has changed: the unit goes the way to its gate once more."""
    if rules.paused:
        raise UnclearError("it is asked again when the run goes on")
    if unit.undoes:
        unit.state = "pending"
    elif unit.member_wise:
        if any(rules.nodes[member.node] in ("lost", "offline") for member in unit.members):
            raise UnclearError("it would be asked again, and may fail before it is")
        ask_gate(rules, unit)
    elif unit.approved:
        unit.state = "waiting"
    else:
        ask_gate(rules, unit)
