"""What a node can do, as data: the manifest that drivers generate and everybody reads.

Shape: {"modules": {module: {"version": str, "actions": {action: ActionSpec as a dict}}}}.
The orchestrator places work and `plan check` checks params by it, without any driver's library.
Deliberately absent: code; a manifest never runs anything.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.limits import CLAIM_CHARS
from imlmesh_protocol.pins import canonical_claim
from imlmesh_protocol.states import Effect

#: least to most trusted; an action runs when the node's profile is at least its permission
PROFILES = ("readonly", "local_worker", "power_user", "unrestricted")

# only whole params may be named: what format_map does with attributes and indexes is not for nodes
_CLAIM = re.compile(r"(?:[^{}]|\{[A-Za-z_][A-Za-z0-9_]*\})+")
_PARAM = re.compile(r"\{(\w+)\}")
_IF = " if "
_CONDITION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:=[^={}]+)?")
_UNDO_TEMPLATE = re.compile(
    r"\{\{\s*(?:(params)\.([\w-]+)|(result)(?:\.([\w-]+))?)(?:\.[\w-]+)*\s*\}\}"
)


@dataclass(frozen=True, slots=True)
class Undo:
    """The call of the same module that undoes a completed one.

    Texts in `params` may hold {{params.x}}, {{result}} and {{result.y}} of the undone call.
    """

    action: str
    params: Mapping[str, Any]

    def uses(self) -> frozenset[tuple[str, str]]:
        """What its templates name: ("params", "x"), ("result", "y"), or ("result", "") for all.

        Raises `ValueError` for anything else between {{ and }}.
        """
        found = set()
        for text in _texts(self.params):
            for params, param, result, field_name in _UNDO_TEMPLATE.findall(text):
                found.add((params or result, param or field_name))
            if "{{" in _UNDO_TEMPLATE.sub("", text):
                raise ValueError(
                    f"an undo takes params and result of the call alone: {text!r:.120}"
                )
        return frozenset(found)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


@dataclass(frozen=True, slots=True)
class ActionSpec:
    """One action of one module, as its driver declares it."""

    module: str
    action: str
    #: JSON Schema (2020-12) of the params object; a property may carry "x-guard":
    #: "read", "write" (paths), "command" (argv list), "program" (its first word), "pin" (BCM
    #: number), "pins" (a list; null: all that the policy allows): the node's guard checks it
    params: Mapping[str, Any]
    returns: tuple[str, ...]
    effect: Effect
    permission: str
    impact: float
    description: str = ""
    #: claim patterns such as "gpio:{pin}" or "gpio:{mode}{pin}", filled from params; behind " if "
    #: stands what the claim depends on: "PARAM=VALUE", or "PARAM", which must not be null
    claims: tuple[str, ...] = ()
    #: whether a plan may state a less careful effect (vouched)
    vouch: bool = False
    #: what undoes a completed call, when params and result say all that it takes
    undo: Undo | None = None

    def claims_for(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """The claims of one call: each pattern with its {param}, given or by default, filled in.

        A param that is null claims nothing (the node's guard knows which pins are meant by all); a
        list claims once for each of its items. A pin has one claim, however it is written.
        """
        found: list[str] = []
        for line in self.claims:
            pattern, _, condition = line.partition(_IF)
            if condition and not self._holds(condition, params):
                continue
            named = _PARAM.findall(pattern)
            values = {name: self._value_of(name, params) for name in named}
            if None in values.values():
                continue
            lists = [name for name in named if isinstance(values[name], list | tuple)]
            if not lists:
                found.append(pattern.format_map(values))
            for item in values[lists[0]] if lists else ():
                found.append(pattern.format_map(values | {lists[0]: item}))
        return tuple(dict.fromkeys(map(canonical_claim, found)))

    def _holds(self, condition: str, params: Mapping[str, Any]) -> bool:
        name, _, wanted = condition.partition("=")
        value = self._value_of(name, params)
        return value is not None and wanted in ("", str(value))

    def _value_of(self, name: str, params: Mapping[str, Any]) -> Any:
        """A param as the driver will see it; KeyError when it is neither given nor has a default."""
        if name in params:
            return params[name]
        declared = self.params.get("properties", {}).get(name, {})
        if "default" not in declared:
            raise KeyError(name)
        return declared["default"]


@dataclass(frozen=True, slots=True)
class Module:
    """One driver's actions by name."""

    version: str
    actions: Mapping[str, ActionSpec]
    description: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """All that one node, or one installation, can do."""

    modules: Mapping[str, Module] = field(default_factory=dict)

    def find(self, module: str, action: str) -> ActionSpec | None:
        """The spec of an action, or None when this manifest lacks it."""
        found = self.modules.get(module)
        return found.actions.get(action) if found else None

    def to_wire(self) -> dict[str, Any]:
        """Plain dicts and lists, ready for JSON or msgpack."""
        return {
            "modules": {
                name: {
                    "version": module.version,
                    "description": module.description,
                    "actions": {a: _spec_to_wire(s) for a, s in sorted(module.actions.items())},
                }
                for name, module in sorted(self.modules.items())
            }
        }

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical form; equal manifests have equal digests."""
        packed: bytes = msgpack.packb(self.to_wire())
        return hashlib.sha256(packed).hexdigest()


def _spec_to_wire(spec: ActionSpec) -> dict[str, Any]:
    return {
        "params": dict(spec.params),
        "returns": list(spec.returns),
        "effect": str(spec.effect),
        "permission": spec.permission,
        "impact": spec.impact,
        "description": spec.description,
        "claims": list(spec.claims),
        "vouch": spec.vouch,
        "undo": spec.undo and {"action": spec.undo.action, "params": dict(spec.undo.params)},
    }


def manifest_from_wire(wire: Any) -> Manifest:
    """Read a manifest that came from a file or a node; `message.invalid` when it is not one."""
    try:
        modules = {
            str(name): _module_from_wire(str(name), module)
            for name, module in wire["modules"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ProtocolError("message.invalid", f"not a manifest: {exc!r}") from exc
    return Manifest(modules)


def _module_from_wire(name: str, wire: Mapping[str, Any]) -> Module:
    actions = {
        str(action): _spec_from_wire(name, str(action), spec)
        for action, spec in wire["actions"].items()
    }
    for spec in actions.values():
        if spec.undo is not None and spec.undo.action not in actions:
            raise ValueError(f"{name}.{spec.action}: no action {spec.undo.action!r:.80} undoes it")
    return Module(
        version=str(wire["version"]),
        description=str(wire.get("description", "")),
        actions=actions,
    )


def _is_claim(pattern: str) -> bool:
    claim, conditional, condition = pattern.partition(_IF)
    fits = _CLAIM.fullmatch(claim) and (not conditional or _CONDITION.fullmatch(condition))
    return fits is not None


def _spec_from_wire(module: str, action: str, wire: Mapping[str, Any]) -> ActionSpec:
    permission = wire["permission"]
    if permission not in PROFILES:
        raise ValueError(f"{module}.{action}: no such profile {permission!r}")
    impact = float(wire["impact"])
    if not 0 <= impact <= 1:
        raise ValueError(f"{module}.{action}: impact {impact} is not within 0..1")
    claims = tuple(wire.get("claims", ()))
    for pattern in claims:
        short = type(pattern) is str and len(pattern) <= CLAIM_CHARS
        if not short or not _is_claim(pattern):
            raise ValueError(f"{module}.{action}: no claim pattern {pattern!r:.120}")
    undo = wire.get("undo")
    return ActionSpec(
        module=module,
        action=action,
        params=dict(wire["params"]),
        returns=tuple(wire["returns"]),
        effect=Effect(wire["effect"]),
        permission=permission,
        impact=impact,
        description=str(wire.get("description", "")),
        claims=claims,
        vouch=bool(wire.get("vouch", False)),
        undo=None if undo is None else _undo_from_wire(undo),
    )


def _undo_from_wire(wire: Mapping[str, Any]) -> Undo:
    undo = Undo(str(wire["action"]), dict(wire["params"]))
    undo.uses()
    return undo
