"""The topic table: who may write where, and what each kind is called there.

The one rule: one writer per topic. CA, ACL, links and file names use `ids.check_name` for every
part that is a name, so no name can climb into another's subtree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from imlmesh_protocol.errors import ProtocolError
from imlmesh_protocol.ids import NAME, check_name

PREFIX = "imlmesh/1"


class Kind(StrEnum):
    """The message kinds of wire version 1."""

    __hash__ = str.__hash__  # Enum's own is a call of Python, and tables are asked by kind

    REQUEST = "request"
    RESPONSE = "response"
    COMMAND = "command"
    ACK = "ack"
    EVENT = "event"
    DELEGATE = "delegate"
    ACCEPT = "accept"
    REJECT = "reject"
    COMPLETE = "complete"
    STATUS = "status"
    HEARTBEAT = "heartbeat"
    ESCALATE = "escalate"


class Way(StrEnum):
    """The second part of a topic: in which direction it carries."""

    __hash__ = str.__hash__

    TO = "to"
    FROM = "from"
    ALL = "all"
    ORCHESTRATOR = "orchestrator"


KINDS: dict[Way, frozenset[Kind]] = {
    Way.TO: frozenset({Kind.DELEGATE, Kind.ACK, Kind.COMMAND, Kind.REQUEST, Kind.RESPONSE}),
    Way.FROM: frozenset(
        {
            Kind.ACCEPT,
            Kind.REJECT,
            Kind.COMPLETE,
            Kind.REQUEST,
            Kind.RESPONSE,
            Kind.EVENT,
            Kind.STATUS,
            Kind.HEARTBEAT,
            Kind.ESCALATE,
        }
    ),
    Way.ALL: frozenset({Kind.COMMAND}),
    Way.ORCHESTRATOR: frozenset({Kind.STATUS}),
}

#: what a quarantined node may still say and hear: that it lives, how its work ended, what is asked of
#: it; nothing that would give it work
QUARANTINED: dict[Way, frozenset[Kind]] = {
    Way.TO: frozenset({Kind.COMMAND, Kind.REQUEST, Kind.RESPONSE, Kind.ACK}),
    Way.FROM: frozenset({Kind.STATUS, Kind.HEARTBEAT, Kind.REQUEST, Kind.RESPONSE, Kind.COMPLETE}),
    Way.ALL: frozenset({Kind.COMMAND}),
    Way.ORCHESTRATOR: frozenset(),
}

#: two names that no node gets: a probe of the broker speaks under them, and nobody minds
PROBES = ("probe-a", "probe-b")
#: fixed channels of an event; telemetry and source carry a name of their own behind a slash
CHANNELS = frozenset({"progress", "log"})
NAMED_CHANNELS = frozenset({"telemetry", "source"})
#: how often a node refused what, by code
REFUSALS = "telemetry/refusals"


@dataclass(frozen=True, slots=True)
class Topic:
    """A parsed topic. `name` is the node or orchestrator, empty on `all`."""

    way: Way
    mesh: str
    name: str
    kind: Kind
    channel: str = ""


def to_node(mesh: str, node: str, kind: Kind) -> str:
    return f"{PREFIX}/{mesh}/to/{node}/{kind}"


def from_node(mesh: str, node: str, kind: Kind, channel: str = "") -> str:
    topic = f"{PREFIX}/{mesh}/from/{node}/{kind}"
    return f"{topic}/{channel}" if channel else topic


def is_telemetry(channel: str) -> bool:
    """Whether an event's channel carries what nodes measured or counted."""
    return channel.startswith("telemetry/")


def to_all(mesh: str, kind: Kind) -> str:
    return f"{PREFIX}/{mesh}/all/{kind}"


def orchestrator_status(mesh: str, orchestrator: str) -> str:
    return f"{PREFIX}/{mesh}/orchestrator/{orchestrator}/status"


def orchestrator_probe(mesh: str, orchestrator: str) -> str:
    """Where an orchestrator speaks to itself alone, to know whether the broker carries anything."""
    return f"{PREFIX}/{mesh}/orchestrator/{orchestrator}/probe"


def node_subscriptions(mesh: str, node: str) -> tuple[str, ...]:
    """What a node listens to: its own, everybody's, and whether an orchestrator is there."""
    base = f"{PREFIX}/{check_name('mesh', mesh)}"
    return (
        f"{base}/to/{check_name('node', node)}/+",
        f"{base}/all/+",
        f"{base}/orchestrator/+/status",
    )


def orchestrator_subscriptions(mesh: str) -> tuple[str, ...]:
    """What an orchestrator listens to: everything that nodes say."""
    return (f"{PREFIX}/{check_name('mesh', mesh)}/from/#",)


def acl_rules(
    mesh: str, kinds: Mapping[Way, frozenset[Kind]] = KINDS
) -> tuple[tuple[str, str], ...]:
    """(right, topic pattern) of a node that may use `kinds`; `%u` stands for the node's own id.

    The table itself: what is in no row of it nobody may write.
    """
    base = f"{PREFIX}/{check_name('mesh', mesh)}"
    rules = [
        *(("write", f"{base}/from/%u/{kind}") for kind in sorted(kinds[Way.FROM])),
        *(("read", f"{base}/to/%u/{kind}") for kind in sorted(kinds[Way.TO])),
        *(("read", f"{base}/all/{kind}") for kind in sorted(kinds[Way.ALL])),
        *(("read", f"{base}/orchestrator/+/{kind}") for kind in sorted(kinds[Way.ORCHESTRATOR])),
    ]
    return tuple(
        (right, f"{rule}/#" if rule.endswith(f"/{Kind.EVENT}") else rule) for right, rule in rules
    )


def received(text: str, retained: bool) -> Topic:
    """The topic of a message that came; `message.retained` for one that the broker had kept, unless
    it is a status: what was kept may be of any age, and comes again with every connection."""
    topic = parse(text)
    if retained and topic.kind is not Kind.STATUS:
        raise ProtocolError("message.retained", f"{topic.kind} was kept by the broker")
    return topic


@lru_cache(maxsize=1_024)
def parse(topic: str) -> Topic:
    """Read a topic of ours; `message.kind` when it is not in the table."""
    parts = topic.split("/")
    if len(parts) < 5 or f"{parts[0]}/{parts[1]}" != PREFIX or not NAME.fullmatch(parts[2]):
        raise ProtocolError("message.kind", f"not a topic of ours: {topic[:200]!r}")
    try:
        way = Way(parts[3])
        name = "" if way is Way.ALL else parts[4]
        rest = parts[4:] if way is Way.ALL else parts[5:]
        kind = Kind(rest[0])
    except (ValueError, IndexError):
        raise ProtocolError("message.kind", f"not in the topic table: {topic[:200]!r}") from None
    channel = "/".join(rest[1:])
    named = way is Way.ALL or NAME.fullmatch(name)
    if not named or kind not in KINDS[way] or not _channel_fits(kind, rest[1:]):
        raise ProtocolError("message.kind", f"not in the topic table: {topic[:200]!r}")
    return Topic(way, parts[2], name, kind, channel)


def _channel_fits(kind: Kind, channel: list[str]) -> bool:
    if kind is not Kind.EVENT:
        return not channel
    if len(channel) == 1:
        return channel[0] in CHANNELS
    return len(channel) == 2 and channel[0] in NAMED_CHANNELS and bool(NAME.fullmatch(channel[1]))
