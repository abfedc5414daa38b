"""Who a client is by its certificate, and what of the topic table is its own.

The one rule: a filter is cut down to what its owner may read when it is asked for, so whatever is
delivered later needs no second look. Pure. Deliberately absent: passwords, rules of people.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Self

from imlmesh_broker.rights import Access
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.wire import topics

Role = Literal["node", "control"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A client of one mesh: its id, and the filters of what it may write and read now.

    `asks` holds all that its role may ever read: a filter within it is taken even while nothing may
    be delivered for it, so that it is there when the client is let go.
    """

    mesh: str
    id: str
    is_control: bool
    writes: tuple[str, ...]
    reads: tuple[str, ...]
    asks: tuple[str, ...]

    @classmethod
    def of_certificate(cls, mesh: str, certificate: Mapping[str, Any], wanted: Role) -> Self:
        """From what `ssl` tells of a verified peer; LinkError `link.refused` when it is no client in
        the role `wanted`.

        Its one URI says `imlmesh://<mesh>/node/<id>` or `imlmesh://<mesh>/control/<id>`.
        """
        names = certificate.get("subjectAltName", ())
        uris = [value for kind, value in names if kind == "URI"]
        if len(uris) != 1:
            raise LinkError("link.refused", "the certificate does not name one client")
        role, _, name = uris[0].removeprefix(f"imlmesh://{mesh}/").partition("/")
        if role != wanted or not NAME.fullmatch(name):
            raise LinkError("link.refused", f"the certificate names {uris[0][:200]!r}")
        if role == "control":
            everything = (f"{topics.PREFIX}/{mesh}/#",)
            return cls(mesh, name, True, everything, everything, everything)
        writes, reads = _of_node(name, _rules(mesh))
        return cls(mesh, name, False, writes, reads, reads)

    def under(self, access: Access) -> Self:
        """With what `access` leaves to it."""
        if self.is_control:
            return self
        if self.id in access.revoked:
            return replace(self, writes=(), reads=())
        rules = _rules(self.mesh, is_quarantined=self.id in access.quarantined)
        writes, reads = _of_node(self.id, rules)
        return replace(self, writes=writes, reads=reads)

    def may_write(self, topic: str) -> bool:
        """Whether it may publish there."""
        return any(narrowed(rule, topic) == topic for rule in self.writes)

    def may_ask(self, asked: str) -> bool:
        """Whether the filter takes something that its role may read."""
        return any(narrowed(asked, rule) is not None for rule in self.asks)

    def readable(self, asked: str) -> list[str]:
        """What of the filter `asked` it may read now, as filters."""
        return [found for rule in self.reads if (found := narrowed(asked, rule)) is not None]


@lru_cache(maxsize=2)
def _rules(mesh: str, *, is_quarantined: bool = False) -> tuple[tuple[str, str], ...]:
    return topics.acl_rules(mesh, topics.QUARANTINED if is_quarantined else topics.KINDS)


def _of_node(
    name: str, rules: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what it writes, what it reads)."""
    own = [(right, rule.replace("%u", name)) for right, rule in rules]
    writes = tuple(rule for right, rule in own if right == "write")
    return writes, tuple(rule for right, rule in own if right == "read")


def narrowed(one: str, other: str) -> str | None:
    """The filter that takes exactly the topics that both take, or None when there are none."""
    ours, theirs = one.split("/"), other.split("/")
    taken: list[str] = []
    while ours[:1] != ["#"] and theirs[:1] != ["#"]:
        if not ours or not theirs:
            return None if ours or theirs else "/".join(taken)
        mine, yours = ours.pop(0), theirs.pop(0)
        if mine != yours and "+" not in (mine, yours):
            return None
        taken.append(yours if mine == "+" else mine)
    return "/".join(taken + (theirs if ours[:1] == ["#"] else ours))
