"""How a driver is written: a class per IML module, a decorated method per action.

The one rule: a method's signature is its schema, its return type names the result's fields, and
nothing is declared twice. What a driver may reach comes in as a `Site`; it never reads policy
files. Deliberately absent: pydantic, which is loaded when the first call is bound, not before.
"""

import inspect
import re
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Interval

from imlmesh_drivers.buses import BusRules
from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.limits import (
    LOG_LINE_BYTES,
    LOG_LINES_PER_ACTION,
    TELEMETRY_CALL_BURST,
    TELEMETRY_CALL_PER_S,
)
from imlmesh_protocol.manifest import PROFILES, Undo
from imlmesh_protocol.states import Effect
from imlmesh_protocol.telemetry import check_reading

Runs = Literal["loop", "thread", "process"]
_Method = TypeVar("_Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Guard:
    """Marks a parameter that the node's guard checks: "read", "write", "command" or "pin"."""

    kind: Literal["read", "write", "command", "pin"]

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core), "x-guard": self.kind}


ReadPath = Annotated[str, Guard("read")]
WritePath = Annotated[str, Guard("write")]
Argv = Annotated[list[str], Guard("command")]
#: BCM numbers of the largest header that Raspberry Pi boards have
Pin = Annotated[int, Interval(ge=0, le=53), Guard("pin")]


@dataclass(frozen=True, slots=True)
class CommandRule:
    """One allowed program: its absolute path, and what every argument must match (None: any).

    An argument passes when one of the regular expressions matches the whole of it.
    """

    argv0: str
    args: tuple[str, ...] | None = None

    def allows(self, args: Sequence[str]) -> bool:
        """Whether these arguments (without the program) may be given."""
        if self.args is None:
            return True
        rules = self.args
        return all(any(re.fullmatch(rule, arg) for rule in rules) for arg in args)


@dataclass(frozen=True, slots=True)
class PinRules:
    """Which pins may be used, through real hardware or the mock, and their safe levels."""

    factory: Literal["native", "mock"]
    allow: tuple[int, ...] = ()
    #: BCM number to 0 or 1
    safe: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Site:
    """What the node's policy lets its drivers reach."""

    #: absolute folder where relative paths start
    files: str
    read_roots: tuple[str, ...] = ()
    write_roots: tuple[str, ...] = ()
    #: by the name that a plan may use as the first word of a command
    commands: Mapping[str, CommandRule] = field(default_factory=dict)
    pins: PinRules | None = None
    buses: BusRules = field(default_factory=BusRules)
    env: Mapping[str, str] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        """Plain dicts and lists for the first frame to a child; pins become text keys."""
        wire = asdict(self) | {"buses": self.buses.to_wire()}
        if self.pins:
            wire["pins"]["safe"] = {str(pin): level for pin, level in self.pins.safe.items()}
        return wire

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> "Site":
        """The twin of `to_wire`."""
        pins = wire["pins"]
        return cls(
            files=wire["files"],
            read_roots=tuple(wire["read_roots"]),
            write_roots=tuple(wire["write_roots"]),
            commands={
                name: CommandRule(
                    rule["argv0"], None if rule["args"] is None else tuple(rule["args"])
                )
                for name, rule in wire["commands"].items()
            },
            pins=pins
            and PinRules(
                factory=pins["factory"],
                allow=tuple(pins["allow"]),
                safe={int(pin): level for pin, level in pins["safe"].items()},
            ),
            buses=BusRules.from_wire(wire["buses"]),
            env=dict(wire["env"]),
        )

    def resolve_command(self, argv: Sequence[str]) -> list[str]:
        """`argv` with its first word, a rule's name or path, made absolute; `policy.command`."""
        if not argv:
            raise DriverDenied("policy.command", "the command is empty")
        rules = [r for name, r in self.commands.items() if argv[0] in (name, r.argv0)]
        if not rules:
            raise DriverDenied("policy.command", f"{argv[0][:200]!r} is not an allowed command")
        for rule in rules:
            if rule.allows(argv[1:]):
                return [rule.argv0, *argv[1:]]
        raise DriverDenied(
            "policy.command", f"the policy does not allow these arguments of {argv[0][:200]!r}"
        )


def clip(text: str, limit_bytes: int) -> str:
    """`text`, cut between characters so that its UTF-8 form is at most `limit_bytes` long."""
    encoded = text.encode(errors="replace")
    return encoded[:limit_bytes].decode(errors="ignore")


