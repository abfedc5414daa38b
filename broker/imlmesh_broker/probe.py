"""Whether a running broker keeps strangers out and its members apart: the same questions to any.

The one rule: it looks at what gets through, never at how the broker says no. It speaks as two nodes
of its own and as control under a client id of its own, so nobody's session is disturbed. Deliberately
absent: what to do about a finding, and making the certificates.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from imlmesh_broker.embedded.codec import Message
from imlmesh_broker.visitor import Door, Visitor
from imlmesh_protocol import limits
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind

CONTROL = "probe-control"
_SHARED = 10  # messages of which a thief would get every second one


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part: client contexts, and the ids in the certificates of the two nodes.

    `anonymous` shows no certificate, `stranger` one of another CA; both trust the broker. `revoke`
    puts the certificates of both nodes on the revocation list; None leaves that question out.
    """

    anonymous: ssl.SSLContext
    stranger: ssl.SSLContext
    control: ssl.SSLContext
    node: tuple[str, ssl.SSLContext]
    other: tuple[str, ssl.SSLContext]
    revoke: Callable[[], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One question, whether the broker passed, and what was seen when it did not."""

    name: str
    passed: bool
    seen: str = ""


class Probe:
    """The questions to the broker of `mesh`, which listens for nodes and for control at
    (address, port)."""

    def __init__(
        self, mesh: str, nodes: tuple[str, int], control: tuple[str, int], cast: Cast
    ) -> None:
        self._mesh = mesh
        self._nodes = nodes
        self._control = control
        self._cast = cast
        self._inside: dict[str, Visitor] = {}

    async def run(self) -> list[Finding]:
        """Ask everything, one after the other; an unreachable broker fails every question."""
        findings: list[Finding] = []
        for name, question in self._questions().items():
            # only a broker that lets somebody in can be said to keep somebody out
            if findings and not findings[0].passed:
                findings.append(Finding(name, False, "not asked"))
                continue
            try:
                seen = await question()
            except LinkError as exc:
                seen = exc.message
            if seen:
                # what is still on the way must not be taken for an answer to the next question
                self._part(*self._inside)
            findings.append(Finding(name, not seen, seen))
        self._part(*self._inside)
        return findings

    def _questions(self) -> dict[str, Callable[[], Awaitable[str]]]:
        cast, nodes, control = self._cast, self._nodes, self._control
        asked: dict[str, Callable[[], Awaitable[str]]] = {
            "members let in": self._members,
            "anonymous refused for nodes": lambda: self._refused(nodes, cast.anonymous),
            "anonymous refused for control": lambda: self._refused(control, cast.anonymous),
            "foreign CA refused for nodes": lambda: self._refused(nodes, cast.stranger),
            "foreign CA refused for control": lambda: self._refused(control, cast.stranger),
            "node refused for control": lambda: self._refused(control, cast.node[1]),
            "control refused for nodes": lambda: self._refused(nodes, cast.control),
            "foreign topic not written": self._foreign_topic,
            "foreign topic not read": self._foreign_reading,
            "foreign will not published": self._foreign_will,
            "foreign client id takes nobody over": self._foreign_id,
            "control ends a session": self._taken_over,
            "$share steals nothing": self._shared,
            "oversize packet refused": self._oversize,
            "status retained": self._retained,
            "will published on a kill": self._will,
        }
        if cast.revoke is not None:
            revoke = cast.revoke
            asked["revoked certificate refused"] = lambda: self._revoked(revoke)
        return asked

    async def _members(self) -> str:
        for member in (self._cast.node, self._cast.other):
            await self._enter(member)
        await self._listening()
        return ""

    async def _refused(self, at: tuple[str, int], context: ssl.SSLContext) -> str:
        try:
            visitor = await Visitor.enter(Door(*at, context), self._cast.node[0])
        except LinkError:
            return ""
        visitor.vanish()
        return "it was let in"

    async def _foreign_topic(self) -> str:
        forged, own = self._of(self._cast.other, b"forged"), self._of(self._cast.node, b"own")
        control, node = await self._listening(), await self._enter(self._cast.node)
        node.publish(forged)
        node.publish(own)
        return _differs(await control.hear(), own)

    async def _foreign_reading(self) -> str:
        theirs, own = self._to(self._cast.other, b"theirs"), self._to(self._cast.node, b"own")
        control, node = await self._listening(), await self._enter(self._cast.node)
        # whatever is answered: what counts is what is delivered
        for asked in ("#", theirs.topic, f"{topics.PREFIX}/{self._mesh}/#", own.topic):
            await node.subscribe(asked)
        control.publish(theirs)
        control.publish(own)
        return _differs(await self._meant(node), own)

    async def _foreign_will(self) -> str:
        forged, own = self._of(self._cast.other, b"forged"), self._of(self._cast.node, b"own")
        control = await self._listening()
        with contextlib.suppress(LinkError):
            await self._die(forged)
        await self._die(own)
        return _differs(await control.hear(), own)

    async def _foreign_id(self) -> str:
        message = self._to(self._cast.other, b"")
        control, other = await self._listening(), await self._enter(self._cast.other)
        await other.subscribe(message.topic)
        with contextlib.suppress(LinkError):
            door = Door(*self._nodes, self._cast.node[1])
            (await Visitor.enter(door, self._cast.other[0])).vanish()
        control.publish(message)
        return _differs(await other.hear(), message)

    async def _taken_over(self) -> str:
        node = await self._enter(self._cast.node)
        door = Door(*self._control, self._cast.control)
        (await Visitor.enter(door, self._cast.node[0])).leave()
        self._inside.pop(self._cast.node[0])
        return await _goes_on(node)

    async def _shared(self) -> str:
        """Nothing of ours is ever asked for by `$share`, so a thief's group has no other member."""
        ups = [self._of(self._cast.other, b"%d" % number) for number in range(_SHARED)]
        downs = [self._to(self._cast.other, b"%d" % number) for number in range(_SHARED)]
        own = self._to(self._cast.node, b"own")
        control, other = await self._listening(), await self._enter(self._cast.other)
        thief = await self._enter(self._cast.node)
        await other.subscribe(downs[0].topic)
        await thief.subscribe(own.topic)
        wanted = ("#", ups[0].topic, downs[0].topic, f"{topics.PREFIX}/{self._mesh}/#")
        # who asks may be thrown out: that is a refusal too
        with contextlib.suppress(LinkError):
            for name in ("mesh", "other"):
                await thief.subscribe(*(f"$share/{name}/{one}" for one in wanted))
        for message in ups:
            other.publish(message)
        for message in [*downs, own]:
            control.publish(message)
        got = [await control.hear() for _ in ups] + [await other.hear() for _ in downs]
        lost = sum(message not in got for message in ups + downs)
        heard = "" if thief.ended else _differs(await self._meant(thief), own)
        # it may get its own twice: as itself, and in a group of which it is all
        self._part(self._cast.node[0])
        return f"{lost} of {len(ups + downs)} messages were lost" if lost else heard

    async def _oversize(self) -> str:
        fine = self._of(self._cast.other, b"fine")
        control, other = await self._listening(), await self._enter(self._cast.other)
        node = await self._enter(self._cast.node)
        self._inside.pop(self._cast.node[0])
        node.publish(self._of(self._cast.node, bytes(limits.BROKER_PACKET_BYTES)))
        other.publish(fine)
        return _differs(await control.hear(), fine) or await _goes_on(node)

    async def _retained(self) -> str:
        topic = topics.from_node(self._mesh, self._cast.node[0], Kind.STATUS)
        kept, cleared = Message(topic, b"here", 1, True), Message(topic, b"", 1, True)
        after = self._of(self._cast.node, b"after")
        control, node = await self._listening(), await self._enter(self._cast.node)
        node.publish(kept)
        await control.hear()
        # asked for again it comes again, marked as retained
        await control.subscribe(topic)
        seen = _differs(await control.hear(), kept)
        node.publish(cleared)
        await control.hear()
        await control.subscribe(topic)
        node.publish(after)
        return seen or _differs(await control.hear(), after)

    async def _will(self) -> str:
        will = self._of(self._cast.node, b"gone")
        control = await self._listening()
        await self._die(will)
        return _differs(await control.hear(), will)

    async def _revoked(self, revoke: Callable[[], Awaitable[None]]) -> str:
        await revoke()
        pause_ms = limits.BROKER_WATCH_MS // 2
        for _ in range(limits.PROBE_REVOKED_MS // pause_ms):
            if not await self._refused(self._nodes, self._cast.node[1]):
                self._part(CONTROL)
                await self._listening()  # it still lives
                return ""
            await asyncio.sleep(pause_ms / 1000)
        return f"it was let in for {limits.PROBE_REVOKED_MS} ms"

    async def _listening(self) -> Visitor:
        """Control, that hears what our two nodes say."""
        control = self._inside.get(CONTROL)
        if control is None:
            control = await Visitor.enter(Door(*self._control, self._cast.control), CONTROL)
            self._inside[CONTROL] = control
            base = f"{topics.PREFIX}/{self._mesh}/from"
            names = (self._cast.node[0], self._cast.other[0])
            await control.subscribe(*(f"{base}/{name}/#" for name in names))
        return control

    async def _enter(self, member: tuple[str, ssl.SSLContext]) -> Visitor:
        """One of our nodes, which stays for the next questions."""
        name, context = member
        if name not in self._inside:
            self._inside[name] = await Visitor.enter(Door(*self._nodes, context), name)
        return self._inside[name]

    async def _meant(self, node: Visitor) -> Message:
        """The next message that not every node may read: a mesh at work goes on meanwhile."""
        base = f"{topics.PREFIX}/{self._mesh}"
        while True:
            message = await node.hear()
            if not message.topic.startswith((f"{base}/all/", f"{base}/orchestrator/")):
                return message

    async def _die(self, will: Message) -> None:
        """As the first of our nodes, and break the connection."""
        name, context = self._cast.node
        self._part(name)
        (await Visitor.enter(Door(*self._nodes, context), name, will)).vanish()

    def _part(self, *names: str) -> None:
        for name in names:
            if visitor := self._inside.pop(name, None):
                visitor.leave()

    def _of(self, member: tuple[str, ssl.SSLContext], payload: bytes) -> Message:
        """A message of a kind that nobody acts on unless it is signed."""
        return Message(topics.from_node(self._mesh, member[0], Kind.ACCEPT), payload, 1, False)

    def _to(self, member: tuple[str, ssl.SSLContext], payload: bytes) -> Message:
        return Message(topics.to_node(self._mesh, member[0], Kind.ACK), payload, 1, False)


async def _goes_on(visitor: Visitor) -> str:
    """Empty when the broker has ended the connection."""
    with contextlib.suppress(LinkError, TimeoutError):
        async with asyncio.timeout(limits.PROBE_ANSWER_MS / 1000):
            while True:
                await visitor.packet()
    return "" if visitor.ended else "the connection went on"


def _differs(heard: Message, wanted: Message) -> str:
    """Empty when it is the one."""
    return "" if heard == wanted else f"{heard.payload[:20]!r} came on {heard.topic}"
