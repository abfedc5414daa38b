"""How a driver is written: a class per IML module, a decorated method per action.

The one rule: a method's signature is its schema, its return type names the result's fields, and
nothing is declared twice. What a driver may reach comes in as a `Site`; it never reads policy
files. Deliberately absent: pydantic, which is loaded when the first call is bound, not before.
"""

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from annotated_types import Interval

from imlmesh_drivers.bounded import within_bounds
from imlmesh_drivers.buses import BusRules, Factory
from imlmesh_drivers.call import Call
from imlmesh_protocol.errors import DriverDenied, DriverError
from imlmesh_protocol.limits import ARGUMENT_BYTES
from imlmesh_protocol.manifest import PROFILES, Undo
from imlmesh_protocol.states import Effect

Runs = Literal["loop", "thread", "process"]
_Method = TypeVar("_Method", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Guard:
    """Marks a parameter that the node's guard checks.

    "read", "write" (a path), "command" (an argv), "program" (its first word alone), "pin", "pins"
    (a list; null means, and claims, all that the policy allows).
    """

    kind: Literal["read", "write", "command", "program", "pin", "pins"]

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> dict[str, Any]:
        return {**handler(core), "x-guard": self.kind}


ReadPath = Annotated[str, Guard("read")]
WritePath = Annotated[str, Guard("write")]
Argv = Annotated[list[str], Guard("command")]
Program = Annotated[str, Guard("program")]
#: BCM numbers of the largest header that Raspberry Pi boards have
Pin = Annotated[int, Interval(ge=0, le=53), Guard("pin")]


@dataclass(frozen=True, slots=True)
class CommandRule:
    """One allowed program: its absolute path, and what every argument must match (None: any).

    An argument passes when one of the regular expressions matches the whole of it. One that looks
    like a flag, such as -o, passes only by an expression that itself begins with a dash: "[a-z-]+"
    was written for words, and must not let -rf through.
    """

    argv0: str
    args: tuple[str, ...] | None = None
    #: what it may have with all that it starts; None: what limits.py says
    processes: int | None = None
    memory_mb: int | None = None

    def refused(self, args: Sequence[str]) -> int | None:
        """The place of the first argument (the program is 0) that may not be given, or None."""
        if self.args is None:
            return None
        for number, arg in enumerate(args, start=1):
            is_flag = len(arg) > 1 and arg.startswith("-")
            rules = [rule for rule in self.args if rule.startswith("-") or not is_flag]
            if not any(re.fullmatch(rule, arg) for rule in rules):
                return number
        return None


@dataclass(frozen=True, slots=True)
class PinRules:
    """Which pins may be used, through real hardware or the mock, and their safe levels."""

    factory: Factory
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
                    rule["argv0"],
                    None if rule["args"] is None else tuple(rule["args"]),
                    rule["processes"],
                    rule["memory_mb"],
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

    def rules_of(self, program: str) -> list[CommandRule]:
        """The rules of a program, by name or path; `policy.command` when there are none."""
        rules = [rule for name, rule in self.commands.items() if program in (name, rule.argv0)]
        if not rules:
            raise DriverDenied("policy.command", f"{program[:200]!r} is not an allowed command")
        return rules

    def rule_for(self, argv: Sequence[str]) -> CommandRule:
        """The first rule that allows all of a command.

        Raises `policy.command`, and `driver.params` for what no program could be given.
        """
        if not argv:
            raise DriverDenied("policy.command", "the command is empty")
        for number, word in enumerate(argv):
            check_word(f"argument {number}", word)
        rules = self.rules_of(argv[0])
        try:
            refusals = within_bounds(lambda: [rule.refused(argv[1:]) for rule in rules])
        except TimeoutError as exc:
            text = f"the expressions for arguments of {argv[0][:200]!r} take {exc} for these"
            raise DriverDenied("policy.command", text) from None
        for rule, refused in zip(rules, refusals, strict=True):
            if refused is None:
                return rule
        text = f"the policy does not allow argument {refusals[0]} of {argv[0][:200]!r}"
        raise DriverDenied("policy.command", text)


def check_word(name: str, word: str) -> None:
    """What Linux can give a program as an argument or variable, else `driver.params`."""
    if "\0" in word:
        raise DriverError("driver.params", f"{name} contains a NUL character")
    try:
        size = len(word.encode())
    except UnicodeEncodeError as exc:
        raise DriverError("driver.params", f"{name} is not text") from exc
    if size > ARGUMENT_BYTES:
        text = f"{name} has more than {ARGUMENT_BYTES} bytes: hand them over as stdin or in a file"
        raise DriverError("driver.params", text)


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

    `claims` are patterns such as "gpio:{pin}" or "i2c:1 if kind=BMP280"; `runs` overrides the driver's own. `undo` is
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
