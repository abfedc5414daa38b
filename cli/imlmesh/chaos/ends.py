"""Scenarios in which processes end: broker, orchestrator, nodes, one after the other or at random.

The one rule: SIGKILL, of the process and all that it started, whatever it is doing.
"""

import asyncio
import time

from imlmesh.chaos.field import BROKER, NODES, ORCHESTRATOR, Field, from_here
from imlmesh.chaos.plans import history, marked, waits
from imlmesh.chaos.trial import Trial
from imlmesh_orchestrator.core.changes import DispatchPlanned, EpochRaised, ResultTaken
from imlmesh_protocol.states import Liveness

_HISTORY_RUNS, _HISTORY_ACTIONS = 20, 500
#: of a result that had left its node before the broker died
_UNDER_WAY_S = 0.2
KILLS_A_ROUND = 5
#: after the mesh answers again, the next kill comes within so many seconds
_NEXT_KILL_S = 1.0


async def broker_restart(trial: Trial) -> None:
    """The broker is killed while all nodes work, and started again."""
    await trial.submit(marked(4, 25, 120, nodes=NODES))
    for node in NODES:
        await trial.holds(node)
    at_s = await trial.field.restart(BROKER)
    await asyncio.sleep(_UNDER_WAY_S)
    await trial.goes_on(at_s + _UNDER_WAY_S, ResultTaken, NODES)
    if trial.result.recovery_s is not None:
        trial.result.recovery_s += _UNDER_WAY_S
    trial.nobody_lost(at_s)


async def orchestrator_kill(trial: Trial) -> None:
    """The orchestrator is killed in the middle of a run, and started again."""
    await trial.submit(marked(4, 25, 120))
    await trial.holds(NODES[0])
    at_s = await trial.field.restart(ORCHESTRATOR)
    # what the old one planned may be seen a little later than its end
    begun_s = await trial.field.watcher.first(lambda change: isinstance(change, EpochRaised), at_s)
    await trial.goes_on(at_s + (begun_s or 0.0), DispatchPlanned)
    if trial.result.recovery_s is not None:
        trial.result.recovery_s += begun_s or 0.0
    trial.nobody_lost(at_s)


async def orchestrator_kill_history(trial: Trial) -> None:
    """The orchestrator is killed likewise, with 10,000 actions of earlier runs in its store."""
    for _ in range(_HISTORY_RUNS):
        await trial.submit(history(_HISTORY_ACTIONS))
    await trial.ended()
    await orchestrator_kill(trial)


async def node_kill(trial: Trial) -> None:
    """A node is killed with its drivers and commands; it is started when its work has moved."""
    victim = NODES[1]
    await trial.submit(marked(8, 6, 200, movable=from_here(victim)))
    await trial.holds(victim, "move-")
    at_s = await trial.field.kill(victim)
    trial.result.detection_s = await trial.field.seen_as(victim, Liveness.SUSPECT, at_s)
    await trial.moved(at_s)
    started_s = time.monotonic()
    await trial.field.start(victim)
    await trial.back(started_s, victim)
    trial.nobody_lost(at_s, victim)


async def random_kills(trial: Trial, kills: int, *, nodes: bool) -> None:
    """Kills at random instants of a plan of 100 actions and of one that waits in every way: of
    orchestrator and broker, which may change no ending, or of anybody."""
    victims = (ORCHESTRATOR, BROKER, *NODES) if nodes else (ORCHESTRATOR, ORCHESTRATOR, BROKER)
    await trial.submit(marked(5, 20, 100, ends_as_told=not nodes))
    await trial.submit(waits(NODES, ends_as_told=not nodes))
    for _ in range(kills):
        await asyncio.sleep(trial.dice.uniform(0, _NEXT_KILL_S))
        victim = trial.dice.choice(victims)
        at_s = await trial.field.restart(victim)
        await answers(trial.field)
        trial.result.recoveries_s.append(time.monotonic() - at_s)


async def answers(place: Field) -> None:
    """Returns when the orchestrator is there and connected."""
    await place.until("health", lambda found: found["broker"]["connected"])
