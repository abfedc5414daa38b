"""Keys of units of work, as people read them.

The one rule: an action is its id, a member `ID@NODE`, a compensation `ID~NODE`; ids of actions
hold neither sign, so a key can always be taken apart. Deliberately absent: states.
"""

import re
from collections.abc import Callable

Alias = Callable[[str], str]

_KEY = re.compile(r"([^@~]+)([@~])(.+)")


def split_unit(key: str) -> tuple[str, str, str | None]:
    """(action id, "" or "@" or "~", node id or None)."""
    found = _KEY.fullmatch(key)
    return (found[1], found[2], found[3]) if found else (key, "", None)


def unit_text(key: str, alias: Alias) -> str:
    """`read`, `read on pi-1`, `undoing read on pi-1`."""
    action, sign, node = split_unit(key)
    if node is None:
        return action
    return f"{'undoing ' if sign == '~' else ''}{action} on {alias(node)}"
