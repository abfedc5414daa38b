"""Whether a running broker keeps strangers out and its members apart: the same questions to any.

The one rule: it looks at what gets through, never at how the broker says no. It speaks as control,
whose connection it takes over for a moment, and as two nodes of its own. Deliberately absent: what
to do about a finding.
"""

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part: client contexts, and the ids in the certificates of those that have one.

    `anonymous` shows no certificate, `stranger` one of another CA; both trust the broker.
    """

    anonymous: ssl.SSLContext
    stranger: ssl.SSLContext
    control: tuple[str, ssl.SSLContext]
    node: tuple[str, ssl.SSLContext]
    other: tuple[str, ssl.SSLContext]


@dataclass(frozen=True, slots=True)
class Finding:
    """One question, whether the broker passed, and what was seen when it did not."""

    name: str
    passed: bool
    seen: str = ""


class Probe:
    """The questions to the broker of `mesh` at address:port."""

    def __init__(self, mesh: str, address: str, port: int, cast: Cast) -> None:
        self._mesh = mesh
        self._address = address
        self._port = port
        self._cast = cast

    async def run(self) -> list[Finding]:
        """Ask everything, one after the other; an unreachable broker fails every question."""
        questions: dict[str, Callable[[], Awaitable[str]]] = {
            "anonymous refused": self._anonymous,
            "foreign CA refused": self._foreign_ca,
            "foreign topic not delivered": self._foreign_topic,
            "foreign client id takes nobody over": self._foreign_id,
            "oversize packet refused": self._oversize,
            "status retained": self._retained,
            "will published on a kill": self._will,
        }
        findings = []
        for name, question in questions.items():
            try:
                seen = await question()
            except LinkError as exc:
                seen = exc.message
            findings.append(Finding(name, not seen, seen))
        return findings

    async def _anonymous(self) -> str:
        return await self._comes_in(self._cast.anonymous)

    async def _foreign_ca(self) -> str:
        return await self._comes_in(self._cast.stranger)

    async def _comes_in(self, context: ssl.SSLContext) -> str:
        # Only a broker that lets somebody in can be said to keep somebody out.
        async with self._inside(self._cast.node):
            pass
        try:
            visitor = await Visitor.enter(self._door(context), self._cast.node[0])
        except LinkError:
            return ""
        visitor.vanish()
        return "it was let in"

    async def _foreign_topic(self) -> str:
        forged, own = self._of(self._cast.other, b"forged"), self._of(self._cast.node, b"own")
        async with self._listening() as control, self._inside(self._cast.node) as node:
            node.publish(forged)
            node.publish(own)
            return _differs(await control.hear(), own)

    async def _foreign_id(self) -> str:
        message = Message(topics.to_node(self._mesh, self._cast.other[0], Kind.ACK), b"", 1, False)
        async with self._listening() as control, self._inside(self._cast.other) as other:
            await other.subscribe(message.topic)
            with contextlib.suppress(LinkError):
                door = self._door(self._cast.node[1])
                (await Visitor.enter(door, self._cast.other[0])).vanish()
            control.publish(message)
            return _differs(await other.hear(), message)

    async def _oversize(self) -> str:
        fine = self._of(self._cast.other, b"fine")
        payload = bytes(limits.BROKER_PACKET_BYTES)
        async with self._listening() as control, self._inside(self._cast.node) as node:
            node.publish(self._of(self._cast.node, payload))
            async with self._inside(self._cast.other) as other:
                other.publish(fine)
                seen = _differs(await control.hear(), fine)
            try:
                while True:
                    await node.packet()
            except LinkError:
                return seen

    async def _retained(self) -> str:
        topic = topics.from_node(self._mesh, self._cast.node[0], Kind.STATUS)
        kept, cleared = Message(topic, b"here", 1, True), Message(topic, b"", 1, True)
        async with self._inside(self._cast.node) as node:
            node.publish(kept)
            await node.packet()
            async with self._listening() as control:
                seen = _differs(await control.hear(), kept)
            node.publish(cleared)
            await node.packet()
            after = self._of(self._cast.node, b"after")
            async with self._listening() as control:
                node.publish(after)
                return seen or _differs(await control.hear(), after)

    async def _will(self) -> str:
        will = self._of(self._cast.node, b"gone")
        async with self._listening() as control:
            door = self._door(self._cast.node[1])
            (await Visitor.enter(door, self._cast.node[0], will)).vanish()
            return _differs(await control.hear(), will)

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[Visitor]:
        """Control, that hears what our two nodes say."""
        async with self._inside(self._cast.control) as control:
            members = (self._cast.node, self._cast.other)
            base = f"{topics.PREFIX}/{self._mesh}/from"
            await control.subscribe(*(f"{base}/{name}/#" for name, _ in members))
            yield control

    @contextlib.asynccontextmanager
    async def _inside(self, member: tuple[str, ssl.SSLContext]) -> AsyncIterator[Visitor]:
        name, context = member
        visitor = await Visitor.enter(self._door(context), name)
        try:
            yield visitor
        finally:
            visitor.leave()

    def _door(self, context: ssl.SSLContext) -> Door:
        return Door(self._address, self._port, context)

    def _of(self, member: tuple[str, ssl.SSLContext], payload: bytes) -> Message:
        """A message of a kind that nobody acts on unless it is signed."""
        return Message(topics.from_node(self._mesh, member[0], Kind.ACCEPT), payload, 1, False)


def _differs(heard: Message, wanted: Message) -> str:
    """Empty when it is the one."""
    return "" if heard == wanted else f"{heard.payload[:20]!r} came on {heard.topic}"
