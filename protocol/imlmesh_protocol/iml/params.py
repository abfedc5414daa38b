"""Actions against manifests: known module and action, params by schema, effect and impact.

The one rule: a template's value is not known yet, so nothing is said about it; everything around
it is checked. Deliberately absent: where an action could run (placement decides).
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from imlmesh_protocol import limits
from imlmesh_protocol.errors import InputError
from imlmesh_protocol.iml import template
from imlmesh_protocol.iml.builder import pointer_of
from imlmesh_protocol.iml.calls import CallParams
from imlmesh_protocol.iml.findings import Findings
from imlmesh_protocol.iml.plan import Action
from imlmesh_protocol.iml.requirements import satisfies
from imlmesh_protocol.iml.schemas import bounded, validator_of
from imlmesh_protocol.manifest import ActionSpec, Manifest, Module
from imlmesh_protocol.states import EFFECT_CARE, Effect

#: keywords that say something about a container as a whole, so a template inside it leaves them open
_OPEN_KEYWORDS = frozenset(
    {"anyOf", "oneOf", "not", "if", "const", "enum", "contains", "uniqueItems"}
)
#: what we say instead of the library's words, which are about JSON Schema; {} is the keyword's value
_WORDS = {
    "type": "must be of type {}",
    "minimum": "must be at least {}",
    "maximum": "must be at most {}",
    "exclusiveMinimum": "must be more than {}",
    "exclusiveMaximum": "must be less than {}",
    "minLength": "must have at least {} characters",
    "maxLength": "may have at most {} characters",
    "minItems": "must hold at least {} entries",
    "maxItems": "may hold at most {} entries",
    "enum": "must be one of {}",
    "const": "must be {}",
}


def effect_of(action: Action, spec: ActionSpec) -> Effect:
    """The effect that counts: the plan's, unless the driver is more careful and takes no vouching."""
    wanted = action.effect
    if wanted is None or (not spec.vouch and EFFECT_CARE[wanted] < EFFECT_CARE[spec.effect]):
        return spec.effect
    return wanted


class Catalogue:
    """What the given manifests can do; several nodes may offer one action in several versions.

    `requirements`: version specifiers by module; modules of other versions are left out.
    """

    def __init__(self, manifests: Sequence[Manifest], requirements: Mapping[str, str]) -> None:
        self._offers: dict[str, list[Module]] = {}
        for manifest in manifests:
            for name, module in manifest.modules.items():
                if name not in requirements or satisfies(module.version, requirements[name]):
                    self._offers.setdefault(name, []).append(module)
        self._specs: dict[tuple[str, str], list[ActionSpec]] = {}
        self._validators: dict[int, Any] = {}

    def modules(self) -> Collection[str]:
        return self._offers.keys()

    def actions(self, module: str) -> list[str]:
        """The actions of a module, in all its versions."""
        return sorted({action for offer in self._offers[module] for action in offer.actions})

    def specs(self, module: str, action: str) -> list[ActionSpec]:
        """The different specs of an action, the most careful first; empty when there is none."""
        key = (module, action)
        if key not in self._specs:
            different: list[ActionSpec] = []
            for offer in self._offers.get(module, ()):
                spec = offer.actions.get(action)
                if spec is not None and spec not in different:
                    different.append(spec)
            different.sort(key=lambda spec: (EFFECT_CARE[spec.effect], spec.impact), reverse=True)
            self._specs[key] = different
        return self._specs[key]

    def validator(self, spec: ActionSpec) -> Any:
        """The compiled schema of a spec's params."""
        if id(spec) not in self._validators:
            self._validators[id(spec)] = validator_of(spec.params)
        return self._validators[id(spec)]


def check_action(
    index: int,
    action: Action,
    calls: Sequence[CallParams],
    catalogue: Catalogue,
    has_fleet: bool,
    findings: Findings,
) -> None:
    """One action, whose fields are right, against all that is offered."""
    _check_size(action, calls, findings)
    specs = catalogue.specs(action.module, action.action)
    if not specs:
        _report_unknown(index, action, catalogue, has_fleet, findings)
        _check_reroute(index, action, action.effect, findings)
        return
    _check_effect(index, action, specs[0], findings)
    _check_impact(index, action, specs[0], findings)
    _check_params(action, calls, specs, catalogue, findings)


def _check_params(
    action: Action,
    calls: Sequence[CallParams],
    specs: Sequence[ActionSpec],
    catalogue: Catalogue,
    findings: Findings,
) -> None:
    # several calls may show the same mistake of the action's own params
    told: dict[tuple[str, str], bool] = {}
    for call in calls:
        told_by_each = [
            bounded(islice(_problems(call.merged, spec, catalogue, findings), limits.PLAN_ERRORS))
            for spec in specs
        ]
        # a node whose schema cannot be used has no say
        problems = [each for each in told_by_each if each is not None] or [[_UNUSABLE]]
        if all(problems):
            for path, message, at_key in problems[0]:
                told[call.place(path), message] = at_key
    for (pointer, message), at_key in told.items():
        findings.error("action.params", pointer, f'action "{action.id}": {message}', key=at_key)


