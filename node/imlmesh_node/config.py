"""What a node's folder says: mesh.toml (who am I, whom do I call) and policy.toml (what may be done).

The one rule: the policy is the ceiling and comes from this file alone; without one, or with less,
less is allowed. All that is wrong with a file is reported at once.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from imlmesh_drivers.base import CommandRule, PinRules, Site
from imlmesh_drivers.registry import builtin_modules, modules
from imlmesh_node.buses import factory_of, read_buses
from imlmesh_node.table import Table
from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError, InputErrors, Place
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.manifest import PROFILES
from imlmesh_protocol.pins import pin_number
from imlmesh_runtime.files import check_private, read_file
from imlmesh_runtime.link.address import JOIN_PORT, address_of, is_address
from imlmesh_runtime.link.base import Address

#: loads only where a policy names it
_UNLESS_NAMED = frozenset({"fake"})
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """mesh.toml. `brokers` are (address, port), called in turn; without one the mesh is looked for
    by mDNS. `broker_hint` is where it was when the folder was made, as text; `join` is where the
    node's certificate came from."""

    mesh: str
    id: str
    orchestrator: str
    brokers: tuple[Address, ...]
    timing: limits.Timing
    broker_hint: str = ""
    join: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """policy.toml. `modules` are those that load; `site` is what their drivers may reach."""

    profile: str
    modules: tuple[str, ...]
    site: Site


def load_config(folder: Path) -> NodeConfig:
    """Read `folder`/mesh.toml; InputErrors `config.invalid`, TrustError `trust.file`."""
    errors: list[InputError] = []
    reader = _read(folder / "mesh.toml", "config.invalid", errors)
    names = {}
    for name in ("mesh", "id", "orchestrator"):
        names[name] = reader.take(name, str, "", "a name")
        if not NAME.fullmatch(names[name]):
            reader.wrong(name, "must be a name such as pi-garden")
    addresses = reader.texts("brokers", is_address, "host:port")
    doors = reader.texts("join", is_address, "host:port")
    hint = reader.take("broker_hint", str, "", "host:port")
    if hint and not is_address(hint):
        reader.wrong("broker_hint", "must be host:port")
    timing = reader.take("timing", str, "wan", "a text")
    if timing not in limits.TIMINGS:
        reader.wrong("timing", f"must be one of {', '.join(sorted(limits.TIMINGS))}")
    reader.end()
    if errors:
        raise InputErrors(errors)
    return NodeConfig(
        **names,
        brokers=tuple(address_of(address) for address in addresses),
        timing=limits.TIMINGS[timing],
        broker_hint=hint,
        join=tuple(address_of(address, "join", JOIN_PORT) for address in doors),
    )


def load_policy(folder: Path, *, strict: bool = False) -> Policy:
    """Read `folder`/policy.toml, readonly when there is none.

    InputErrors `policy.invalid` with the places; TrustError `trust.mode` when others could have
    changed the file and `strict` is set (a service), else a warning.
    """
    path = folder / "policy.toml"
    if path.exists():
        check_private(path, strict=strict)
    return read_policy(path, folder)


def read_policy(path: Path, folder: Path) -> Policy:
    """What the file `path` allows a node whose folder is `folder`; InputErrors `policy.invalid`."""
    errors: list[InputError] = []
    if path.exists():
        reader = _read(path, "policy.invalid", errors)
    else:
        reader = Table({}, "policy.invalid", str(path), errors)
    profile = reader.take("profile", str, "readonly", "a text")
    if profile not in PROFILES:
        reader.wrong("profile", f"must be one of {', '.join(PROFILES)}")
    site = _site(reader, folder.absolute())
    usual = tuple(name for name in builtin_modules() if name not in _UNLESS_NAMED)
    allowed = reader.table("modules")
    named = allowed.texts("allow", modules().__contains__, "an installed module", usual)
    allowed.end()
    reader.end()
    if errors:
        raise InputErrors(errors)
    return Policy(profile, named, site)


def _read(path: Path, code: str, errors: list[InputError]) -> Table:
    try:
        table = tomllib.loads(read_file(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise InputErrors([InputError(code, str(exc), place=Place(file=str(path)))]) from exc
    return Table(table, code, str(path), errors)


def _site(reader: Table, folder: Path) -> Site:
    roots = reader.table("roots")
    read = roots.texts("read", _is_root, "a path without '..'")
    write = roots.texts("write", _is_root, "a path without '..'")
    roots.end()
    variables = reader.table("env")
    env = {name: variables.take(name, str, "", "a text") for name in variables.names()}
    for name in env:
        if not _VARIABLE.fullmatch(name):
            variables.wrong(name, "must be a name such as LANG")
    write_roots = tuple(str(folder / root) for root in write)
    return Site(
        files=write_roots[0] if write_roots else str(folder / "files"),
        read_roots=tuple(str(folder / root) for root in read),
        write_roots=write_roots,
        commands=_commands(reader.table("commands")),
        pins=_pins(reader.table("pins")),
        buses=read_buses(reader),
        env=env,
    )


def _is_root(path: str) -> bool:
    return bool(path) and "\0" not in path and ".." not in PurePosixPath(path).parts


def _commands(reader: Table) -> dict[str, CommandRule]:
    rules = {}
    for name in reader.names():
        table = reader.table(name)
        argv0 = table.take("argv0", str, "", "an absolute path")
        if not argv0.startswith("/"):
            table.wrong("argv0", "must be an absolute path")
        args = table.texts("args", _is_pattern, "a regular expression", None)
        most = {}
        for bound in ("processes", "memory_mb"):
            most[bound] = table.take(bound, int, None, "a number above 0")
            if most[bound] is not None and most[bound] < 1:
                table.wrong(bound, "must be a number above 0")
        table.end()
        rules[name] = CommandRule(argv0, args, **most)
    return rules


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _pins(reader: Table) -> PinRules | None:
    if not reader.names():
        return None
    factory = factory_of(reader)
    allow = reader.take("allow", list, [], "a list of pins")
    pins = []
    for place, name in enumerate(allow):
        pin = pin_number(str(name)) if type(name) in (int, str) else None
        if pin is None:
            reader.wrong(f"allow/{place}", "must be a BCM number from 0 to 53, GPIO17 or BOARD11")
        else:
            pins.append(pin)
    levels = reader.table("safe")
    safe: dict[int, int] = {}
    for name in levels.names():
        level = levels.take(name, int, 0, "0 or 1")
        pin = pin_number(name)
        if pin is None or pin not in pins:
            levels.wrong(name, "must be a pin of allow")
        elif pin in safe:
            levels.wrong(name, "is a pin that stands there already, by another name")
        elif level not in (0, 1):
            levels.wrong(name, "must be 0 or 1")
        else:
            safe[pin] = level
    reader.end()
    return PinRules(factory, tuple(dict.fromkeys(pins)), safe)
