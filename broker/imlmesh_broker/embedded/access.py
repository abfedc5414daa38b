"""Who a client is by its certificate, and what of the topic table is its own.

The one rule: a filter is cut down to what its owner may read when it is asked for, so whatever is
delivered later needs no second look. Pure. Deliberately absent: passwords, rules of people.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.ids import NAME
from imlmesh_protocol.wire import topics


@dataclass(frozen=True, slots=True)
class Identity:
    """A client of one mesh: its id, and the filters of what it may write and read."""

    id: str
    is_control: bool
    writes: tuple[str, ...]
    reads: tuple[str, ...]

    @classmethod
    def of_certificate(cls, mesh: str, certificate: Mapping[str, Any]) -> Self:
        """From what `ssl` tells of a verified peer; LinkError `link.refused` when it is no client.

        Its one URI says `imlmesh://<mesh>/node/<id>` or `imlmesh://<mesh>/control/<id>`.
        """
        names = certificate.get("subjectAltName", ())
        uris = [value for kind, value in names if kind == "URI"]
        if len(uris) != 1:
            raise LinkError("link.refused", "the certificate does not name one client")
        role, _, name = uris[0].removeprefix(f"imlmesh://{mesh}/").partition("/")
        if role not in ("control", "node") or not NAME.fullmatch(name):
            raise LinkError("link.refused", f"the certificate names {uris[0][:200]!r}")
        if role == "control":
            everything = (f"{topics.PREFIX}/{mesh}/#",)
            return cls(name, True, everything, everything)
        rules = [(right, rule.replace("%u", name)) for right, rule in topics.acl_rules(mesh)]
        writes = tuple(rule for right, rule in rules if right == "write")
        return cls(name, False, writes, tuple(rule for right, rule in rules if right == "read"))

    def may_write(self, topic: str) -> bool:
        """Whether it may publish there."""
        return any(narrowed(rule, topic) == topic for rule in self.writes)

    def readable(self, asked: str) -> list[str]:
        """What of the filter `asked` it may read, as filters; none when it is wholly foreign."""
        return [found for rule in self.reads if (found := narrowed(asked, rule)) is not None]


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
