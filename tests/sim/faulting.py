"""How each fault is done to a world, and how it ends.

The one rule: a fault says when it ends by itself; `World.heal` ends whatever has not. Only a node
that is gone for good stays so.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from imlmesh_orchestrator.core import events as e
from imlmesh_protocol import limits
from imlmesh_protocol.states import Admission
from script import GONE, Fault

if TYPE_CHECKING:
    from world import World

#: a broker that hears nothing of a client for so long ends its session
KEEPALIVE_MS = 5_000
FLAP_MS = 3_000
HOUR_MS = 3_600_000


def begin(world: "World", fault: Fault) -> None:
    world.tell(f"fault: {fault}")
    world.happened(fault.kind)
    _FAULTS[fault.kind](world, fault)


def _later(world: "World", fault: Fault, act: Callable[[], None]) -> None:
    world.at(world.now_ms + fault.pause_ms, act)


def _kill(world: "World", fault: Fault) -> None:
    node = world.nodes[fault.node]
    node.kill()
    _later(world, fault, node.start)


def _flap(world: "World", fault: Fault) -> None:
    """Up and down, a few seconds each, until its time is over."""
    node = world.nodes[fault.node]
    for at_ms in range(0, fault.pause_ms + FLAP_MS, 2 * FLAP_MS):
        world.at(world.now_ms + at_ms, node.kill)
        world.at(world.now_ms + at_ms + FLAP_MS, node.start)


def _cut(world: "World", fault: Fault) -> None:
    world.hub.partition(fault.node)
    _later(world, fault, lambda: world.hub.heal(fault.node))


def _half(world: "World", fault: Fault) -> None:
    """One way only: it hears and cannot be heard, or the reverse."""
    deaf = fault.number % 2 == 0
    world.happened("half: deaf" if deaf else "half: mute")
    world.hub.partition(fault.node, to_client=deaf, from_client=not deaf)
    _later(world, fault, lambda: world.hub.heal(fault.node))


def _drop(world: "World", fault: Fault) -> None:
    world.hub.drop(fault.node)


def _suspend(world: "World", fault: Fault) -> None:
    """The machine of a node sleeps; after a while the broker ends its session."""
    node = world.nodes[fault.node]
    node.suspend()
    drivers_end = fault.number % 2 == 1
    wake = partial(node.resume, drivers_end=drivers_end)
    _while_asleep(world, fault, fault.node, wake)


def _asleep(world: "World", fault: Fault) -> None:
    """The machine of the orchestrator sleeps."""
    world.orchestrator.suspend()
    _while_asleep(world, fault, "orchestrator", world.orchestrator.resume_machine)


def _while_asleep(world: "World", fault: Fault, client: str, wake: Callable[[], None]) -> None:
    def end_session() -> None:
        world.hub.partition(client)
        world.hub.drop(client)

    def awake() -> None:
        world.hub.heal(client)
        wake()

    if fault.pause_ms > KEEPALIVE_MS:
        world.at(world.now_ms + KEEPALIVE_MS, end_session)
    _later(world, fault, awake)


def _journal_full(world: "World", fault: Fault) -> None:
    node = world.nodes[fault.node]
    node.machine.disk_full = True
    _later(world, fault, node.machine.free_disk)


def _store_full(world: "World", fault: Fault) -> None:
    """Nothing can be stored; the orchestrator sees that, refuses plans and dispatches nothing."""
    own = world.orchestrator
    own.post(e.OutflowMeasured, behind=True)
    own.machine.disk_full = True

    def freed() -> None:
        own.machine.free_disk()
        own.post(e.OutflowMeasured, behind=False)

    _later(world, fault, freed)


def _behind(world: "World", fault: Fault) -> None:
    """The store's mover lags."""
    own = world.orchestrator
    own.post(e.OutflowMeasured, behind=True)
    _later(world, fault, lambda: own.post(e.OutflowMeasured, behind=False))


def _crash(world: "World", fault: Fault) -> None:
    """The driver's process ends, not the agent; a new one is there for the next call."""
    world.nodes[fault.node].crash()


