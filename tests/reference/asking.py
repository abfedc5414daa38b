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

Answered = Callable[[str | None], None]


def ask(
    rules: "Interpreter",
    kind: str,
    unit: Unit,
    answered: Answered,
    options: tuple[str, ...] = OPTIONS,
    timeout_ms: int = HOUR_MS,
) -> None:
    """Ask a person; `answered` gets the option, or None for silence."""
    times = 1 + sum(q.kind == kind and q.key == unit.key for q in rules.questions)
    question = Question(kind, unit.key)
    rules.questions.append(question)

    def close(option: str | None) -> None:
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


def bound_to(rules: "Interpreter", unit: Unit) -> str:
    """What an approval is given for: params but for {{node.id}}, and who may run it."""
    return str((fill(unit.params, rules.known(None)), may_run(rules, unit)))


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
        elif unit.member_wise and bound_to(rules, unit) != bound:
            if any(rules.nodes[member.node] in ("lost", "offline") for member in unit.members):
                raise UnclearError("it would be asked again, and may fail before it is")
            ask_gate(rules, unit)
        else:
            unit.approved = bound
            unit.state = "running" if unit.member_wise else "waiting"

    options = ("approve", "deny", *approval.get("clarification_options", ()))
    timeout_ms = 1_000 * approval["timeout_seconds"] if approval.get("timeout_seconds") else HOUR_MS
    ask(rules, "gate", unit, answered, options, timeout_ms)
