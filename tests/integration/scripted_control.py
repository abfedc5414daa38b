"""A scripted orchestrator and one node process on a real broker.

The test holds all keys of the home, so it can sign whatever it wants the node to hear.
"""

import asyncio
import contextlib
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nacl.signing import VerifyKey

from forked import Forked, Start
from imlmesh_broker import Broker, BrokerPlace, choose_broker
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.limits import LAN, MESSAGE_EXPIRY_MS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.dispatches import Dispatch, encode_dispatch
from imlmesh_protocol.wire.envelope import Opener, Sealer
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.endings import without_clock
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, Signer, load_signer
from node_folders import make_node

MESH, ME, NODE = "home", "orchestra", "pi"
WITHIN_S = 20
POLICY = """
profile = "local_worker"
[roots]
write = ["files"]
[modules]
allow = ["fake", "filesystem"]
"""


class Control:
    """An orchestrator that answers the time, and settles and answers beats while it is asked to."""

    def __init__(self, keys: ControlKeys, port: int, folder: Path) -> None:
        """`folder` is the node's, which may be made later."""
        self.settles = True
        self.answers = True
        self.tells_time = True
        #: how far mesh time is from this machine's clock
        self.ahead_ms = 0
        self.heard: list[Message] = []
        self._more = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()
        self._folder = folder
        self._opener = Opener(MESH, ME, self._find_key)
        self.keys = keys
        self.signer = keys.signer
        self.begin_epoch(1, keys.signer)
        filters = topics.orchestrator_subscriptions(MESH)
        self.link = MqttLink([("127.0.0.1", port)], ME, without_clock(keys.context()), filters)
        self.up = asyncio.Event()

    def _find_key(self, key_id: bytes, _iss: str) -> VerifyKey | None:
        own = load_signer(self._folder / "keys" / "identity.key")
        return VerifyKey(own.raw_public) if own.key_id == key_id else None

    def begin_epoch(self, epoch: int, signer: Signer) -> None:
        self.sealer = Sealer(signer.sign, signer.key_id, MESH, ME, Way.TO)
        self.sealer.new_session(epoch, 0)

    def will(self) -> Will | None:
        return None

    def handed_over(self) -> None: ...

    def link_up(self) -> None:
        self.up.set()

    def link_down(self, reason: str) -> None:
        self.up.clear()

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        message = self._opener.open(topics.parse(topic), payload, None)
        self.heard.append(message)
        if message.kind is Kind.REQUEST and self.tells_time:
            self.tell_time(message)
        elif message.kind is Kind.HEARTBEAT and self.answers:
            self.say(Kind.ACK, {"beat": message.fields["beat"], "settled": []})
        elif message.kind is Kind.COMPLETE and self.settles:
            self.settle(message)
        note = asyncio.get_running_loop().create_task(self._note())
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    def tell_time(self, question: Message) -> bytes:
        at_ms = now_ms() + self.ahead_ms
        told = {"what": "time", "nonce": question.fields["nonce"], "at_ms": at_ms}
        return self.say(Kind.RESPONSE, told)

    def settle(self, message: Message) -> None:
        settled = [item["id"] for item in message.fields["results"]]
        self.say(Kind.ACK, {"beat": None, "settled": settled})

    def say(
        self, kind: Kind, fields: dict[str, Any], lifetime_ms: int = MESSAGE_EXPIRY_MS
    ) -> bytes:
        envelope = self.sealer.seal(kind, NODE, fields, now_ms() + self.ahead_ms, lifetime_ms)
        self.link.publish(topics.to_node(MESH, NODE, kind), envelope)
        return envelope

    def delegate(self, *dispatches: Dispatch) -> bytes:
        return self.say(Kind.DELEGATE, {"dispatches": [packed(one) for one in dispatches]})

    async def wait(self, fits: Callable[[Message], bool], within_s: float = WITHIN_S) -> Message:
        """The first message, of those heard or to come, that fits."""

        def found() -> Message | None:
            return next((message for message in self.heard if fits(message)), None)

        async with asyncio.timeout(within_s), self._more:
            await self._more.wait_for(found)
        message = found()
        assert message is not None
        return message

    async def result(self, one: Dispatch, within_s: float = WITHIN_S) -> dict[str, Any]:
        message = await self.wait(lambda m: bool(results(m, one)), within_s)
        return results(message, one)[0]

    async def _note(self) -> None:
        async with self._more:
            self._more.notify_all()


def results(message: Message, one: Dispatch) -> list[dict[str, Any]]:
    if message.kind is not Kind.COMPLETE:
        return []
    return [item for item in message.fields["results"] if item["id"] == one.id]


def is_birth(message: Message) -> bool:
    return message.kind is Kind.STATUS and message.fields["state"] == "online"


def packed(one: Dispatch) -> bytes:
    return encode_dispatch(**asdict(one))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def dispatch(number: int, action: str = "act", effect: str = "once", **params: Any) -> Dispatch:
    return Dispatch(
        id=f"r-1-abcd/a{number}/{NODE}/1",
        module="fake",
        action=action,
        params=params,
        effect=Effect(effect),
        timeout_ms=60_000,
        lease_ms=LAN.lost_ms,
        when_cut_off="finish",
    )


class NodeProcess:
    """`python -m imlmesh_node FOLDER`, again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "node.log"
        self.process: Forked | None = None

    async def start(self) -> Forked:
        self.process = Forked(Start("imlmesh_node", (str(self.folder),), self.log))
        return self.process

    async def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), WITHIN_S)


@contextlib.asynccontextmanager
async def opened_home(
    folder: Path, prepare: Callable[[Home], None] = lambda home: None
) -> AsyncIterator[tuple[Home, Broker]]:
    """A home and its broker; `prepare` comes between."""
    home = Home(folder / "home")
    Authority.create(home, MESH, ME)
    prepare(home)
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = choose_broker(os.environ)(MESH, ME, place, lambda: control_context(home))
    await broker.start()
    yield home, broker
    await broker.stop()


def control_context(home: Home) -> ssl.SSLContext:
    """What this side connects with, whatever the dates of the broker's certificate are."""
    return without_clock(ControlKeys.load(home.ca, MESH).context())


@contextlib.asynccontextmanager
async def opened_control(home: Home, broker: Broker) -> AsyncIterator[Control]:
    """The orchestrator, connected."""
    control = Control(ControlKeys.load(home.ca, MESH), broker.control_port, home.node(NODE))
    control.link.start(control)
    await asyncio.wait_for(control.up.wait(), WITHIN_S)
    yield control
    await control.link.close()


@contextlib.asynccontextmanager
async def opened_node(
    home: Home, broker: Broker, policy: str = POLICY, *, begun: bool = True
) -> AsyncIterator[NodeProcess]:
    """The node, started unless a test does that; its log is printed at the end."""
    folder = home.node(NODE)
    make_node(
        # not opened: that would make a certificate of the broker anew whose dates a test has set
        Authority(MESH, ME, home.ca),
        NODE,
        folder,
        brokers=(f"127.0.0.1:{broker.port}",),
        timing="lan",
        policy_text=policy,
    )
    node = NodeProcess(folder)
    if begun:
        await node.start()
    yield node
    if node.process is not None and node.process.returncode is None:
        await node.end()
    print(node.log.read_text())


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.02)