def _torn(world: "World", fault: Fault) -> None:
    """It dies, and its next agent finds a journal that it cannot read, or none at all."""
    node = world.nodes[fault.node]
    node.lose_journal(gone=bool(fault.number % 2))
    _later(world, fault, node.start)


def _goodbye(world: "World", fault: Fault) -> None:
    node = world.nodes[fault.node]
    node.goodbye()
    _later(world, fault, node.start)


def _clock(world: "World", fault: Fault) -> None:
    """A wall clock steps; who starts later reads it then."""
    dice = random.Random(fault.number)
    by_ms = dice.choice((-1, 1)) * dice.choice((5_000, 600_000, HOUR_MS, 20 * HOUR_MS))
    own = dice.random() < 0.5
    machine = world.orchestrator.machine if own else world.nodes[fault.node].machine
    world.tell(f"the wall clock of {'the orchestrator' if own else fault.node} steps {by_ms} ms")
    machine.step_wall(by_ms)


def _replay(world: "World", fault: Fault) -> None:
    """Somebody at the broker sends again what this node was sent within the last minute."""
    for at_ms, topic, payload in list(world.orchestrator.published):
        recent = at_ms > world.now_ms - limits.MESSAGE_EXPIRY_MS
        if recent and f"/to/{fault.node}/" in topic:
            world.hub.publish("somebody", topic, payload)


def _orchestrator(world: "World", fault: Fault) -> None:
    world.checks.replays()
    world.orchestrator.kill()
    _later(world, fault, world.orchestrator.start)


def _alone(world: "World", fault: Fault) -> None:
    """The orchestrator alone loses the broker, silently; now and then it notices."""
    world.hub.partition("orchestrator")
    if fault.number % 2:
        world.hub.drop("orchestrator")
    _later(world, fault, lambda: world.hub.heal("orchestrator"))


def _broker(world: "World", fault: Fault) -> None:
    """It restarts: every session ends, nothing is kept."""
    world.hub.stop()
    _later(world, fault, world.hub.restart)


def _cancel(world: "World", fault: Fault) -> None:
    world.orchestrator.cancel()


def _pause(world: "World", fault: Fault) -> None:
    world.orchestrator.pause()
    _later(world, fault, world.orchestrator.resume)


def _admit(world: "World", fault: Fault) -> None:
    node = fault.node
    world.orchestrator.decide(node, Admission(fault.kind))
    if fault.number % 2:
        _later(world, fault, lambda: world.orchestrator.decide(node, Admission.OPEN))


def _misbehave(world: "World", fault: Fault) -> None:
    world.checks.guilty.add(fault.node)
    for mark in range(limits.EVIDENCE_MALFORMED):
        seen = {"kind": "malformed", "text": "as the world says", "mark": str(mark)}
        world.orchestrator.post(e.EvidenceSeen, node=fault.node, **seen)


def _gone(world: "World", fault: Fault) -> None:
    """For good: no heal brings it back."""
    node, way = world.nodes[fault.node], fault.kind
    world.gone.add(fault.node)
    if way in ("stays dead", "stays shut down"):
        node.machine.broken = True
        if way == "stays shut down":
            node.goodbye()
        node.kill()
    else:
        world.hub.never_heals[fault.node] = way == "stays deaf"
        world.hub.heal(fault.node)


_FAULTS: dict[str, Callable[["World", Fault], None]] = {
    "kill": _kill,
    "flap": _flap,
    "crash": _crash,
    "cut": _cut,
    "half": _half,
    "drop": _drop,
    "suspend": _suspend,
    "journal full": _journal_full,
    "torn": _torn,
    "goodbye": _goodbye,
    "clock": _clock,
    "replay": _replay,
    "orchestrator": _orchestrator,
    "alone": _alone,
    "asleep": _asleep,
    "store full": _store_full,
    "behind": _behind,
    "broker": _broker,
    "cancel": _cancel,
    "pause": _pause,
    "cordoned": _admit,
    "draining": _admit,
    "quarantined": _admit,
    "revoked": _admit,
    "misbehave": _misbehave,
    **dict.fromkeys(GONE, _gone),
}