def _report_unknown(
    index: int, action: Action, catalogue: Catalogue, has_fleet: bool, findings: Findings
) -> None:
    modules = catalogue.modules()
    if action.module in modules:
        near = findings.did_you_mean(action.action, catalogue.actions(action.module))
        message = f'the module "{action.module}" has no action "{action.action}"{near}'
        findings.error("action.unknown", pointer_of("actions", index, "action"), message)
        return
    report = findings.error if has_fleet else findings.warning
    where = "no node has" if has_fleet else "this installation does not have"
    near = findings.did_you_mean(action.module, modules)
    message = f'{where} the module "{action.module}"{near}'
    report("module.unknown", pointer_of("actions", index, "module"), message)


def _check_size(action: Action, calls: Sequence[CallParams], findings: Findings) -> None:
    for call in calls:
        try:
            template.check_size(call.merged)
        except InputError as exc:
            findings.error(exc.code, call.pointer, f'action "{action.id}": {exc.message}')


def _check_effect(index: int, action: Action, spec: ActionSpec, findings: Findings) -> None:
    effect = effect_of(action, spec)
    if action.effect not in (None, effect):
        message = (
            f'action "{action.id}": {action.module}.{action.action} is {spec.effect}; '
            f"{action.effect} would be less careful"
        )
        findings.error("plan.effect", pointer_of("actions", index, "effect"), message)
    else:
        _check_reroute(index, action, effect, findings)


def _check_reroute(index: int, action: Action, effect: Effect | None, findings: Findings) -> None:
    if action.on_node_loss == "reroute" and effect is not None and not effect.repeatable:
        message = f'action "{action.id}" is {effect}: on another node it might happen twice'
        findings.error("plan.reroute", pointer_of("actions", index, "on_node_loss"), message)


def _check_impact(index: int, action: Action, spec: ActionSpec, findings: Findings) -> None:
    if action.impact is not None and action.impact < spec.impact:
        message = (
            f'action "{action.id}": the impact of {action.module}.{action.action} is '
            f"{spec.impact}; {action.impact} is lower"
        )
        findings.error("plan.impact", pointer_of("actions", index, "impact"), message)


_Path = tuple[str | int, ...]
_UNUSABLE = ((), "what its driver says of its parameters cannot be used", False)


def _problems(
    params: Mapping[str, Any], spec: ActionSpec, catalogue: Catalogue, findings: Findings
) -> Iterator[tuple[_Path, str, bool]]:
    """Path within the params, message, and whether its key is meant."""
    lacking: set[_Path] = set()
    for found in catalogue.validator(spec).iter_errors(params):
        if _left_open(found):
            continue
        error = _without_null(found)
        path: _Path = tuple(error.absolute_path)
        keyword = error.validator
        if keyword == "additionalProperties" and error.validator_value is False:
            known = sorted(error.schema.get("properties", {}))
            for key in error.instance:
                if key not in known:
                    message = (
                        f"{_named((*path, key))} is unknown{findings.did_you_mean(key, known)}"
                    )
                    yield (*path, key), message, True
        elif keyword == "required":
            # one error for each that is missing, none of which says which
            if path not in lacking:
                lacking.add(path)
                for key in error.validator_value:
                    if key not in error.instance:
                        yield path, f"{_named((*path, key))} is missing", False
        else:
            yield path, f"{_named(path)} {_words(error)}", False


def _without_null(error: Any) -> Any:
    """A param that may be null and is not: what is wrong is what its one other kind says of it."""
    if error.validator == "anyOf":
        others = [
            inner
            for inner in error.context
            if (inner.validator, inner.validator_value) != ("type", "null")
        ]
        if others and len({inner.schema_path[0] for inner in others}) == 1:
            return others[0]
    return error


def _left_open(error: Any) -> bool:
    instance = error.instance
    if isinstance(instance, str) and template.has_templates(instance):
        # text around a template stays text, whatever is put in
        return error.validator != "type" or template.is_template(instance)
    return error.validator in _OPEN_KEYWORDS and template.has_templates(instance)


def _named(path: _Path) -> str:
    return f'the parameter "{".".join(map(str, path))}"' if path else '"params"'


def _words(error: Any) -> str:
    value = error.validator_value
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    words = _WORDS.get(error.validator)
    return words.format(value) if words else f"is not allowed: {error.message[:200]}"
