"""Addresses as people write them, of a broker or a join endpoint: `192.168.1.20:8883`, `[fe80::1]:8766`.

The one rule: every room reads it here, so that what one accepts and writes down no other refuses or
takes for something else. Deliberately absent: whether somebody is there; who connects finds out.
"""

import re

from imlmesh_protocol.errors import InputError
from imlmesh_runtime.link.base import Address

#: where nodes join and renew, unless they are told another port
JOIN_PORT = 8766
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):([0-9]{1,5})")


#: where nodes meet their broker, unless the mesh has another port
_BROKER_PORT = 8883


def address_of(text: str, what: str = "broker", usual: int = _BROKER_PORT) -> Address:
    """`text` as (address, port), without brackets; InputError `config.invalid` for anything else, which
    calls it `what` and gives examples with the port `usual`."""
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[3]) < 65_536:
        hint = f"for example 192.168.1.20:{usual} or [fd00::20]:{usual}"
        raise InputError("config.invalid", f"{what} {text[:80]!r} is not ADDRESS:PORT", hint=hint)
    return found[1] or found[2], int(found[3])


def address_text(host: str, port: int) -> str:
    """The other way round."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_address(text: str) -> bool:
    """Whether `address_of` would take it."""
    try:
        address_of(text)
    except InputError:
        return False
    return True
