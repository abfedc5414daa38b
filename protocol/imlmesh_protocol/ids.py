"""Typed ids, and the one grammar that certificates, ACLs, topics and file names all use.

The one rule: an id that came from outside passes `check_name` before it becomes part of a
topic, a path or an ACL line. Ids are derived or given; nothing here makes randomness.
"""

import re
from typing import NewType

from imlmesh_protocol.errors import InputError

MeshId = NewType("MeshId", str)
NodeId = NewType("NodeId", str)
RunId = NewType("RunId", str)
ActionId = NewType("ActionId", str)
ApprovalId = NewType("ApprovalId", str)

# Fits MQTT topics (no / + #), ACL files (no space), file names and DNS labels (63).
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")

# No vowels and no look-alikes (0/o, 1/l/i): four of them read out well over a phone.
_SUFFIX_ALPHABET = "23456789bcdfghjkmnpqrstvwxz"
_SUFFIX_LENGTH = 4

# ASCII, for int() refuses some of what str.isdigit takes, and bounded, for it refuses long ones
_ATTEMPT = re.compile(r"[0-9]{1,9}")


def check_name(what: str, value: str) -> str:
    """Return `value` when it is a valid id of a mesh, node or orchestrator, else raise `name.invalid`."""
    if not NAME.fullmatch(value):
        raise InputError(
            "name.invalid",
            f"{what} {value[:80]!r} must be 1 to 63 of a-z, 0-9, _ and -, and start with a letter or digit",
        )
    return value


def run_id(counter: int, dice: int) -> RunId:
    """The id of the `counter`-th run."""
    return RunId(short_id("r", counter, dice))


def short_id(letter: str, counter: int, dice: int) -> str:
    """A letter, a number, and four characters of `dice` that keep ids of two meshes apart."""
    suffix = ""
    for _ in range(_SUFFIX_LENGTH):
        dice, place = divmod(dice, len(_SUFFIX_ALPHABET))
        suffix += _SUFFIX_ALPHABET[place]
    return f"{letter}-{counter}-{suffix}"


def dispatch_id(run: str, action: str, node: str, attempt: int) -> str:
    """`run/action/node/attempt`: derived, so that a repeated decision names the same dispatch."""
    return f"{run}/{action}/{node}/{attempt}"


def split_dispatch(dispatch: str) -> tuple[RunId, ActionId, NodeId, int]:
    """The four parts of a dispatch id; `message.invalid` when there are not four."""
    parts = dispatch.split("/")
    if len(parts) != 4 or not _ATTEMPT.fullmatch(parts[3]):
        raise InputError("message.invalid", f"{dispatch[:120]!r} is not run/action/node/attempt")
    return RunId(parts[0]), ActionId(parts[1]), NodeId(parts[2]), int(parts[3])
