"""A node process on a real broker, led by a scripted orchestrator."""

import asyncio
import contextlib
import hashlib
import itertools
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import VerifyKey

from imlmesh_broker import Broker, BrokerPlace, choose_broker
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.limits import LAN, MESSAGE_EXPIRY_MS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.envelope import Opener, Sealer
from imlmesh_protocol.wire.messages import Dispatch, Message, encode_dispatch
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.paths import Home
from imlmesh_runtime.trust import ControlKeys, Signer, load_signer, new_signing_key
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
        self.heard: list[Message] = []
        self._more = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()
        self._folder = folder
        self._opener = Opener(MESH, ME, self._find_key)
        self.signer = keys.signer
        self.begin_epoch(1, keys.signer)
        filters = topics.orchestrator_subscriptions(MESH)
        self.link = MqttLink([("127.0.0.1", port)], ME, keys.context(), filters)
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

    def message(self, topic: str, payload: bytes) -> None:
        message = self._opener.open(topics.parse(topic), payload, None)
        self.heard.append(message)
        if message.kind is Kind.REQUEST:
            told = {"what": "time", "nonce": message.fields["nonce"], "at_ms": now_ms()}
            self.say(Kind.RESPONSE, told)
        elif message.kind is Kind.HEARTBEAT and self.answers:
            self.say(Kind.ACK, {"beat": message.fields["beat"], "settled": []})
        elif message.kind is Kind.COMPLETE and self.settles:
            self.settle(message)
        note = asyncio.get_running_loop().create_task(self._note())
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    def settle(self, message: Message) -> None:
        settled = [item["id"] for item in message.fields["results"]]
        self.say(Kind.ACK, {"beat": None, "settled": settled})

    def say(
        self, kind: Kind, fields: dict[str, Any], lifetime_ms: int = MESSAGE_EXPIRY_MS
    ) -> bytes:
        envelope = self.sealer.seal(kind, NODE, fields, now_ms(), lifetime_ms)
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
        self.process: asyncio.subprocess.Process | None = None

    async def start(self, **more: Any) -> asyncio.subprocess.Process:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "imlmesh_node", str(self.folder), stderr=log, **more
            )
        return self.process

    async def end(self, number: int = signal.SIGKILL) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), WITHIN_S)


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[tuple[Home, Broker]]:
    home = Home(tmp_path / "home")
    Authority.create(home, MESH, ME)
    place = BrokerPlace(home.broker, home.ca, home.logs / "broker.log")
    broker = choose_broker(os.environ)(MESH, ME, place, ControlKeys.load(home.ca, MESH).context)
    await broker.start()
    yield home, broker
    await broker.stop()


@pytest.fixture
async def control(home: tuple[Home, Broker]) -> AsyncIterator[Control]:
    keys = ControlKeys.load(home[0].ca, MESH)
    control = Control(keys, home[1].control_port, home[0].node(NODE))
    control.link.start(control)
    await asyncio.wait_for(control.up.wait(), WITHIN_S)
    yield control
    await control.link.close()


@pytest.fixture
async def node(home: tuple[Home, Broker]) -> AsyncIterator[NodeProcess]:
    folder = home[0].node(NODE)
    make_node(
        Authority.open(home[0]),
        NODE,
        folder,
        brokers=(f"127.0.0.1:{home[1].port}",),
        timing="lan",
        policy_text=POLICY,
    )
    node = NodeProcess(folder)
    await node.start()
    yield node
    if node.process is not None and node.process.returncode is None:
        await node.end()
    print(node.log.read_text())


async def test_a_birth_says_what_the_node_can_do(control: Control, node: NodeProcess) -> None:
    birth = await control.wait(is_birth)
    assert control.heard[0].kind is Kind.REQUEST  # nothing is said before the time is known
    assert set(birth.fields["manifest"]["modules"]) == {"fake", "filesystem"}
    assert birth.fields["profile"] == "local_worker"
    assert birth.fields["facts"]["cpu"] >= 1
    assert (birth.fields["heartbeat_ms"], birth.fields["lost_ms"]) == (2_000, 6_000)
    beat = await control.wait(lambda m: m.kind is Kind.HEARTBEAT)
    assert {"cpu_percent", "memory_percent", "disk_percent", "load"} <= set(beat.fields["health"])