class Call:
    """One call under way: its dispatch id, and the ways back for lines, progress and readings.

    The ways back are called on whatever thread the action runs on. Lines are cut at
    LOG_LINE_BYTES; after LOG_LINES_PER_ACTION one line says that the rest was dropped. Who runs a
    thread action, which nothing can kill, calls `stop`; the action asks with `check`.
    """

    __slots__ = (
        *("_dropped", "_lines", "_on_log", "_on_progress", "_on_reading", "_room", "_room_at_s"),
        *("_stopped", "dispatch"),
    )

    def __init__(
        self,
        dispatch: str,
        on_log: Callable[[str, str], None] | None = None,
        on_progress: Callable[[float | None, str], None] | None = None,
        on_reading: Callable[[str, float, str, int], None] | None = None,
    ) -> None:
        """`on_log(line, stream)`, `on_progress(fraction, message)` and `on_reading(metric, value,
        unit, how many were dropped before it)` must not block."""
        self.dispatch = dispatch
        self._on_log = on_log
        self._on_progress = on_progress
        self._on_reading = on_reading
        self._lines = 0
        self._stopped = False
        #: readings that may come now, as of `_room_at_s`
        self._room: float = TELEMETRY_CALL_BURST
        self._room_at_s = time.monotonic()
        self._dropped = 0

    def log(self, line: str, stream: str = "log") -> None:
        """Stream one line; `stream` is "log", "stdout" or "stderr"."""
        if self._on_log is None or self.full:
            return
        self._lines += 1
        if self.full:
            self._on_log(f"more than {LOG_LINES_PER_ACTION} lines: the rest is dropped", "log")
            return
        self._on_log(clip(line, LOG_LINE_BYTES), stream)

    @property
    def full(self) -> bool:
        """Whether further lines are dropped."""
        return self._lines > LOG_LINES_PER_ACTION

    def progress(self, fraction: float | None, message: str = "") -> None:
        """Say how far it is: 0 to 1, or None when that is not known."""
        if self._on_progress is not None:
            known = None if fraction is None else float(fraction)
            self._on_progress(known, clip(message, LOG_LINE_BYTES))

    def telemetry(self, metric: str, value: float, unit: str = "") -> None:
        """Report what was measured now; kept as `<module>.<metric>` of this node.

        More than TELEMETRY_CALL_PER_S are dropped and counted. Raises `telemetry.invalid` for
        what is no finite number, and for a name or unit that nobody would keep.
        """
        check_reading(metric, value, unit)
        if self._on_reading is None:
            return
        now_s = time.monotonic()
        grown = (now_s - self._room_at_s) * TELEMETRY_CALL_PER_S
        self._room, self._room_at_s = min(TELEMETRY_CALL_BURST, self._room + grown), now_s
        if self._room < 1:
            self._dropped += 1
            return
        self._room -= 1
        dropped, self._dropped = self._dropped, 0
        self._on_reading(metric, float(value), unit, dropped)

    def pass_on(self, metric: str, value: float, unit: str, dropped: int) -> None:
        """Report what `telemetry` of a call in another process let through."""
        check_reading(metric, value, unit)
        if self._on_reading is not None:
            self._on_reading(metric, value, unit, dropped)

    def stop(self) -> None:
        """Nobody waits for this call any more."""
        self._stopped = True

    def check(self) -> None:
        """Raise `action.cancelled` when nobody waits for this call any more."""
        if self._stopped:
            raise DriverError("action.cancelled", f"{self.dispatch} was given up")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What `@action` and the method's signature say of one action."""

    name: str
    effect: Effect
    impact: float
    permission: str
    claims: tuple[str, ...]
    vouch: bool
    runs: Runs | None
    description: str
    #: an `async def`: it may wait
    waits: bool
    #: name of the parameter that takes the Call, if there is one
    call_parameter: str | None
    #: fields that every result has
    returns: tuple[str, ...]
    undo: Undo | None
    #: params that the action takes, and those without a default
    takes: frozenset[str]
    needs: frozenset[str]


