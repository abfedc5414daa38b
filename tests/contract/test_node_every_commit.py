"""A node that dies at any commit of its journal, on either side of it, with real drivers and real SQL.

Intent before effect, result before send, unsettled results sent again: whatever was heard or done
before the death, the journal knew; and the next agent tells the end of all that was accepted, once.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from imlmesh_drivers.base import Site
from imlmesh_node.config import NodeConfig, Policy
from imlmesh_node.journal import MIGRATIONS, Journal
from imlmesh_node.running import RunningNode, Setup
from imlmesh_orchestrator.assembly import Assembly
from imlmesh_protocol.limits import LAN
from imlmesh_protocol.states import Effect
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.dispatches import Dispatch, encode_dispatch
from imlmesh_protocol.wire.messages import Message
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.memory import MemoryLink
from imlmesh_runtime.sqlite import Done, MemoryStore, Work
from imlmesh_runtime.trust import NodeKeys
from test_node_presence import ME, MESH, NODE, Rig, _no_tls

WITHIN_S = 20
BEFORE, AFTER = "before", "after"
LARGE = 450_000


class Mortal(MemoryStore):
    """Its process dies at commit `cut` (from 1), before it or after it; the rows stay."""

    def __init__(self, cut: int | None, where: str) -> None:
        super().__init__(MIGRATIONS)
        self.commits = 0
        self.cut, self.where = cut, where
        self.dead = asyncio.Event()

    def submit(self, work: Work, done: Done) -> None:
        self.commits += 1
        if self.dead.is_set():
            return
        if self.commits == self.cut:
            self.dead.set()
            if self.where == AFTER:
                super().submit(work, lambda result, error: None)
            return
        super().submit(work, done)

    def rows(self, what: str) -> set[str]:
        """Ids of dispatches of which `what` holds."""
        query = f"SELECT id FROM dispatches WHERE {what}"  # noqa: S608 - of this file
        return {id for (id,) in self.database.execute(query)}

    async def close(self) -> None:
        """The next agent opens it again."""


def dispatch(number: int, **params: Any) -> Dispatch:
    more = {"marker": "ran", **params}
    id = f"r-1-abcd/a{number}/{NODE}/1"
    return Dispatch(id, "fake", "act", more, Effect.ONCE, 60_000, 6_000, "finish")


WORK = (dispatch(1), dispatch(2, result_bytes=LARGE), dispatch(3, delay_ms=20))
BINS = [encode_dispatch(**asdict(one)) for one in WORK]


class Play:
    """An orchestrator that sends the work until it is accepted, and settles what it hears."""

    def __init__(self, rig: Rig, folder: Path, store: Mortal) -> None:
        self.rig, self.folder, self.store = rig, folder, store
        self.accepted: set[str] = set()
        self.ends: dict[str, str] = {}
        self._assembly = Assembly()

    async def start(self) -> RunningNode:
        keys = NodeKeys(self.rig._own, self.rig._held, _no_tls)
        config = NodeConfig(MESH, NODE, ME, (("127.0.0.1", 1),), LAN)
        policy = Policy("local_worker", ("fake",), Site(str(self.folder)))
        journal = Journal(self.store)
        loaded = await journal.load(1)
        link = MemoryLink(self.rig.hub, NODE, topics.node_subscriptions(MESH, NODE))
        node = RunningNode(Setup(self.folder, config, policy, keys), journal, loaded, link)
        node.start()
        return node

    async def listen(self) -> None:
        """Until all ends are known."""
        control = self.rig.control
        while len(self.ends) < len(WORK):
            message = await control.heard.get()
            if message.kind is Kind.REQUEST:
                control.answer(message)
            elif message.kind is Kind.STATUS and message.fields["state"] == "online":
                fresh = [b for b, one in zip(BINS, WORK, strict=True) if one.id not in self.known]
                if fresh:
                    control.say(Kind.DELEGATE, {"dispatches": fresh})
            elif message.kind is Kind.HEARTBEAT:
                control.say(Kind.ACK, {"beat": message.fields["beat"], "settled": []})
            elif message.kind is Kind.ACCEPT:
                self.accepted |= {id for id, _ in message.fields["dispatches"]}
                assert self.accepted <= self.store.rows("true") | self.known
            elif message.kind is Kind.COMPLETE:
                self._complete(message)

    @property
    def known(self) -> set[str]:
        return self.accepted | set(self.ends)

    def _complete(self, message: Message) -> None:
        for item in message.fields["results"]:
            # result before send
            assert item["id"] in self.store.rows("result IS NOT NULL") | set(self.ends)
            if "chunk" in item and (index := self._assembly.take(NODE, item, 0)) is not None:
                wants = {"beat": None, "settled": [], "wants": [[item["id"], index]]}
                self.rig.control.say(Kind.ACK, wants)
                continue
            if "chunk" in item:
                assert len(self._assembly.value(NODE, item)["filler"]) == LARGE
            assert item["hash"] in {hashlib.sha256(each).digest() for each in BINS}
            self.ends.setdefault(item["id"], item["outcome"])
            self.rig.control.say(Kind.ACK, {"beat": None, "settled": [item["id"]]})

    def ran(self) -> list[str]:
        """The beginnings of effects, by dispatch."""
        marker = self.folder / "ran"
        return marker.read_text().splitlines() if marker.exists() else []


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.pump.close()


async def play(rig: Rig, folder: Path, cut: int | None, where: str) -> Play:
    """From the first start to the last end, with one death on the way."""
    store = Mortal(cut, where)
    played = Play(rig, folder, store)
    if cut == 1:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(played.start(), 0.05)
    else:
        node = await played.start()
        listening = asyncio.ensure_future(played.listen())
        dying = asyncio.ensure_future(store.dead.wait())
        await asyncio.wait({listening, dying}, timeout=WITHIN_S, return_when="FIRST_COMPLETED")
        if listening.done():
            listening.result()
            dying.cancel()
            await node.stop()
            return played
        node.link.kill()  # type: ignore[attr-defined]
        node.engine.stop()
        await node._executor.close()
        node.presence.close()
        await node.edge.close()
        listening.cancel()
    # intent before effect, wherever it died
    assert set(played.ran()) <= store.rows("started = 1") | set(played.ends)
    store.dead.clear()
    store.cut = None
    while not rig.control.heard.empty():
        rig.control.heard.get_nowait()
    node = await played.start()
    await asyncio.wait_for(played.listen(), WITHIN_S)
    await node.stop()
    return played


async def test_undisturbed_all_of_it_completes(rig: Rig, tmp_path: Path) -> None:
    played = await play(rig, tmp_path, None, BEFORE)
    assert played.ends == {one.id: "completed" for one in WORK}
    assert sorted(played.ran()) == [one.id for one in WORK]
    assert played.store.commits >= 5


@pytest.mark.parametrize("where", [BEFORE, AFTER])
@pytest.mark.parametrize("cut", range(1, 8))
async def test_a_death_at_any_commit_doubles_nothing_and_tells_the_end_of_everything(
    rig: Rig, tmp_path: Path, cut: int, where: str
) -> None:
    played = await play(rig, tmp_path, cut, where)
    assert set(played.ends) == {one.id for one in WORK}
    assert set(played.ends.values()) <= {"completed", "unknown", "failed"}
    ran = played.ran()
    assert len(ran) == len(set(ran)), "an effect began twice"
    done = {id for id, outcome in played.ends.items() if outcome == "completed"}
    assert done <= set(ran)
    # what ended without having begun says so
    assert {id for id, outcome in played.ends.items() if outcome == "failed"}.isdisjoint(ran)
