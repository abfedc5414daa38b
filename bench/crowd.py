"""A whole fleet in one process: `python -m bench.crowd FOLDER ...` runs a node for each of these folders.

Each is an agent as `imlmesh node run` starts it, with its own connection and certificate; only its journal
is in memory. A line on stdin asks how soon each of them is back after what happens next: answered are
the seconds, once all of them had a heartbeat answered in a new session or by a new orchestrator, and how
late this process itself was at most.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

from imlmesh_node.core.events import AckArrived, Event
from imlmesh_node.journal import MIGRATIONS, Journal
from imlmesh_node.main import load_setup
from imlmesh_node.running import RunningNode, Setup
from imlmesh_protocol.wire.topics import node_subscriptions
from imlmesh_runtime.link.mqtt import MqttLink
from imlmesh_runtime.process import tune
from imlmesh_runtime.sqlite import MemoryStore

_BACK_S = 60.0
_LAG_EVERY_S = 0.1


class Member(RunningNode):
    """One node; `answered` is when a heartbeat was last answered, and in which epoch and session."""

    answered: tuple[float, int, int] = (0.0, 0, 0)

    def _post(self, event: Event) -> None:
        if type(event) is AckArrived and event.beat is not None:
            self.answered = (time.monotonic(), event.epoch, self.presence.session)
        super()._post(event)

    def is_back(self, before: tuple[float, int, int]) -> bool:
        """Whether it was answered since, by a newer orchestrator or in a newer session."""
        return self.answered[1:] > before[1:]


async def made(setup: Setup) -> Member:
    """The node of a folder, connecting."""
    config = setup.config
    journal = Journal(MemoryStore(MIGRATIONS))
    loaded = await journal.load(time.time_ns() // 1_000_000)
    link = MqttLink(
        config.brokers, config.id, setup.keys.context, node_subscriptions(config.mesh, config.id)
    )
    return Member(setup, journal, loaded, link)


class Lag:
    """How late the loop of this process was at most: beats that it does not send are no fault of others."""

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._due_s = time.monotonic()
        self._on_time()

    def _on_time(self) -> None:
        now_s = time.monotonic()
        self.worst_s = max(self.worst_s, now_s - self._due_s)
        self._due_s = now_s + _LAG_EVERY_S
        asyncio.get_running_loop().call_later(_LAG_EVERY_S, self._on_time)


async def back(members: list[Member], before: list[tuple[float, int, int]]) -> list[float]:
    """When each was back, by the clock of `time.monotonic`; RuntimeError when one stays away."""
    end_s = time.monotonic() + _BACK_S
    for member, mark in zip(members, before, strict=True):
        while not member.is_back(mark):
            if time.monotonic() > end_s:
                raise RuntimeError(f"not back: {_away(members, before)}")
            await asyncio.sleep(0.01)  # its time is kept when it happens
    return [member.answered[0] for member in members]


def _away(members: list[Member], before: list[tuple[float, int, int]]) -> list[object]:
    """What is known of those that are not back."""
    return [
        (member.presence.session, member.link.connected, member.presence.is_open, member.answered)
        for member, mark in zip(members, before, strict=True)
        if not member.is_back(mark)
    ]


async def main(folders: list[str]) -> None:
    members = [await made(load_setup(Path(folder))) for folder in folders]
    tune()
    for member in members:
        member.start()
    await back(members, [member.answered for member in members])
    print("ready", flush=True)
    lag = Lag()
    while line := await asyncio.to_thread(sys.stdin.readline):
        del line
        lag.worst_s = 0.0
        began_s = time.monotonic()
        before = [member.answered for member in members]
        firsts = await back(members, before)
        taken = [round(at_s - began_s, 3) for at_s in firsts]
        print(json.dumps({"taken": taken, "lag_s": round(lag.worst_s, 2)}), flush=True)
    for member in members:
        await member.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
