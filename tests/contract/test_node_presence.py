"""The session of a node over the link in memory: first the time, then everything else."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from imlmesh_drivers.base import Site
from imlmesh_node import presence
from imlmesh_node.config import NodeConfig, Policy
from imlmesh_node.journal import MIGRATIONS, Journal
from imlmesh_node.running import RunningNode, Setup
from imlmesh_orchestrator.ca import Authority
from imlmesh_protocol.limits import CLOCK_TOLERANCE_MS, LAN, MESSAGE_EXPIRY_MS, TIME_ASK_MS
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.dispatches import Dispatch, encode_dispatch
from imlmesh_protocol.wire.envelope import EVERYBODY, Opener, Sealer
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind, Way
from imlmesh_runtime.clock import boot_ms
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.memory import MemoryHub, MemoryLink, MemoryPump
from imlmesh_runtime.paths import Home
from imlmesh_runtime.sqlite import FailingStore, MemoryStore, Store
from imlmesh_runtime.trust import HeldTrust, NodeKeys, PublicKey, Signer, load_signer

MESH, ME, NODE = "home", "control", "pi"
WITHIN_S = 10
#: mesh time of the orchestrator: a clock that has nothing to do with this machine's
START_MS = 5_000_000


class Control:
    """Hears everything of the node and says what a test tells it to."""

    def __init__(self, hub: MemoryHub, plan: Signer, identity: PublicKey) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self._sealer = Sealer(plan.sign, plan.key_id, MESH, ME, Way.TO)
        self._sealer.new_session(1, 0)
        self._opener = Opener(MESH, ME, lambda key_id, iss: identity.key)
        self.link = MemoryLink(hub, ME, topics.orchestrator_subscriptions(MESH))
        self.link.start(self)

    def will(self) -> Will | None:
        return None

    def handed_over(self) -> None: ...

    def link_up(self) -> None: ...

    def link_down(self, reason: str) -> None: ...

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        message = self._opener.open(topics.parse(topic), payload, None)
        self.heard.put_nowait(message)

    def say(self, kind: Kind, fields: dict[str, Any], at_ms: int = START_MS) -> None:
        envelope = self._sealer.seal(kind, NODE, fields, at_ms, MESSAGE_EXPIRY_MS)
        self.link.publish(topics.to_node(MESH, NODE, kind), envelope)

    def reign(self, epoch: int) -> None:
        """All that is said from now on is of that epoch."""
        self._sealer.new_session(epoch, 0)

    def answer(self, question: Message, nonce: str | None = None, **more: int) -> None:
        nonce = nonce or question.fields["nonce"]
        self.say(Kind.RESPONSE, {"what": "time", "nonce": nonce, "at_ms": START_MS, **more})

    def delegate(self, number: int = 1, at_ms: int = START_MS) -> None:
        one = Dispatch(
            f"r-1-abcd/a{number}/pi/1", "fake", "noop", {}, Effect.ONCE, 1_000, 6_000, "finish"
        )
        fields = {"dispatches": [encode_dispatch(**asdict(one))]}
        self.say(Kind.DELEGATE, fields, at_ms)

    async def next(self, kind: Kind, within_s: float = WITHIN_S) -> Message:
        async with asyncio.timeout(within_s):
            while (message := await self.heard.get()).kind is not kind:
                pass
        return message


class Rig:
    def __init__(self, folder: Path) -> None:
        self.hub = MemoryHub(random.Random(1))
        self.pump = MemoryPump(self.hub)
        home = Home(folder / "home")
        Authority.create(home, MESH, ME)
        self._plan = load_signer(home.ca / "plan.key")
        self._held = HeldTrust(home.ca, MESH)
        self._own = Signer.of_key(SigningKey.generate())
        self.control = Control(self.hub, self._plan, PublicKey.of_raw(self._own.raw_public))
        self._folder = folder

    async def start(
        self, store: Store, load_from: Store | None = None, wall_ms: int = 1
    ) -> RunningNode:
        keys = NodeKeys(self._own, self._held, _no_tls)
        config = NodeConfig(MESH, NODE, ME, (("127.0.0.1", 1),), LAN)
        policy = Policy("readonly", ("fake",), Site(str(self._folder)))
        loaded = await Journal(load_from or store).load(wall_ms)
        link = MemoryLink(self.hub, NODE, topics.node_subscriptions(MESH, NODE))
        setup = Setup(self._folder, config, policy, keys)
        node = RunningNode(setup, Journal(store), loaded, link)
        node.start()
        return node


def _no_tls() -> Any:
    raise AssertionError("a link in memory needs no TLS")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.pump.close()


@pytest.fixture
async def node(rig: Rig) -> AsyncIterator[RunningNode]:
    node = await rig.start(MemoryStore(MIGRATIONS))
    yield node
    await node.stop()


async def test_before_the_answer_nothing_is_said_and_nothing_accepted(
    rig: Rig, node: RunningNode
) -> None:
    question = await rig.control.next(Kind.REQUEST)
    rig.control.delegate(1)
    rig.control.say(Kind.COMMAND, {"do": "rebirth"})
    rig.control.answer(question, "not the nonce")
    again = await rig.control.next(Kind.REQUEST, TIME_ASK_MS / 1_000 + WITHIN_S)
    assert again.fields["nonce"] != question.fields["nonce"]
    assert rig.control.heard.empty()
    assert node.refusals.counts == {"message.session": 3}
    rig.control.answer(again)
    birth = await rig.control.next(Kind.STATUS)
    assert birth.fields["state"] == "online"
    assert abs(birth.iat - START_MS) < WITHIN_S * 1_000
    rig.control.delegate(2)
    done = await rig.control.next(Kind.COMPLETE)
    assert [item["outcome"] for item in done.fields["results"]] == ["completed"]


async def opened(rig: Rig) -> None:
    rig.control.answer(await rig.control.next(Kind.REQUEST))
    await rig.control.next(Kind.STATUS)


async def test_an_answer_counts_once(rig: Rig, node: RunningNode) -> None:
    question = await rig.control.next(Kind.REQUEST)
    rig.control.answer(question)
    await rig.control.next(Kind.HEARTBEAT)
    rig.control.answer(question)
    rig.control.delegate(1)
    await rig.control.next(Kind.COMPLETE)
    assert node.refusals.counts == {"message.session": 1}


async def test_an_expired_message_is_refused_and_makes_the_node_ask_the_time(
    rig: Rig, node: RunningNode
) -> None:
    await opened(rig)
    rig.control.delegate(1, START_MS - 2 * MESSAGE_EXPIRY_MS)
    question = await rig.control.next(Kind.REQUEST)
    assert node.refusals.counts == {"message.expired": 1}
    rig.control.answer(question)
    rig.control.delegate(2)
    await rig.control.next(Kind.COMPLETE)


async def test_an_older_orchestrator_is_refused_and_learns_whom_the_node_obeys(
    rig: Rig, node: RunningNode
) -> None:
    question = await rig.control.next(Kind.REQUEST)
    assert "obeys" not in question.fields
    rig.control.reign(70)
    rig.control.answer(question)
    await rig.control.next(Kind.HEARTBEAT)
    rig.control.reign(69)
    rig.control.say(Kind.COMMAND, {"do": "rebirth"})
    question = await rig.control.next(Kind.REQUEST, TIME_ASK_MS / 1_000)
    assert question.fields["obeys"] == 70
    # in the next session it knows without hearing it again
    rig.hub.drop(NODE)
    question = await rig.control.next(Kind.REQUEST)
    assert question.fields["obeys"] == 70
    rig.control.answer(question)
    again = await rig.control.next(Kind.REQUEST, TIME_ASK_MS / 1_000 + WITHIN_S)
    assert again.fields["obeys"] == 70
    rig.control.reign(70)
    rig.control.answer(again)
    await rig.control.next(Kind.HEARTBEAT)
    assert node.refusals.counts == {"message.epoch": 2}
    rig.hub.drop(NODE)
    assert "obeys" not in (await rig.control.next(Kind.REQUEST)).fields


async def test_a_broker_that_holds_the_question_back_puts_the_node_not_ahead_of_the_mesh(
    rig: Rig, node: RunningNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would date its messages later than now, and that would speak against it."""
    held_back_ms = 6 * CLOCK_TOLERANCE_MS
    question = await rig.control.next(Kind.REQUEST)
    began_ms = boot_ms()
    monkeypatch.setattr(presence, "boot_ms", lambda: boot_ms() + held_back_ms)
    rig.control.answer(question)
    birth = await rig.control.next(Kind.STATUS)
    assert birth.iat <= START_MS + TIME_ASK_MS // 2 + boot_ms() - began_ms


