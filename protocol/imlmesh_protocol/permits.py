"""What a node may do by itself while it is cut off: a permit, and the course of one of its runs.

The one rule: what comes next follows from how the actions so far ended and from nothing else, so the
node that runs it and the orchestrator that hears of it later come to the same. Pure; deliberately
absent: signatures (`wire/permits`), when a run may begin (the node's core).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imlmesh_protocol.errors import KILLED_ALONG, Fault
from imlmesh_protocol.ids import dispatch_id, short_id
from imlmesh_protocol.limits import PARAMS_BYTES, PERMIT_TRIES
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import pack
from imlmesh_protocol.wire.dispatches import Dispatch, encode_dispatch

#: what starts a run: again and again, once in each time that the node is cut off, or a source
EVERY, CUT_OFF, ON = "every", "cut_off", "on"
#: how an action's failure may be met; what else a plan can say needs the orchestrator
ON_ERROR = ("abort", "continue", "skip")
#: the node's proof that it did not happen
_NOT_STARTED = "action.not_started"
#: it was cut short, by no fault of its own
_CUT_SHORT = frozenset({"node.interrupted", KILLED_ALONG})
_RUN = re.compile(r"(p-[0-9]{1,15}-[0-9a-z]{4})-([0-9]{1,4})")

#: a way into a value: keys of maps and indexes of lists
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """`every`: each `ms`; `cut_off`: once, `ms` after the node was cut off; `on`: whenever `source` tells
    something, or that its value is `value` unless that is None."""

    kind: str
    ms: int = 0
    source: str = ""
    value: Any = None

    def hears(self, source: str, values: Mapping[str, Any]) -> bool:
        """Whether what a source tells starts a run."""
        if self.kind != ON or self.source != source:
            return False
        return self.value is None or str(values.get("value")) == str(self.value)


@dataclass(frozen=True, slots=True)
class Filling:
    """A text of the params that is put together when the action begins: at `path`, of `parts`, each a
    text or the way to a value, which begins with the id of an action. One value alone keeps its type."""

    path: Path
    parts: tuple[str | Path, ...]


@dataclass(frozen=True, slots=True)
class PermitAction:
    """One action of a permit; `depends_on` names actions that stand before it."""

    id: str
    module: str
    action: str
    params: Mapping[str, Any]
    effect: Effect
    timeout_ms: int
    depends_on: tuple[str, ...] = ()
    on_error: str = "abort"
    on_busy: str = "wait"
    claims: tuple[str, ...] = ()
    fillings: tuple[Filling, ...] = ()


@dataclass(frozen=True, slots=True)
class Permit:
    """`node` may run this at most `budget` times, each time between `from_ms` and `to_ms` (mesh time).
    `plan` and `digest` say what it was made of; `actions` are in an order in which they may be done."""

    mesh: str
    id: str
    node: str
    plan: str
    digest: str
    budget: int
    from_ms: int
    to_ms: int
    rule: Rule
    actions: tuple[PermitAction, ...]


@dataclass(frozen=True, slots=True)
class End:
    """How the latest attempt of an action ended: one of messages.OUTCOMES, and the code of its fault."""

    attempt: int
    outcome: str
    code: str = ""


@dataclass(frozen=True, slots=True)
class Course:
    """Where a run stands: the action and attempt that begin now, or None when it is over; then what was
    left out, and the action that made it fail, "" when it completed."""

    next: tuple[PermitAction, int] | None
    skipped: tuple[str, ...] = ()
    failed: str = ""


def permit_id(counter: int, dice: int) -> str:
    """The id of the `counter`-th permit, as those of runs are made."""
    return short_id("p", counter, dice)


def permit_run(permit: str, number: int) -> str:
    """The id of the `number`-th run (from 1) of a permit."""
    return f"{permit}-{number}"


def split_permit_run(run: str) -> tuple[str, int] | None:
    """The permit and the number that a run's id is made of; None for a run of another kind."""
    found = _RUN.fullmatch(run)
    return None if found is None else (found[1], int(found[2]))


