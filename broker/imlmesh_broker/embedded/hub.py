"""Where the clients of one mesh meet: who is there, who gets what, what is kept for later.

The one rule: a client id has one connection, and the newest wins. A client that fails, be it on delivery
of another's message, is ended here and disturbs nobody. Deliberately absent: bytes and sockets.
"""

from typing import Protocol

from imlmesh_broker.embedded.access import Identity
from imlmesh_broker.embedded.codec import REFUSED_FILTER, Message
from imlmesh_broker.embedded.flow import Flow
from imlmesh_broker.embedded.routes import Tree
from imlmesh_broker.rights import ALL_IN, Access
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError, MeshError, ProtocolError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind


class Member(Protocol):
    """A client as the hub sees it. `asked` maps its filters to QoS, `taken` what they became.

    `client` is the id under which it joined: that of its certificate, or any for control.
    `touch`: there is something to write. `refuse`: it was not allowed something; for the log.
    `end`: break the connection and leave the hub. `hold`, `release`: read no further, read on.
    `limit`: from now on it has the rights of another `identity`.
    """

    client: str
    identity: Identity
    flow: Flow
    will: Message | None
    asked: dict[str, int]
    taken: dict[str, int]

    def touch(self) -> None: ...
    def refuse(self, error: MeshError) -> None: ...
    def end(self, error: MeshError) -> None: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...
    def limit(self, identity: Identity) -> None: ...


