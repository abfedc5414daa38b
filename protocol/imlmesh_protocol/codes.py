"""What is known of an error code, and the codes of joining; `errors.CODES` has them all.

The one rule: a code is raised only through `errors`. Deliberately absent: the other families.
"""

from dataclasses import dataclass
from typing import Literal

Blame = Literal["input", "peer", "here", "mesh"]


@dataclass(frozen=True, slots=True)
class Code:
    """What is known of one code: whose fault, whether trying again may help, what to try."""

    blame: Blame
    retry: bool
    hint: str
    #: name of the builtin exception that `retry_on` of a plan matches
    builtin: str = "ValueError"


JOINING: dict[str, Code] = {
    "token.invalid": Code(
        "input", False, "paste the whole line that `imlmesh token create` printed"
    ),
    "token.unknown": Code("peer", False, "ask the owner for a new one: imlmesh token create"),
    "token.expired": Code("input", False, "ask the owner for a new one: imlmesh token create"),
    "token.used": Code(
        "input", False, "ask the owner for a new one: imlmesh token create --uses N"
    ),
    "token.revoked": Code("input", False, "ask the owner for a new one: imlmesh token create"),
    "token.burnt": Code(
        "peer", False, "somebody tried wrong secrets: imlmesh token create makes another"
    ),
    "token.proof": Code("peer", False, "paste the whole line that `imlmesh token create` printed"),
    "token.not_found": Code("input", False, "imlmesh token list"),
    "token.too_many": Code("input", False, "imlmesh token list; ended ones go after a week"),
    "join.invalid": Code("peer", False, "both machines need the same version of imlmesh"),
    "join.too_large": Code("peer", False, "at most 8 KiB"),
    "join.nonce": Code("peer", True, "join again; a nonce is good once and for a minute"),
    "join.signature": Code("peer", False, "the sender does not hold the identity key it claims"),
    "join.pin": Code(
        "peer", False, "somebody else answers at this address; nothing secret was sent to it"
    ),
    "join.unreachable": Code(
        "mesh", True, "imlmesh up --lan opens a mesh; then: --at ADDRESS:PORT", "ConnectionError"
    ),
    "join.several": Code("input", False, "choose one: --at ADDRESS:PORT"),
    "join.too_many": Code("peer", True, "imlmesh node discover; approve or ignore those that wait"),
    "join.not_found": Code("input", False, "imlmesh node discover lists who waits"),
    "join.ambiguous": Code("input", False, "use its code instead of its name"),
    "join.expired": Code("peer", True, "join again: nobody approved in time"),
    "join.ignored": Code("peer", False, "the owner ignores this node; ask the owner"),
    "join.replaces": Code(
        "input", False, "only a node that is offline, lost or removed is replaced"
    ),
    "join.busy": Code("peer", True, "too many join at once; it is tried again", "ConnectionError"),
}
