"""From the decision to remove a node to the last message that its broker delivers to it or from it.

The one rule: the removed side does not go quietly; its keys call again as fast as the link lets them,
write and listen all the time, and what counts is what was delivered. Mosquitto, one node at a time.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from bench.field import MESH, POLICY, Field, field
from bench.figures import line
from imlmesh_node.joining import NewKeys, Place, write_folder
from imlmesh_orchestrator.answering import Newcomer
from imlmesh_orchestrator.main import RunningOrchestrator, load_setup
from imlmesh_protocol.errors import LinkError
from imlmesh_protocol.states import Admission
from imlmesh_protocol.wire import topics
from imlmesh_protocol.wire.topics import Kind
from imlmesh_runtime.link.base import Will
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.trust import ControlKeys, NodeKeys

_ROUNDS = 100
_QUIET_S = 0.4  # watched after the answer; it calls again every few milliseconds
_PAUSE_S = 0.005
_JITTER = 0.02  # of the pauses between its calls: 5 ms, then 10, 20, …; both sides share this core
_WITHIN_S = 20


def run() -> list[dict[str, Any]]:
    """One figure line."""
    figures = asyncio.run(_measure())
    line("revoke", **figures)
    return [{"bench": "revoke", **figures}]


class _Side:
    """One end of a conversation: writes to a topic, and knows when it last heard something."""

    def __init__(self, link: MqttLink, topic: str, heard_at: str) -> None:
        self._link = link
        self._topic = topic
        self._heard_at = heard_at
        self.heard_s = 0.0
        link.start(self)

    def write(self) -> None:
        with contextlib.suppress(LinkError):
            self._link.publish(self._topic, b"hello")
            self._link.flush()

    async def close(self) -> None:
        await self._link.close()

    def will(self) -> Will | None:
        return None

    def link_up(self) -> None: ...

    def link_down(self, reason: str) -> None: ...

    def handed_over(self) -> None: ...

    def message(self, topic: str, payload: bytes, retained: bool) -> None:
        if payload and topic.endswith(self._heard_at):
            self.heard_s = time.monotonic()


async def _measure() -> dict[str, Any]:
    async with field() as ground:
        running = RunningOrchestrator(
            load_setup(ground.home, f"127.0.0.1:{ground.broker.control_port}")
        )
        await running.start(serve=False)
        try:
            rounds = [await _round(ground, running, f"n{index}") for index in range(_ROUNDS)]
        finally:
            await running.close()
    last, answered, held = zip(*rounds, strict=True)
    last, answered = sorted(last), sorted(answered)
    return {
        "rounds": _ROUNDS,
        "not_enforced": held.count(False),
        "p50_s": round(last[_ROUNDS // 2], 3),
        "p99_s": round(last[_ROUNDS * 99 // 100], 3),
        "answer_p50_s": round(answered[_ROUNDS // 2], 3),
        "answer_p99_s": round(answered[_ROUNDS * 99 // 100], 3),
    }


async def _round(
    ground: Field, running: RunningOrchestrator, node: str
) -> tuple[float, float, bool]:
    """Seconds from the decision to the last delivery, and to the answer; whether that says it holds."""
    shell, access = running.shell, running.access
    assert shell is not None
    assert access is not None
    await _let_in(ground, running, node)
    with _pair(ground, node) as (victim, control):
        speaking = asyncio.create_task(_speak(victim, control))
        async with asyncio.timeout(_WITHIN_S):
            while not (victim.heard_s and control.heard_s):  # noqa: ASYNC110 - two sides, one moment
                await asyncio.sleep(_PAUSE_S)
            began_s = time.monotonic()
            await shell.set_admission(node, Admission.REVOKED, "bench", "bench", 0)
            found = await access.enforced(node)
        answered_s = time.monotonic()
        await asyncio.sleep(_QUIET_S)
        speaking.cancel()
        await victim.close()
        await control.close()
    last_s = max(victim.heard_s, control.heard_s)
    return last_s - began_s, answered_s - began_s, found.holds


async def _let_in(ground: Field, running: RunningOrchestrator, node: str) -> None:
    folder = ground.home.node(node)
    keys = NewKeys.kept(folder)
    assert running.shell is not None
    enrolling = running.enrolling(running.shell)
    newcomer = Newcomer(node, node, keys.identity, "local_worker")
    papers = await enrolling.let_in(newcomer, keys.request, "bench")
    place = Place(MESH, node, ground.authority.orchestrator, (), timing="lan")
    write_folder(folder, place, keys, papers, POLICY)


@contextlib.contextmanager
def _pair(ground: Field, node: str) -> Iterator[tuple[_Side, _Side]]:
    up = topics.from_node(MESH, node, Kind.EVENT, "log")
    down = topics.to_node(MESH, node, Kind.COMMAND)
    own = NodeKeys.load(ground.home.node(node), MESH).context()
    places = [("127.0.0.1", ground.broker.port)], [("127.0.0.1", ground.broker.control_port)]
    mine = topics.node_subscriptions(MESH, node)
    context = ControlKeys.load(ground.home.ca, MESH).context()
    victim = MqttLink(places[0], node, own, mine, lambda: _JITTER)
    control = MqttLink(places[1], f"ear-{node}", context, (up,), lambda: 0.0)
    yield _Side(victim, up, down), _Side(control, down, up)


async def _speak(*sides: _Side) -> None:
    while True:
        for side in sides:
            side.write()
        await asyncio.sleep(_PAUSE_S)
