"""Whom the orchestrator shut out of its mesh, wholly or in part: the file access.json as a value.

The one rule: what is not whole is not taken, so that a torn file opens nothing. Pure. Deliberately
absent: what everybody may, which is the topic table, and who wrote the file.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from imlmesh_protocol.errors import InputError, TrustError
from imlmesh_protocol.ids import check_name


@dataclass(frozen=True, slots=True)
class Access:
    """Ids of nodes that may nothing, and of nodes that may what `topics.QUARANTINED` says.

    `version` is the orchestrator's number of this state.
    """

    version: int = 0
    revoked: frozenset[str] = frozenset()
    quarantined: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, data: bytes, control: str) -> Self:
        """From {"version": n, "revoked": [ids], "quarantined": [ids]}; who is in both is revoked.

        TrustError `broker.access` for anything else, and when it names `control`, the orchestrator.
        """
        try:
            found = json.loads(data)
            version = found["version"]
            revoked, quarantined = _ids(found["revoked"]), _ids(found["quarantined"])
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise TrustError("broker.access", f"access.json: {exc!r}") from exc
        if type(version) is not int or version < 0:
            raise TrustError("broker.access", "access.json: version is not a number")
        if control in revoked | quarantined:
            raise TrustError("broker.access", "access.json would shut the orchestrator out")
        return cls(version, revoked, quarantined - revoked)

    def text(self) -> bytes:
        """The file again."""
        found = {
            "version": self.version,
            "revoked": sorted(self.revoked),
            "quarantined": sorted(self.quarantined),
        }
        return json.dumps(found).encode()


#: the state of a mesh that never shut anybody out
ALL_IN = Access()


def _ids(found: Any) -> frozenset[str]:
    if not isinstance(found, list):
        raise TypeError("not a list of ids")
    try:
        return frozenset(check_name("node", name) for name in found)
    except InputError as exc:
        raise ValueError(exc.message) from exc