def action(
    *,
    effect: str = "once",
    impact: float,
    permission: str,
    claims: str | tuple[str, ...] = (),
    vouch: bool = False,
    runs: Runs | None = None,
    undo: Undo | None = None,
) -> Callable[[_Method], _Method]:
    """Make a method an action; its docstring's first line becomes the description.

    `claims` are patterns such as "gpio:{pin}"; `runs` overrides the driver's own. `undo` is
    declared when it restores what was there, from params and result alone. The return type is a
    TypedDict whose required fields every result has, or a plain dict.
    """
    if permission not in PROFILES or not 0 <= impact <= 1:
        raise ValueError(f"permission {permission!r} or impact {impact} is out of range")

    def declare(method: _Method) -> _Method:
        hints = typing.get_type_hints(method)
        result = hints.pop("return", dict)
        required: frozenset[str] = getattr(result, "__required_keys__", frozenset())
        call_parameter = next((name for name, hint in hints.items() if hint is Call), None)
        own = list(inspect.signature(method).parameters.values())[1:]
        taken = [parameter for parameter in own if parameter.name != call_parameter]
        declaration = Declaration(
            name=method.__name__,
            effect=Effect(effect),
            impact=impact,
            permission=permission,
            claims=(claims,) if isinstance(claims, str) else claims,
            vouch=vouch,
            runs=runs,
            description=(inspect.getdoc(method) or "").partition("\n")[0],
            waits=inspect.iscoroutinefunction(method),
            call_parameter=call_parameter,
            returns=tuple(
                name for name in getattr(result, "__annotations__", {}) if name in required
            ),
            undo=undo,
            takes=frozenset(p.name for p in taken),
            needs=frozenset(p.name for p in taken if p.default is p.empty),
        )
        setattr(method, "__action__", declaration)  # noqa: B010 - mypy knows no such attribute
        return method

    return declare


def _to_nobody(*_: Any) -> None:
    """Where a driver's events go that nobody runs."""


class Driver:
    """Base of all drivers; one object serves all calls of its module on a node.

    `runs` says where: "loop" (an `async def` may wait, a `def` must end at once), "thread"
    (short `def` actions) or "process" (a warm child, killed with its group on timeout).
    """

    module: ClassVar[str]
    version: ClassVar[str]
    runs: ClassVar[Runs] = "process"
    #: the declared actions by name
    actions: ClassVar[Mapping[str, Declaration]] = {}

    def __init_subclass__(cls) -> None:
        found = ((name, getattr(cls, name)) for name in sorted(dir(cls)))
        cls.actions = {n: m.__action__ for n, m in found if hasattr(m, "__action__")}
        for declared in cls.actions.values():
            if declared.undo is not None:
                _check_undo(declared, declared.undo, cls.actions)

    def __init__(self, site: Site) -> None:
        self.site = site
        #: tells what a source saw, outside of any call: its name (an id) and plain values
        self.emit: Callable[[str, Mapping[str, Any]], None] = _to_nobody
        #: gives a plain value to the driver's successor, should this process end; see `restore`
        self.keep: Callable[[Any], None] = _to_nobody

    def restore(self, kept: Any) -> None:
        """Take up what the driver before this one kept last; called after `safe`."""

    def safe(self) -> None:
        """Bring what the driver moves into its safe state; called before it serves, and at the end."""

    def close(self) -> None:
        """Give back what the driver holds; nothing is called after it."""

    @classmethod
    def stands_guard(cls, site: Site) -> bool:
        """Whether it has a safe state to set as soon as its node runs, before any call."""
        return False

    @classmethod
    def runs_of(cls, name: str) -> Runs:
        """Where an action runs: its own override, else the driver's."""
        return cls.actions[name].runs or cls.runs

    @classmethod
    def ends_at_once(cls, name: str) -> bool:
        """Whether an action is called directly on the loop and takes no slot."""
        return cls.runs_of(name) == "loop" and not cls.actions[name].waits


def _check_undo(undone: Declaration, undo: Undo, actions: Mapping[str, Declaration]) -> None:
    """An undo calls an action of its driver with what every call and every result has."""
    undoing = actions.get(undo.action)
    if undoing is None:
        raise ValueError(f"{undone.name}: the driver has no action {undo.action!r} to undo it")
    given = frozenset(undo.params)
    if not undoing.needs <= given <= undoing.takes:
        raise ValueError(f"{undone.name}: {undo.action!r} does not take {sorted(given)}")
    sure = {("params", name) for name in undone.needs} | {("result", n) for n in undone.returns}
    unsure = undo.uses() - sure - {("result", "")}
    if unsure:
        raise ValueError(f"{undone.name}: not every call has {sorted(unsure)} for its undo")