class Hub:
    """All clients of one mesh."""

    def __init__(self, mesh: str, access: Access = ALL_IN) -> None:
        self.mesh = mesh
        self._access = access
        self._members: dict[str, Member] = {}
        self._subscriptions: Tree[Member, int] = Tree()
        self._routes: dict[bytes, dict[Member, int]] = {}
        self._retained: Tree[str, Message] = Tree()
        self._kept: dict[str, int] = {}
        self._retained_bytes = 0
        self._held: dict[Member, set[Member]] = {}

    def admit(self, identity: Identity) -> Identity:
        """With the rights that it has at present; LinkError `link.refused` when it is revoked."""
        if not identity.is_control and identity.id in self._access.revoked:
            raise LinkError("link.refused", f"{identity.id} is revoked")
        return identity.under(self._access)

    def limit(self, access: Access) -> None:
        """Who is revoked goes now, and who is quarantined keeps what that leaves to it."""
        self._access = access
        for member in list(self._members.values()):
            try:
                identity = self.admit(member.identity)
            except LinkError as exc:
                # not even its will is spread
                member.limit(member.identity.under(access))
                member.end(exc)
                continue
            if identity != member.identity:
                member.limit(identity)
                self._renew(member)

    def join(self, member: Member) -> None:
        """Let `member` in, in place of an earlier connection of its client id."""
        earlier = self._members.get(member.client)
        if earlier is not None:
            earlier.end(LinkError("link.down", "the same id connected again"))
        self._members[member.client] = member

    def leave(self, member: Member) -> None:
        """Forget `member`, and publish its will if it still has one."""
        del self._members[member.client]
        self.unsubscribe(member, list(member.asked))
        self._release(member)
        for senders in self._held.values():
            senders.discard(member)
        will = member.will
        if will is not None and self.may_write(member, will.topic):
            self.publish(member, will)

    def may_write(self, member: Member, topic: str) -> bool:
        """Whether the topic is its own; said in the log when it is not."""
        allowed = member.identity.may_write(topic)
        if not allowed:
            member.refuse(ProtocolError("broker.topic", f"it may not write to {topic!r}"))
        return allowed

    def publish(self, sender: Member, message: Message) -> None:
        """Keep `message` if it asks for that, and spread it."""
        if message.retain:
            self._keep(sender, message)
        self.spread(sender, message.topic.encode(), message.payload, message.qos)

    def spread(self, sender: Member, topic: bytes, payload: bytes, qos: int) -> None:
        """Deliver to everybody who takes the topic, which `sender` may write to."""
        takers = self._routes.get(topic)
        if takers is None:
            takers = self._route(topic)
        for member, wanted in takers.items():
            if not member.flow.deliver(topic, payload, qos and wanted):
                member.end(LinkError("broker.slow", f"{member.flow.waiting_bytes} bytes wait"))
                continue
            member.touch()
            # A flood of one node must not end control, so the node waits; but nobody waits for
            # a node, which could stop its whole mesh by not reading.
            is_behind = member.flow.waiting_bytes > limits.BROKER_HELD_BYTES
            if is_behind and member.identity.is_control and not sender.identity.is_control:
                self._held.setdefault(member, set()).add(sender)
                sender.hold()

    def subscribe(self, member: Member, wanted: list[tuple[str, int]]) -> list[int]:
        """Take filters; what is granted of each: a QoS, or REFUSED_FILTER."""
        granted = []
        refused: dict[str, int] = {}
        earlier = dict(member.asked)
        for asked, qos in wanted:
            fits = asked in member.asked or len(member.asked) < limits.BROKER_SUBSCRIPTIONS
            if fits and member.identity.may_ask(asked):
                member.asked[asked] = min(qos, 1)
                granted.append(min(qos, 1))
            else:
                code = "broker.topic" if fits else "broker.subscriptions"
                refused[code] = refused.get(code, 0) + 1
                granted.append(REFUSED_FILTER)
        for code, count in refused.items():
            member.refuse(ProtocolError(code, f"{count} of {len(wanted)} filters refused"))
        if member.asked != earlier:
            self._renew(member)
        return granted

    def send_retained(self, member: Member, filters: list[str]) -> None:
        """What is kept for filters that were granted; LinkError `broker.slow`."""
        for asked in filters:
            qos = member.asked.get(asked)
            if qos is None:
                continue
            for narrow in member.identity.readable(asked):
                for kept in self._retained.within(narrow):
                    topic = kept.topic.encode()
                    if not member.flow.deliver(topic, kept.payload, kept.qos and qos, True):
                        raise LinkError("broker.slow", "what is retained does not fit")

    def unsubscribe(self, member: Member, filters: list[str]) -> None:
        """Forget filters; one that was never taken means nothing."""
        earlier = len(member.asked)
        for asked in filters:
            member.asked.pop(asked, None)
        if len(member.asked) < earlier:
            self._renew(member)

    def caught_up(self, member: Member) -> None:
        """`member` has read something."""
        if member.flow.waiting_bytes < limits.BROKER_HELD_BYTES // 2:
            self._release(member)

    def _release(self, member: Member) -> None:
        for sender in self._held.pop(member, ()):
            sender.release()

    def _keep(self, sender: Member, message: Message) -> None:
        """Status alone is kept: one topic for each id, so that no client can fill the memory."""
        topic, size = message.topic, len(message.payload)
        try:
            is_status = topics.parse(topic).kind is Kind.STATUS
        except ProtocolError:
            is_status = False
        total = self._retained_bytes + size - self._kept.get(topic, 0)
        if not is_status:
            sender.refuse(ProtocolError("broker.topic", f"{topic!r} is not retained"))
        elif size and total > limits.BROKER_RETAINED_BYTES:
            sender.refuse(ProtocolError("message.too_large", f"no room to retain {topic!r}"))
        elif size:
            self._retained.put(topic, topic, message)
            self._kept[topic], self._retained_bytes = size, total
        elif topic in self._kept:
            self._retained.drop(topic, topic)
            self._retained_bytes -= self._kept.pop(topic)

    def _route(self, topic: bytes) -> dict[Member, int]:
        if len(self._routes) >= limits.BROKER_ROUTES:
            self._routes.clear()
        takers: dict[Member, int] = {}
        for member, qos in self._subscriptions.taking(topic.decode()):
            takers[member] = max(qos, takers.get(member, 0))
        self._routes[topic] = takers
        return takers

    def _renew(self, member: Member) -> None:
        """Bring the subscriptions in line with what `member` asked for."""
        taken: dict[str, int] = {}
        for asked, qos in member.asked.items():
            for narrow in member.identity.readable(asked):
                taken[narrow] = max(qos, taken.get(narrow, 0))
        for narrow in member.taken.keys() - taken.keys():
            self._subscriptions.drop(narrow, member)
        for narrow, qos in taken.items():
            self._subscriptions.put(narrow, member, qos)
        member.taken = taken
        self._routes.clear()