def dispatch_of(permit: Permit, number: int, action: PermitAction, attempt: int) -> Dispatch:
    """One attempt in a run; its params are those of the permit, without what is filled in later."""
    return Dispatch(
        dispatch_id(permit_run(permit.id, number), action.id, permit.node, attempt),
        action.module,
        action.action,
        action.params,
        action.effect,
        action.timeout_ms,
        0,
        "finish",
        action.on_busy,
        action.claims,
    )


def packed_dispatch(dispatch: Dispatch) -> bytes:
    """The bytes whose SHA-256 names this attempt on both sides."""
    return encode_dispatch(
        dispatch.id,
        dispatch.module,
        dispatch.action,
        dispatch.params,
        dispatch.effect,
        dispatch.timeout_ms,
        dispatch.lease_ms,
        dispatch.when_cut_off,
        dispatch.claims,
        dispatch.on_busy,
    )


def course(actions: Sequence[PermitAction], ends: Mapping[str, End]) -> Course:
    """What follows from how actions ended; `ends` by their ids."""
    passed: set[str] = set()
    skipped: list[str] = []
    failed = ""
    for action in actions:
        end = ends.get(action.id)
        if end is None:
            if failed or not passed.issuperset(action.depends_on):
                skipped.append(action.id)
                continue
            return Course((action, 1), tuple(skipped), failed)
        if end.outcome == "completed":
            passed.add(action.id)
        elif _again(action, end):
            return Course((action, end.attempt + 1), tuple(skipped), failed)
        elif end.outcome == "unknown" or action.on_error == "abort":
            # nobody is there to say whether it happened, so nothing may rest on it
            failed = failed or action.id
        elif action.on_error == "continue":
            passed.add(action.id)
    return Course(None, tuple(skipped), failed)


def _again(action: PermitAction, end: End) -> bool:
    if end.outcome != "failed" or end.attempt >= PERMIT_TRIES:
        return False
    return end.code == _NOT_STARTED or (end.code in _CUT_SHORT and action.effect.repeatable)


def filled(
    action: PermitAction, results: Mapping[str, Any], large: Collection[str] = ()
) -> Mapping[str, Any] | Fault:
    """The params of an action with what earlier ones returned, by their ids; a fault when that does not
    hold what is wanted. `large`: actions whose results are too large to be filled in."""
    params: Any = action.params
    for filling in action.fillings:
        found = _value(filling.parts, results, large)
        if isinstance(found, Fault):
            return found
        params = put(params, filling.path, found)
    if action.fillings and len(pack(params)) > PARAMS_BYTES:
        return Fault("template.too_large", f"the params take more than {PARAMS_BYTES:,} bytes")
    result: Mapping[str, Any] = params
    return result


def _value(parts: Sequence[str | Path], results: Mapping[str, Any], large: Collection[str]) -> Any:
    made: list[Any] = []
    for part in parts:
        if isinstance(part, str):
            made.append(part)
            continue
        value: Any = results
        for key in part:
            try:
                value = value[int(key) if isinstance(value, list | tuple) else key]
            except (KeyError, IndexError, TypeError, ValueError):
                told = ".".join(map(str, part))
                if part[0] in large:
                    text = f"result.{told}: what {part[0]} returned is too large to be filled in"
                    return Fault("template.too_large", text)
                return Fault("template.no_result", f"result.{told} does not exist")
        if len(parts) == 1:
            return value
        if isinstance(value, dict | list | tuple | bytes):
            return Fault("template.no_result", "only plain values can stand inside text")
        made.append(_text(value))
    return "".join(made)


def _text(value: Any) -> str:
    """As JSON has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def put(value: Any, path: Path, new: Any) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    key, *rest = path
    if isinstance(value, list | tuple):
        copy = list(value)
        copy[int(key)] = put(copy[int(key)], tuple(rest), new)
        return copy
    return {**value, key: put(value[key], tuple(rest), new)}


def ids_of(permit: Permit, number: int) -> list[str]:
    """Every dispatch id that a run may ever use."""
    run = permit_run(permit.id, number)
    tries = range(1, PERMIT_TRIES + 1)
    return [dispatch_id(run, action.id, permit.node, n) for action in permit.actions for n in tries]
