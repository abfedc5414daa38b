"""The node's own word on every dispatch: may this action, with these params, run here?

The one rule: no message raises the policy. A refusal is a `Fault` with a `policy.…` code; what is
malformed is refused as such. Deliberately absent: I/O; links in paths are the drivers' to refuse,
when they open them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from imlmesh_drivers.base import Site
from imlmesh_drivers.files import absolute, readable_roots, split_root
from imlmesh_node.config import Policy
from imlmesh_protocol.errors import DriverDenied, DriverError, Fault
from imlmesh_protocol.limits import REFUSAL_CHARS
from imlmesh_protocol.manifest import PROFILES, ActionSpec, Manifest
from imlmesh_protocol.pins import canonical_claim
from imlmesh_protocol.states import EFFECT_CARE
from imlmesh_protocol.wire.dispatches import Dispatch
from imlmesh_protocol.wire.documents import Standing


def _read(site: Site, path: str) -> None:
    split_root(absolute(site, path), readable_roots(site))


def _write(site: Site, path: str) -> None:
    split_root(absolute(site, path), site.write_roots)


def _command(site: Site, argv: list[str]) -> None:
    site.rule_for(argv)


def _program(site: Site, name: str) -> None:
    site.rules_of(name)


def _pin(site: Site, pin: int) -> None:
    if site.pins is None or pin not in site.pins.allow:
        raise DriverDenied("policy.pin", f"pin {pin} is not in [pins] allow of the policy")


def _pins(site: Site, pins: list[int]) -> None:
    for pin in pins:
        _pin(site, pin)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_argv(value: Any) -> bool:
    return type(value) is list and all(type(word) is str for word in value)


def _is_number(value: Any) -> bool:
    return type(value) is int


def _is_numbers(value: Any) -> bool:
    return type(value) is list and all(type(number) is int for number in value)


#: by the "x-guard" of a param: whether the value can be judged at all, and the judge
_CHECKS: dict[str, tuple[Callable[[Any], bool], Callable[[Site, Any], None]]] = {
    "read": (_is_text, _read),
    "write": (_is_text, _write),
    "command": (_is_argv, _command),
    "program": (_is_text, _program),
    "pin": (_is_number, _pin),
    "pins": (_is_numbers, _pins),
}


def guarded(spec: ActionSpec) -> tuple[tuple[str, str, Any], ...]:
    """(param, kind of guard, default) of every param whose schema has an "x-guard"."""
    properties: Mapping[str, Any] = spec.params.get("properties", {})
    return tuple(
        (name, schema["x-guard"], schema.get("default"))
        for name, schema in properties.items()
        if "x-guard" in schema
    )


def check_params(spec: ActionSpec, site: Site, params: Mapping[str, Any]) -> Fault | None:
    """The refusal of the first guarded param that the policy does not allow, or None."""
    for name, kind, default in guarded(spec):
        value = params.get(name, default)
        if value is None:
            continue
        fits, check = _CHECKS[kind]
        if not fits(value):
            return Fault("driver.params", f"{name}: holds no {kind}")
        try:
            check(site, value)
        except DriverError as exc:
            return Fault(exc.code, f"{name}: {exc.message}"[:REFUSAL_CHARS])
    return None


def check_profile(spec: ActionSpec, profile: str) -> Fault | None:
    """The refusal of an action that needs more trust than the node's profile gives, or None."""
    if PROFILES.index(spec.permission) <= PROFILES.index(profile):
        return None
    text = f"{spec.module}.{spec.action} needs {spec.permission}; the node is {profile}"
    return Fault("policy.profile", text)


NoSpace = Callable[[], Fault | None]


def _room() -> None:
    """There is room."""


@dataclass(frozen=True, slots=True)
class _Known:
    spec: ActionSpec
    refusal: Fault | None
    has_guards: bool
    #: (param, default) of each list of pins that means all of them when it is null
    pin_lists: tuple[tuple[str, Any], ...]


class Guard:
    """Checks dispatches against one policy; remembers what does not depend on params."""

    def __init__(self, policy: Policy, manifest: Manifest, no_space: NoSpace = _room) -> None:
        """`no_space` tells why nothing may begin that may not be repeated."""
        self._no_space = no_space
        self._revoked = False
        #: what is left of the policy's profile beneath what the mesh grants
        self.profile = policy.profile
        self._policy = policy
        self._manifest = manifest
        self._known: dict[tuple[str, str], _Known] = {}

    def rule(self, standing: Standing | None) -> None:
        """What the roster says of this node: it may lower the profile of the policy, never raise it."""
        status, granted = standing or ("active", self._policy.profile)
        self._revoked = status != "active"
        self.profile = min(self._policy.profile, granted, key=PROFILES.index)
        self._known.clear()

    def offer(self, manifest: Manifest) -> None:
        """From now on the node offers that."""
        self._manifest = manifest
        self._known.clear()

    def check(self, dispatch: Dispatch) -> tuple[Dispatch, Fault | None]:
        """The dispatch with the claims of its driver, and why it is refused, if it is."""
        if self._revoked:
            return dispatch, Fault("node.revoked", "the roster says that this node was removed")
        known = self._known.get((dispatch.module, dispatch.action)) or self._look_up(dispatch)
        if isinstance(known, Fault):
            return dispatch, known
        if known.refusal is not None:
            return dispatch, known.refusal
        spec = known.spec
        if not spec.vouch and EFFECT_CARE[dispatch.effect] < EFFECT_CARE[spec.effect]:
            return dispatch, Fault("plan.effect", f"the driver says {spec.effect}")
        if spec.claims or dispatch.claims:
            try:
                own = spec.claims_for(self._all_named(known, dispatch.params))
                claims = {*map(canonical_claim, dispatch.claims), *own}
            except KeyError as exc:
                return dispatch, Fault("driver.params", f"{exc.args[0]} is missing")
            dispatch = replace(dispatch, claims=tuple(sorted(claims)))
        refusal = None
        if known.has_guards:
            refusal = check_params(spec, self._policy.site, dispatch.params)
        if refusal is None and not dispatch.effect.repeatable:
            refusal = self._no_space()
        return dispatch, refusal

    def _all_named(self, known: _Known, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The params, with every pin that the policy allows where all are meant."""
        pins = self._policy.site.pins
        for name, default in known.pin_lists:
            if pins is not None and params.get(name, default) is None:
                params = {**params, name: pins.allow}
        return params

    def _look_up(self, dispatch: Dispatch) -> _Known | Fault:
        name = f"{dispatch.module}.{dispatch.action}"[:200]
        if dispatch.module not in self._policy.modules:
            return Fault("policy.module", f"the policy does not allow {name}")
        spec = self._manifest.find(dispatch.module, dispatch.action)
        if spec is None:
            return Fault("action.unknown", f"this node does not offer {name}")
        refusal = check_profile(spec, self.profile)
        guards = guarded(spec)
        pin_lists = tuple((name, default) for name, kind, default in guards if kind == "pins")
        known = _Known(spec, refusal, bool(guards), pin_lists)
        self._known[dispatch.module, dispatch.action] = known
        return known
