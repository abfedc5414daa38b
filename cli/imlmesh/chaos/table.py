"""All scenarios: what they are called, which of the 25 failure scenarios they show, what is promised.

The one rule: a promise stands here once; the command, the report and the tests read it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from imlmesh.chaos import ends, machines, silence
from imlmesh.chaos.trial import Trial
from imlmesh_protocol.limits import LAN, reroute_ms

#: from the kill to suspect: the broker hears that the connection broke
WILL_S = 1.5
#: from the window to lost: a look of the orchestrator at its deadlines, and ours
LOOK_S = 0.5
#: work is offered again so soon after its lease is surely over
OFFER_S = 1.0
RESUMED_S = 5.0
#: the first beat that it sends after it became deaf is a new one
BEAT_S = LAN.heartbeat_ms / 1_000
_LOST_S = LAN.lost_ms / 1_000 + LOOK_S
_MOVED_S = reroute_ms(LAN.lost_ms) / 1_000 + OFFER_S
RANDOM = "random-kills"


@dataclass(frozen=True, slots=True)
class Scenario:
    """`shows` are numbers of the failure scenarios of docs/simulation.md. Promised seconds are None where
    nothing is promised. `detects` and `recovers` say what is measured. The random
    kills have no `play` of their own: they are played in rounds."""

    name: str
    shows: tuple[int, ...]
    detects: str = ""
    recovers: str = ""
    detection_s: float | None = None
    reroute_s: float | None = None
    recovery_s: float | None = None
    play: Callable[[Trial], Awaitable[None]] | None = None
    person: bool = True

    @property
    def text(self) -> str:
        """What is done, in a sentence."""
        told = (self.play or ends.random_kills).__doc__ or ""
        return " ".join(told.split()).rstrip(".")


_AGAIN = "online again"
SCENARIOS = (
    Scenario(
        "broker-restart",
        (1, 2),
        recovers="results of all nodes",
        play=ends.broker_restart,
    ),
    Scenario(
        "orchestrator-kill",
        (3, 4),
        recovers="dispatching",
        recovery_s=RESUMED_S,
        play=ends.orchestrator_kill,
    ),
    Scenario(
        "orchestrator-history",
        (3,),
        recovers="dispatching",
        recovery_s=RESUMED_S,
        play=ends.orchestrator_kill_history,
    ),
    Scenario(
        "node-kill",
        (6,),
        "suspect",
        "started and online",
        WILL_S,
        _MOVED_S,
        play=ends.node_kill,
    ),
    Scenario("torn-stream", (5,), recovers="results", play=silence.torn_stream),
    Scenario("silent-node", (6,), "lost", _AGAIN, _LOST_S, _MOVED_S, play=silence.silent_node),
    Scenario("pulled-cable", (6, 7), "lost", _AGAIN, _LOST_S, _MOVED_S, play=silence.pulled_cable),
    Scenario(
        "partition",
        (7,),
        "lost",
        _AGAIN,
        _LOST_S,
        _MOVED_S,
        play=silence.partition,
        person=False,
    ),
    Scenario("not-heard", (8,), "lost", _AGAIN, _LOST_S, _MOVED_S, play=silence.not_heard),
    Scenario(
        "deaf",
        (8,),
        "lost",
        _AGAIN,
        _LOST_S + BEAT_S,
        _MOVED_S + BEAT_S,
        play=silence.deaf,
    ),
    Scenario("orchestrator-alone", (9,), recovers="results", play=silence.orchestrator_alone),
    Scenario("mass-silence", (9,), "alarm", "judging again", play=silence.mass_silence),
    Scenario("flapping", (10,), "suspect", _AGAIN, play=silence.flapping),
    Scenario("suspend", (12,), "lost", _AGAIN, _LOST_S, _MOVED_S, play=machines.suspend),
    Scenario("orchestrator-suspend", (12,), recovers="results", play=machines.orchestrator_suspend),
    Scenario("busy-cpu", (12,), play=machines.busy_cpu),
    Scenario("clock-jumps", (18,), recovers="booted in 1970 and online", play=machines.clock_jumps),
    Scenario("full-disk-node", (17,), recovers="an effect", play=machines.full_disk_node),
    Scenario(
        "full-disk-orchestrator",
        (16,),
        recovers="an effect",
        play=machines.full_disk_orchestrator,
    ),
    Scenario(RANDOM, (1, 3, 4, 6), recovers="the mesh answers"),
)
NAMES = tuple(scenario.name for scenario in SCENARIOS)
