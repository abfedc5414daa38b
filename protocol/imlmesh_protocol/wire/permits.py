"""Permits as they are signed, sent and stored: a document of kind `permit`, signed by a plan key.

The one rule: signature first, and a body is read strictly: a field or a word that this version does
not know may be a restriction. Deliberately absent: whether it may run now.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.limits import (
    COUNT_MAX,
    PERMIT_ACTIONS,
    PERMIT_BUDGET,
    PERMIT_BYTES,
    PERMIT_EVERY_MS,
)
from imlmesh_protocol.permits import (
    CUT_OFF,
    EVERY,
    ON,
    ON_ERROR,
    Filling,
    Permit,
    PermitAction,
    Rule,
    permit_run,
    split_permit_run,
)
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire.codec import pack, unpack, unpack_unchecked
from imlmesh_protocol.wire.documents import FindKey, own_body, sign_body, signed_body

PERMIT = "permit"
_BODY = ("mesh", "id", "node", "plan", "digest", "budget", "from_ms", "to_ms", "rule", "actions")
_RULE = ("kind", "ms", "source", "value")
_ACTION = (
    *("id", "module", "action", "params", "effect", "timeout_ms"),
    *("depends_on", "on_error", "on_busy", "claims", "fillings"),
)
#: it becomes a part of dispatch ids
_ACTION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_EFFECTS = {str(effect): effect for effect in Effect}


def pack_permit(permit: Permit) -> bytes:
    """The body of its document."""
    rule = {name: getattr(permit.rule, name) for name in _RULE}
    actions = [_action_fields(action) for action in permit.actions]
    return pack(
        {name: getattr(permit, name) for name in _BODY} | {"rule": rule, "actions": actions}
    )


def sign_permit(body: bytes, sign: Callable[[bytes], bytes], key_id: bytes) -> bytes:
    """The document of a body."""
    return sign_body(PERMIT, body, sign, key_id)


def read_permit(document: bytes, find_key: FindKey) -> Permit:
    """The permit of a document; TrustError `signature.invalid`, `signature.unknown_key`, ProtocolError
    `message.invalid`."""
    return permit_of(signed_body(PERMIT, document, find_key))


def own_permit(document: bytes) -> Permit:
    """The permit of a document that was believed before it was stored."""
    return permit_of(own_body(document))


def unreadable_permit(id: str, document: bytes) -> Permit:
    """What stands for a stored permit that `own_permit` refuses: it allows nothing, until the time of the
    one that it was, if that can be read."""
    try:
        to_ms = unpack(own_body(document))["to_ms"]
    except (ProtocolError, KeyError, TypeError, IndexError):
        to_ms = COUNT_MAX
    return Permit("", id, "", "", "", 0, 0, to_ms if _count(to_ms) else COUNT_MAX, Rule(""), ())


def permit_of(body: bytes) -> Permit:
    """The permit of a packed body; `message.invalid`."""
    if len(body) > PERMIT_BYTES:
        raise ProtocolError("message.invalid", f"a permit of {len(body)} bytes")
    permit = _made(unpack(body))
    if not _fits(permit):
        raise ProtocolError("message.invalid", f"a permit of wrong values: {permit.id!r:.60}")
    return permit


def granted_permit(body: bytes) -> Permit:
    """The permit of a body that `permit_of` once read: the limits of this version came after it."""
    return _made(unpack_unchecked(body))


def _made(value: Any) -> Permit:
    fields = _fields(value, _BODY)
    fields["rule"] = Rule(**_fields(fields["rule"], _RULE))
    fields["actions"] = tuple(_action(each) for each in _list(fields["actions"]))
    return Permit(**fields)


def _action_fields(action: PermitAction) -> dict[str, Any]:
    fields = {name: getattr(action, name) for name in _ACTION}
    fields["fillings"] = [[list(f.path), list(f.parts)] for f in action.fillings]
    return fields


def _action(value: Any) -> PermitAction:
    fields = _fields(value, _ACTION)
    if (
        type(fields["effect"]) is not str
        or fields["effect"] not in _EFFECTS
        or type(fields["params"]) is not dict
    ):
        raise ProtocolError("message.invalid", "a permit: an action of wrong values")
    fields["effect"] = _EFFECTS[fields["effect"]]
    for name in ("depends_on", "claims"):
        fields[name] = tuple(_list(fields[name]))
    fields["fillings"] = tuple(_filling(each) for each in _list(fields["fillings"]))
    return PermitAction(**fields)


def _filling(value: Any) -> Filling:
    path, parts = pair if len(pair := _list(value)) == 2 else ([], None)
    made = tuple(part if type(part) is str else tuple(_list(part)) for part in _list(parts))
    return Filling(tuple(_list(path)), made)


def _fits(permit: Permit) -> bool:
    texts = (permit.mesh, permit.node, permit.plan, permit.digest)
    run = permit.id if type(permit.id) is str else ""
    return (
        all(type(each) is str for each in texts)
        and bool(NAME.fullmatch(permit.mesh) and NAME.fullmatch(permit.node))
        and split_permit_run(permit_run(run, 1)) == (run, 1)
        and _count(permit.budget, 1, PERMIT_BUDGET)
        and _count(permit.from_ms)
        and _count(permit.to_ms, permit.from_ms + 1)
        and _rule_fits(permit.rule)
        and 0 < len(permit.actions) <= PERMIT_ACTIONS
        and _actions_fit(permit.actions)
    )


def _rule_fits(rule: Rule) -> bool:
    if rule.kind == ON:
        return type(rule.source) is str and bool(rule.source)
    if rule.kind == EVERY:
        return _count(rule.ms, PERMIT_EVERY_MS)
    return rule.kind == CUT_OFF and _count(rule.ms)


def _actions_fit(actions: tuple[PermitAction, ...]) -> bool:
    before: set[str] = set()
    for action in actions:
        texts = (action.id, action.module, action.action, *action.depends_on, *action.claims)
        wanted = {
            str(part[0])
            for f in action.fillings
            for part in f.parts
            if type(part) is tuple and part
        }
        if not (
            all(type(text) is str for text in texts)
            and _ACTION_ID.fullmatch(action.id)
            and action.id not in before
            and before.issuperset((*action.depends_on, *wanted))
            and action.on_error in ON_ERROR
            and action.on_busy in ("wait", "fail")
            and _count(action.timeout_ms)
            and all(_reaches(action.params, f.path) for f in action.fillings)
        ):
            return False
        before.add(action.id)
    return True


def _reaches(params: Any, path: tuple[Any, ...]) -> bool:
    """Whether a filling has a text to take the place of."""
    for key in path:
        try:
            params = params[key]
        except (KeyError, IndexError, TypeError):
            return False
    return type(params) is str


def _count(value: Any, least: int = 0, most: int = COUNT_MAX) -> bool:
    return type(value) is int and least <= value <= most


def _fields(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, Mapping) or value.keys() != set(names):
        raise ProtocolError("message.invalid", "a permit: other fields than it has")
    return dict(value)


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise ProtocolError("message.invalid", "a permit: no list where one is due")
    return value