def test_a_slow_answer_only_bounds_the_time() -> None:
    clocks = presence.Clocks()
    slow_ms, slack_ms = 20 * TIME_ASK_MS, 4 * TIME_ASK_MS
    began_ms = boot_ms()

    def off_ms(at_ms: int) -> int:
        """By how much the clock is ahead of a mesh whose time was `at_ms` when we began."""
        return clocks.mesh.now_ms() - at_ms - (boot_ms() - began_ms)

    for at_ms, expected_ms in (
        (START_MS, 0),  # nothing was known
        (START_MS - slow_ms // 2, slow_ms // 2),  # it may be so: nothing is changed
        (START_MS + slow_ms, 0),  # it cannot be less
        (START_MS - slow_ms, slow_ms),  # nor more
    ):
        clocks.heard(at_ms, slow_ms)
        assert abs(off_ms(at_ms) - expected_ms) < slack_ms
    clocks.heard(START_MS, 0)
    assert abs(off_ms(START_MS)) < slack_ms


@pytest.mark.parametrize("years", [-40, 40])
async def test_a_step_of_the_wall_clock_revives_nothing_and_locks_nothing_out(
    rig: Rig, node: RunningNode, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    await opened(rig)
    step_ns = years * 365 * 86_400 * 1_000_000_000
    wall_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + step_ns)
    monkeypatch.setattr(time, "time", lambda: (wall_ns() + step_ns) / 1e9)
    rig.control.delegate(1, START_MS - 2 * MESSAGE_EXPIRY_MS)
    rig.control.delegate(2, START_MS + 2 * MESSAGE_EXPIRY_MS)
    rig.control.delegate(3, wall_ns() // 1_000_000)
    rig.control.delegate(4, time.time_ns() // 1_000_000)
    rig.control.delegate(5)
    done = await rig.control.next(Kind.COMPLETE)
    assert [item["id"] for item in done.fields["results"]] == ["r-1-abcd/a5/pi/1"]
    assert node.refusals.counts == {"message.expired": 4}


async def test_each_connection_is_a_new_session_that_asks_first(
    rig: Rig, node: RunningNode
) -> None:
    await opened(rig)
    rig.hub.drop(NODE)
    gone = await rig.control.next(Kind.STATUS)
    assert (gone.fields["state"], gone.session) == ("gone", 1)
    question = await rig.control.next(Kind.REQUEST)
    assert question.session > gone.session
    assert rig.control.heard.empty()
    rig.control.answer(question)
    assert (await rig.control.next(Kind.STATUS)).fields["state"] == "online"


async def test_who_forgot_its_boots_takes_the_next_one_before_anything_else(
    rig: Rig, node: RunningNode
) -> None:
    question = await rig.control.next(Kind.REQUEST)
    rig.control.answer(question, boot=70)
    again = await rig.control.next(Kind.REQUEST)
    assert (again.term, again.session) == (71, question.session + 1)
    assert rig.control.heard.empty()
    rig.control.delegate(1)
    rig.control.answer(again)
    birth = await rig.control.next(Kind.STATUS)
    assert node.refusals.counts == {"message.session": 1}
    assert (birth.term, birth.fields["journal_since"]) == (71, 71)


async def test_who_has_no_journal_of_what_was_heard_before_is_silent_until_a_beat_is_answered(
    rig: Rig, node: RunningNode
) -> None:
    """What it is sent until then may be a repetition of what it did."""
    question = await rig.control.next(Kind.REQUEST)
    rig.control.answer(question, boot=question.term - 1)
    birth = await rig.control.next(Kind.STATUS)
    assert birth.fields["journal_since"] == birth.term == question.term
    beat = await rig.control.next(Kind.HEARTBEAT)
    rig.control.delegate(1)
    rig.control.say(Kind.ACK, {"beat": beat.fields["beat"], "settled": []})
    rig.control.delegate(2)
    done = await rig.control.next(Kind.COMPLETE)
    assert [item["id"] for item in done.fields["results"]] == ["r-1-abcd/a2/pi/1"]
    assert node.refusals.counts == {"journal.lost": 1}


async def test_a_journal_that_goes_back_further_is_believed_at_once(rig: Rig) -> None:
    store = MemoryStore((*MIGRATIONS, "UPDATE meta SET value = 5 WHERE name IN ('boot', 'since')"))
    node = await rig.start(store)
    question = await rig.control.next(Kind.REQUEST)
    assert question.term == 6
    rig.control.answer(question, boot=5)
    await rig.control.next(Kind.STATUS)
    rig.control.delegate(1)
    await rig.control.next(Kind.COMPLETE)
    assert node.refusals.counts == {}
    await node.stop()


async def test_an_older_copy_of_the_journal_has_forgotten_what_was_done_since(rig: Rig) -> None:
    store = MemoryStore((*MIGRATIONS, "UPDATE meta SET value = 5 WHERE name IN ('boot', 'since')"))
    node = await rig.start(store, wall_ms=70)
    question = await rig.control.next(Kind.REQUEST)
    assert question.term == 70
    rig.control.answer(question, boot=6)
    again = await rig.control.next(Kind.REQUEST)
    assert (again.term, again.session) == (71, question.session + 1)
    rig.control.answer(again, boot=6)
    birth = await rig.control.next(Kind.STATUS)
    assert (birth.term, birth.fields["journal_since"]) == (71, 71)
    rig.control.delegate(1)
    beat = await rig.control.next(Kind.HEARTBEAT)
    rig.control.say(Kind.ACK, {"beat": beat.fields["beat"], "settled": []})
    rig.control.delegate(2)
    done = await rig.control.next(Kind.COMPLETE)
    assert [item["id"] for item in done.fields["results"]] == ["r-1-abcd/a2/pi/1"]
    assert node.refusals.counts == {"journal.lost": 1}
    kept = dict(store.database.execute("SELECT name, value FROM meta").fetchall())
    assert (kept["boot"], kept["since"]) == (71, 71)
    await node.stop()


async def test_an_answer_to_another_question_pushes_no_boot(rig: Rig, node: RunningNode) -> None:
    question = await rig.control.next(Kind.REQUEST)
    rig.control.answer(question, "not the nonce", boot=70)
    rig.control.answer(question)
    assert (await rig.control.next(Kind.STATUS)).term == question.term


async def test_who_was_heard_in_this_boot_counts_no_further_for_a_second_machine(
    rig: Rig, node: RunningNode
) -> None:
    await opened(rig)
    rig.hub.drop(NODE)
    await rig.control.next(Kind.STATUS)
    question = await rig.control.next(Kind.REQUEST)
    rig.control.answer(question, boot=70)
    again = await rig.control.next(Kind.REQUEST, TIME_ASK_MS / 1_000 + WITHIN_S)
    assert (again.term, again.session) == (question.term, question.session)
    assert rig.control.heard.empty()
    assert node.refusals.counts == {"message.two_senders": 1}


async def test_a_disk_that_fails_stops_the_agent_before_anything_runs(rig: Rig) -> None:
    knows_the_epoch = (*MIGRATIONS, "UPDATE meta SET value = 1 WHERE name = 'epoch'")
    node = await rig.start(FailingStore(), MemoryStore(knows_the_epoch))
    await opened(rig)
    rig.control.delegate(1)
    async with asyncio.timeout(WITHIN_S):
        await asyncio.wait({node.engine.failed})
    assert getattr(node.engine.failed.exception(), "code", "") == "store.failed"
    await node.stop()
    kinds = [rig.control.heard.get_nowait().kind for _ in range(rig.control.heard.qsize())]
    assert Kind.COMPLETE not in kinds
    assert Kind.ACCEPT not in kinds


async def test_a_goodbye_is_the_last_word(rig: Rig) -> None:
    node = await rig.start(MemoryStore(MIGRATIONS))
    await opened(rig)
    await node.stop()
    assert (await rig.control.next(Kind.STATUS)).fields == {"state": "offline"}
    assert rig.control.heard.empty()


@pytest.mark.parametrize(
    ("kind", "topic"),
    [
        (Kind.REQUEST, topics.to_node),
        (Kind.STATUS, lambda mesh, node, kind: topics.orchestrator_status(mesh, ME)),
    ],
)
async def test_what_a_node_does_not_serve_has_no_effect(
    rig: Rig, node: RunningNode, kind: Kind, topic: Callable[[str, str, Kind], str]
) -> None:
    await opened(rig)
    fields = {"what": "time", "nonce": "n"} if kind is Kind.REQUEST else {"state": "online"}
    aud = NODE if kind is Kind.REQUEST else EVERYBODY
    sealed = rig.control._sealer.seal(kind, aud, fields, START_MS, MESSAGE_EXPIRY_MS)
    rig.control.link.publish(topic(MESH, NODE, kind), sealed)
    rig.control.delegate(1)
    await rig.control.next(Kind.COMPLETE)
    assert node.refusals.counts == ({"message.kind": 1} if kind is Kind.REQUEST else {})
