"""Scenarios in which nobody dies and somebody is not heard: broken networks, one way or both.

The one rule: the network is a proxy; the processes on both sides of it are left alone.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from imlmesh.chaos.cable import laid_cable
from imlmesh.chaos.field import NODES, ORCHESTRATOR, from_here
from imlmesh.chaos.plans import held, marked
from imlmesh.chaos.proxy import Mode, Proxy, opened_proxy
from imlmesh.chaos.trial import Trial
from imlmesh_orchestrator.core.changes import (
    ResultKept,
    ResultTaken,
    VerdictsFrozen,
    VerdictsResumed,
)
from imlmesh_protocol import limits
from imlmesh_protocol.limits import LAN
from imlmesh_protocol.states import Liveness

#: longer than the lost window and every deadline that follows from it
_LONG_S = LAN.lost_ms / 1_000 + 2
_FLAPS, _DOWN_S, _UP_S = 3, 2.0, 3.0
_TEARS, _TEAR_EVERY_S, _TEAR_BYTES, _DELAY_S = 5, 0.4, 4_000, 0.03


async def silent_node(trial: Trial) -> None:
    """Nothing comes from a node or reaches it, and no connection breaks."""
    await _silenced(trial, NODES[1], Mode.SILENT)


async def pulled_cable(trial: Trial) -> None:
    """The cable of a node is pulled, in a network of its own: what is lost there is sent again by TCP."""
    place, victim = trial.field, NODES[1]
    node = place.running[victim]
    with laid_cable() as cable:
        if isinstance(cable, str):
            trial.result.left_out = cable
            return
        async with opened_proxy(place.broker.port, await cable.listener()) as proxy:
            await place.kill(victim)
            before = node.program
            node.within = cable.within
            broker = ("--broker", f"{cable.address}:{proxy.port}")
            node.program = replace(before, arguments=(*before.arguments, *broker))
            try:
                await place.start(victim)
                await place.settle()
                await _silence(trial, victim, cable.pull, cable.plug_in)
                await trial.ended()
            finally:
                await place.kill(victim)
                node.within, node.program = (), before
                await place.start(victim)


async def not_heard(trial: Trial) -> None:
    """One way only: the node hears and is not heard."""
    await _silenced(trial, NODES[2], Mode.DOWN_ONLY)


async def deaf(trial: Trial) -> None:
    """One way only: the node is heard and hears nothing."""
    # long enough to be cut short: what ends sooner is reported, for the node is heard
    await _silenced(trial, NODES[3], Mode.UP_ONLY, settle=9)


async def partition(trial: Trial) -> None:
    """The node goes on while it is cut off, its work is moved, then it comes back with what it did."""
    victim = NODES[1]
    proxy = trial.field.proxies[victim]
    kept = await trial.submit(held(victim, 3.0))
    moving = await trial.submit(marked(1, 1, 0, movable=from_here(victim), settle=9))
    await trial.holds(victim, "mark")
    await trial.holds(victim, "move-")
    at_s = time.monotonic()
    proxy.mode = Mode.SILENT
    await trial.lost(victim, at_s)
    await trial.moved(at_s)
    healed_s = time.monotonic()
    proxy.mode = Mode.PASS
    await trial.back(healed_s, victim)
    # nobody is asked: the node's own late word answers what was unknown
    await trial.ended()
    seen = [each.change for each in trial.field.watcher.since(healed_s)]
    late = [each for each in seen if isinstance(each, ResultKept) and each.run == moving]
    told = [each for each in seen if isinstance(each, ResultTaken) and each.run == kept]
    trial.must(bool(told), "the node's late result was not taken")
    trial.result.notes.append(f"{len(late)} late kept")
    trial.nobody_lost(at_s, victim)


async def orchestrator_alone(trial: Trial) -> None:
    """The orchestrator is cut off from the broker, silently; nodes are not."""
    proxy = trial.field.proxies[ORCHESTRATOR]
    await trial.submit(marked(8, 6, 200))
    await trial.holds(NODES[0])
    at_s = time.monotonic()
    proxy.mode = Mode.SILENT
    await asyncio.sleep(_LONG_S)
    healed_s = time.monotonic()
    proxy.mode = Mode.PASS
    await trial.goes_on(healed_s, ResultTaken)
    trial.nobody_lost(at_s)


async def mass_silence(trial: Trial) -> None:
    """Three of four nodes fall silent at once: nobody is judged, and one alarm is written."""
    silent = NODES[1:]
    await trial.submit(marked(8, 6, 200))
    await trial.holds(NODES[1])
    at_s = time.monotonic()
    for name in silent:
        trial.field.proxies[name].mode = Mode.SILENT
    watcher = trial.field.watcher
    frozen = await watcher.first(lambda change: isinstance(change, VerdictsFrozen), at_s)
    trial.must(frozen is not None, "no alarm was written")
    trial.result.detection_s = frozen
    healed_s = time.monotonic()
    for name in silent:
        trial.field.proxies[name].mode = Mode.PASS
    trial.result.recovery_s = await watcher.first(
        lambda change: isinstance(change, VerdictsResumed), healed_s
    )
    trial.nobody_lost(at_s)


async def flapping(trial: Trial) -> None:
    """The connection of a node breaks again and again."""
    victim = NODES[2]
    proxy = trial.field.proxies[victim]
    run = await trial.submit(marked(8, 12, 200, movable=from_here(victim)))
    await trial.holds(victim, "move-")
    at_s = time.monotonic()
    for _ in range(_FLAPS):
        proxy.mode = Mode.CUT
        await asyncio.sleep(_DOWN_S)
        healed_s = time.monotonic()
        proxy.mode = Mode.PASS
        await asyncio.sleep(_UP_S)
    trial.result.detection_s = await trial.field.seen_as(victim, Liveness.SUSPECT, at_s, 0)
    await trial.ended()
    trial.result.recovery_s = await trial.field.seen_as(victim, Liveness.ONLINE, healed_s)
    most = trial.most_attempts(run)
    trial.must(most <= 2, f"an action was moved {most - 1} times")


async def torn_stream(trial: Trial) -> None:
    """Connections are reset in the middle of a packet, of nodes and orchestrator, on a slow network."""
    dice = trial.dice
    await trial.submit(marked(8, 16, 150))
    await trial.holds(NODES[0])
    at_s = time.monotonic()
    proxies = trial.field.proxies
    for proxy in proxies.values():
        proxy.delay_s = _DELAY_S
    for _ in range(_TEARS):
        name = dice.choice([*proxies])
        proxies[name].break_after(dice.randrange(1, _TEAR_BYTES))
        if not await _is_torn(proxies[name]):
            trial.must(False, f"the connection of {name} was never torn")
        await asyncio.sleep(_TEAR_EVERY_S)
    for proxy in proxies.values():
        proxy.delay_s = 0.0
    healed_s = time.monotonic()
    # a tear waits for traffic: the other effects may all be done by now
    await trial.submit(held(NODES[0], 0.0))
    await trial.goes_on(healed_s, ResultTaken)
    trial.nobody_lost(at_s)


async def _is_torn(proxy: Proxy) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.CHAOS_SEEN_S):
            await proxy.torn.wait()
    return proxy.torn.is_set()


async def _silenced(trial: Trial, victim: str, mode: Mode, settle: int = 2) -> None:
    proxy = trial.field.proxies[victim]

    def switch(to: Mode) -> None:
        proxy.mode = to

    await _silence(trial, victim, partial(switch, mode), partial(switch, Mode.PASS), settle)


async def _silence(
    trial: Trial,
    victim: str,
    breaks: Callable[[], None],
    heals: Callable[[], None],
    settle: int = 2,
) -> None:
    await trial.submit(marked(8, 6, 200, movable=from_here(victim), settle=settle))
    await trial.holds(victim, "move-")
    at_s = time.monotonic()
    breaks()
    await trial.lost(victim, at_s)
    await trial.moved(at_s)
    healed_s = time.monotonic()
    heals()
    await trial.back(healed_s, victim)
    trial.nobody_lost(at_s, victim)