async def test_actions_of_every_kind_are_done_and_answered(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    noop, echo = dispatch(1, "noop", "pure"), dispatch(2, "echo", "once", value=[1, {"a": None}])
    act = dispatch(3, value="x", log_lines=2, delay_ms=50)
    refused = dispatch(4, "no_such")
    control.delegate(noop, echo, act, refused)
    assert (await control.result(noop))["result"] == {}
    assert (await control.result(echo))["result"] == {"value": [1, {"a": None}]}
    done = await control.result(act)
    assert done["result"] == {"value": "x"}
    assert done["hash"] == hashlib.sha256(packed(act)).digest()
    accept = await control.wait(lambda m: m.kind is Kind.ACCEPT)
    assert accept.fields["dispatches"] == [[act.id, done["hash"]]]
    assert accept.fields["started"] == [act.id]
    reject = await control.wait(lambda m: m.kind is Kind.REJECT)
    assert [item["code"] for item in reject.fields["refusals"]] == ["action.unknown"]
    line = await control.wait(lambda m: m.kind is Kind.EVENT and m.channel == "log")
    assert line.fields == {"dispatch": act.id, "line": "line 0", "stream": "log"}
    await control.wait(lambda m: m.kind is Kind.EVENT and m.channel == "progress")


async def test_a_result_comes_again_until_it_is_settled(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    control.settles = False
    one = dispatch(1, "noop")
    control.delegate(one)
    await control.result(one)
    control.heard.clear()
    control.settles = True
    await control.result(one)
    control.heard.clear()
    other = dispatch(2, "noop")
    control.delegate(other)
    await control.result(other)
    assert not any(results(message, one) for message in control.heard)


async def test_killed_in_the_middle_of_a_once_action_it_says_unknown(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    one = dispatch(1, marker="ran", hang=True)
    envelope = control.delegate(one)
    marker = node.folder / "files" / "ran"
    await wait_for(marker.exists)
    await node.end(signal.SIGKILL)
    gone = await control.wait(lambda m: m.kind is Kind.STATUS and m.fields["state"] == "gone")
    control.heard.clear()
    await node.start()
    birth = await control.wait(is_birth)
    assert birth.term > gone.term
    result = await control.result(one)
    assert (result["outcome"], result["error"]["code"]) == ("unknown", "node.interrupted")
    control.heard.clear()
    control.link.publish(topics.to_node(MESH, NODE, Kind.DELEGATE), envelope)
    control.delegate(other := dispatch(2, "noop"))
    await control.result(other)
    assert marker.read_text() == f"{one.id}\n"
    assert not any(results(message, one) for message in control.heard)


async def test_a_lost_connection_loses_no_result(
    control: Control, node: NodeProcess, home: tuple[Home, Broker]
) -> None:
    await control.wait(is_birth)
    one = dispatch(1, value="kept", delay_ms=1_500)
    control.delegate(one)
    await control.wait(lambda m: m.kind is Kind.ACCEPT)
    pid = home[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert (await control.result(one))["result"] == {"value": "kept"}


async def test_a_wrong_signature_is_refused_and_counted(
    control: Control, node: NodeProcess, tmp_path: Path
) -> None:
    await control.wait(is_birth)
    (tmp_path / "other.key").write_bytes(new_signing_key()[0])
    (tmp_path / "other.key").chmod(0o600)
    stranger, own = load_signer(tmp_path / "other.key"), control.signer
    sealer = control.sealer
    control.begin_epoch(1, stranger)
    control.delegate(dispatch(1, marker="never"))
    control.begin_epoch(1, Signer(own.key_id, own.raw_public, stranger.sign))
    control.delegate(dispatch(2, marker="never"))
    control.sealer = sealer
    forged = bytearray(control.delegate(dispatch(3, "noop")))
    forged[-1] ^= 1
    for payload in (b"", b"nonsense", bytes(forged), b"\x95" * 100_000):
        control.link.publish(topics.to_node(MESH, NODE, Kind.DELEGATE), payload)
    control.delegate(good := dispatch(4, "noop"))
    await control.result(good)
    assert not any(results(m, dispatch(n)) for m in control.heard for n in (1, 2))
    assert not (node.folder / "files" / "never").exists()
    log = node.log.read_text()
    for code in ("signature.unknown_key", "signature.invalid", "message.invalid"):
        assert f'"code": "{code}"' in log


@pytest.mark.alone
async def test_heartbeats_are_on_time_whatever_drivers_do(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    came_ms: list[int] = []
    control.heard.clear()
    control.delegate(
        # first: what hangs blocks the child, and might do so before the flood begins
        dispatch(1, log_lines=200_000),
        dispatch(2, hang=True),
        dispatch(3, crash=True),
        dispatch(4, hang=True),
    )
    await control.wait(lambda m: m.kind is Kind.EVENT and m.channel == "log")
    for _ in range(4):
        control.heard.clear()
        await control.wait(lambda m: m.kind is Kind.HEARTBEAT, LAN.heartbeat_ms / 1_000 + 0.5)
        came_ms.append(now_ms())
    gaps = [later - earlier for earlier, later in itertools.pairwise(came_ms)]
    assert max(gaps) <= LAN.heartbeat_ms + 500


async def test_cancel_ends_what_hangs(control: Control, node: NodeProcess) -> None:
    await control.wait(is_birth)
    one = dispatch(1, hang=True, marker="ran")
    control.delegate(one)
    await wait_for((node.folder / "files" / "ran").exists)
    control.say(Kind.COMMAND, {"do": "cancel", "dispatches": [one.id]})
    result = await control.result(one)
    assert (result["outcome"], result["error"]["code"]) == ("cancelled", "action.cancelled")


async def test_a_newer_orchestrator_hears_everything_again(
    control: Control, node: NodeProcess
) -> None:
    await control.wait(is_birth)
    control.settles = False
    control.delegate(one := dispatch(1, "noop"))
    await control.result(one)
    control.heard.clear()
    old = control.sealer
    control.begin_epoch(2, control.signer)
    control.say(Kind.REQUEST, {"what": "inventory", "nonce": "n-1"})
    await control.wait(is_birth, LAN.heartbeat_ms / 1_000)
    await control.result(one)
    told = await control.wait(lambda m: m.kind is Kind.RESPONSE)
    assert told.fields["nonce"] == "n-1"
    assert told.fields["unsettled"] == [one.id]
    new, control.sealer = control.sealer, old
    control.delegate(dispatch(2, marker="never"))
    control.sealer = new
    control.delegate(other := dispatch(3, "noop"))
    await control.result(other)
    assert not (node.folder / "files" / "never").exists()
    told = await control.wait(lambda m: m.channel == "telemetry/refusals")
    assert told.fields["values"] == {"message.replayed": 1}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_well_when_asked(
    control: Control, node: NodeProcess, number: signal.Signals
) -> None:
    await control.wait(is_birth)
    one = dispatch(1, hang=True, marker="ran")
    control.delegate(one)
    await wait_for((node.folder / "files" / "ran").exists)
    assert await node.end(number) == 0
    assert (await control.result(one))["outcome"] == "unknown"
    assert control.heard[-1].fields == {"state": "offline"}


async def test_it_ends_with_the_parent_that_started_it(control: Control, node: NodeProcess) -> None:
    await node.end()
    reading, writing = os.pipe()
    environ = {**os.environ, "IMLMESH_PARENT_FD": str(reading)}
    process = await node.start(env=environ, pass_fds=(reading,))
    os.close(reading)
    control.heard.clear()
    await control.wait(is_birth)
    os.close(writing)
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 0


async def test_a_folder_has_one_agent(control: Control, node: NodeProcess) -> None:
    await control.wait(is_birth)
    second = NodeProcess(node.folder)
    second.log = node.folder / "second.log"
    process = await second.start()
    assert await asyncio.wait_for(process.wait(), WITHIN_S) == 3
    assert '"code": "node.running"' in second.log.read_text()


async def wait_for(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.Event().wait(), 0.02)
